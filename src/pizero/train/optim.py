"""Optimizers with openpi's constants, learning-rate schedule, average of the weights, precision of the products."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from pizero.engine.products import has_onednn
from pizero.train.config import Precision, TrainConfig
from pizero.train.distributed import local, spread_like
from pizero.train.low_memory import BETAS, EPSILON, RoundedAdamW, RowSteps, eight_bit_adamw
from pizero.train.muon import Muon
from pizero.train.parts import EMBEDDING
from pizero.types import UserError


def make_optimizers(model: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """AdamW, betas (0.9, 0.95), eps 1e-8 (openpi src/openpi/training/optimizer.py), for all trained weights but those
    that the config gives another optimizer: bfloat16 weights, matrices inside the transformers, the embedding table.

    UserError for muon where there are no such matrices, and for shards where it is not AdamW in float32.
    """
    left = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    others = (
        config.optimizer != "adamw" or config.precision == "bfloat16" or config.parts.embedding_steps != "optimizer"
    )
    if others and any(isinstance(parameter, DTensor) for parameter in left.values()):
        raise UserError("shards are trained by AdamW with float32 weights; use --sharding ddp, or adamw and mixed")

    def take(names: Iterable[str]) -> list[nn.Parameter]:
        return [left.pop(name) for name in list(names)]

    rate, decay, optimizers = config.learning_rate, config.weight_decay, list[torch.optim.Optimizer]()
    if config.parts.embedding_steps == "stateless":
        optimizers.append(RowSteps(take([EMBEDDING]), rate, config.seed))
    if config.optimizer == "muon":
        matrices = take(name for name in left if _is_hidden_matrix(model, name))
        if not matrices:
            name = type(model).__name__
            raise UserError(f"muon is for the matrices inside transformers, {name} has none to train; use adamw")
        optimizers.append(Muon(matrices, rate))
    elif config.optimizer == "adamw8bit":
        optimizers.append(eight_bit_adamw(take(left), rate, decay, config.seed))
    elif rounded := take(name for name in left if left[name].dtype == torch.bfloat16):
        optimizers.append(RoundedAdamW(rounded, rate, decay, config.seed))
    if left:
        others = take(left)
        adamw = torch.optim.AdamW(others, lr=rate, betas=BETAS, eps=EPSILON, weight_decay=decay, fused=True)
        optimizers.insert(0, adamw)
    return optimizers


def set_learning_rate(optimizers: Sequence[torch.optim.Optimizer], rate: float) -> None:
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        if isinstance(group["lr"], Tensor):  # torchao compiles its step, and keeps the rate in a tensor
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def _is_hidden_matrix(model: nn.Module, name: str) -> bool:
    """Weights of the linear layers in a stack of layers; neither embeddings, nor heads, nor the norms' modulation."""
    stacked = ".blocks." in name or ".layers." in name
    return stacked and "norm" not in name and model.get_parameter(name).ndim == 2


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up from peak / (warmup_steps + 1), then a cosine to the final rate. `step` counts from 0."""
    peak, final, warmup = (
        config.learning_rate,
        min(config.final_learning_rate, config.learning_rate),
        config.warmup_steps,
    )
    if step < warmup:
        start = peak / (warmup + 1)
        return start + (peak - start) * step / warmup
    progress = min((step - warmup) / max(config.steps - warmup, 1), 1.0)
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * progress))


class WeightAverage:
    """Exponential moving average of the trained weights: average = decay * average + (1 - decay) * weights.

    power: above 0 the decay of step t, from 0, is 1 - (1 + t) ** -power, at most `decay`: the average of a short run is
    not its first weights (diffusion_policy, diffusion_policy/model/diffusion/ema_model.py). In float32, for a bfloat16
    average would never move. With decay 0 nothing is kept, and the weights themselves take its place.
    """

    def __init__(self, model: nn.Module, decay: float, power: float = 0.0) -> None:
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self._weights = trained if decay > 0 else {}
        self._average = {name: weight.detach().float().clone() for name, weight in self._weights.items()}
        self._decay, self._power = decay, power

    def decay(self, step: int) -> float:
        """The decay at training step `step`, counted from 0."""
        return min(self._decay, 1 - (1 + step) ** -self._power) if self._power > 0 else self._decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights after training step `step`."""
        by_dtype: dict[torch.dtype, list[str]] = {}
        for name, weight in self._weights.items():
            by_dtype.setdefault(weight.dtype, []).append(name)
        for names in by_dtype.values():
            average, weights = ([local(tensors[name]) for name in names] for tensors in (self._average, self._weights))
            if weights[0].dtype == torch.float32:
                torch._foreach_lerp_(average, weights, 1 - self.decay(step))  # pyright: ignore[reportPrivateImportUsage]
                continue
            for one, weight in zip(average, weights, strict=True):  # one float32 copy at a time
                one.lerp_(weight.float(), 1 - self.decay(step))

    @torch.no_grad()
    def load(self, average: Mapping[str, Tensor]) -> None:
        """Of a checkpoint, whose weights are the average."""
        for name, tensor in self._average.items():
            local(tensor).copy_(local(spread_like(average[name], tensor)))

    def tensors(self) -> Mapping[str, Tensor]:
        """The average by name, divided among ranks as the weights are."""
        return self._average

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within it the model has the average as its weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, weight in self._weights.items():
            average = self._average[name]
            if isinstance(weight, DTensor):  # its ranks gather from the memory that it has had from the start
                kept = local(weight).clone()
                local(weight).copy_(local(average))
                local(average).copy_(kept)
            else:
                weight.data, self._average[name] = average, weight.data


def product_context(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """Autocast to bfloat16 where float32 weights are to be multiplied so; else nothing."""
    mixed = precision != "bfloat16" and multiplies_in_bfloat16(precision, device)
    return torch.autocast(device.type, torch.bfloat16) if mixed else nullcontext()


def multiplies_in_bfloat16(precision: Precision, device: torch.device) -> bool:
    """For "mixed" and "bfloat16", and for "auto" where the hardware has bfloat16 products."""
    return precision in ("mixed", "bfloat16") or (precision == "auto" and has_bfloat16(device))


def has_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 products are faster than float32: a GPU that supports them, a CPU with AVX512-BF16 or AMX.

    On a CPU the fast ones are oneDNN's, which may be absent, or kept from what the processor has (ONEDNN_MAX_CPU_ISA).
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    path = Path("/proc/cpuinfo")
    flags = path.read_text() if device.type == "cpu" and path.is_file() else ""
    return (" avx512_bf16" in flags or " amx_bf16" in flags) and has_onednn(torch.bfloat16)
