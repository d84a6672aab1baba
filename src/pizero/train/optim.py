"""Optimizers with openpi's constants, learning-rate schedule, average of the weights, precision of the products."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from pizero.train.config import Precision, TrainConfig
from pizero.train.distributed import local
from pizero.train.muon import Muon
from pizero.types import UserError


def make_optimizers(model: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """AdamW, betas (0.9, 0.95), eps 1e-8 (openpi src/openpi/training/optimizer.py); with optimizer="muon" Muon takes
    the matrices inside the transformers, and AdamW the rest; UserError where there are none.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    matrices = {
        name: trained[name] for name in trained if config.optimizer == "muon" and _is_hidden_matrix(model, name)
    }
    if any(isinstance(matrix, DTensor) for matrix in matrices.values()):
        raise UserError("muon needs whole matrices on every rank; use --sharding ddp, or adamw")
    if config.optimizer == "muon" and not matrices:
        raise UserError(f"muon is for the matrices inside transformers, {type(model).__name__} has none; use adamw")
    others = [parameter for name, parameter in trained.items() if name not in matrices]
    adamw = torch.optim.AdamW(
        others, lr=config.learning_rate, betas=(0.9, 0.95), eps=1e-8, weight_decay=config.weight_decay, fused=True
    )
    return [adamw, Muon(matrices.values(), config.learning_rate)] if matrices else [adamw]


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
    not its first weights (diffusion_policy, diffusion_policy/model/diffusion/ema_model.py).
    """

    def __init__(self, model: nn.Module, decay: float, power: float = 0.0) -> None:
        self._weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._average = [parameter.detach().clone() for parameter in self._weights]
        self._decay, self._power = decay, power

    def decay(self, step: int) -> float:
        """The decay at training step `step`, counted from 0."""
        return min(self._decay, 1 - (1 + step) ** -self._power) if self._power > 0 else self._decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights after training step `step`."""
        average, weights = ([local(tensor) for tensor in tensors] for tensors in (self._average, self._weights))
        torch._foreach_lerp_(average, weights, 1 - self.decay(step))  # pyright: ignore[reportPrivateImportUsage]

    def state(self) -> list[Tensor]:
        """In the order of the trained parameters, and divided among ranks as these are."""
        return self._average

    @torch.no_grad()
    def load_state(self, average: list[Tensor]) -> None:
        for own, given in zip(self._average, average, strict=True):
            local(own).copy_(local(given))

    def applied(self) -> AbstractContextManager[None]:
        """Within it the model has the average as its weights."""
        return _Swapped(self._weights, self._average) if self._decay > 0 else nullcontext()


class _Swapped(AbstractContextManager[None]):
    def __init__(self, weights: list[nn.Parameter], others: list[Tensor]) -> None:
        self._pairs = list(zip(weights, others, strict=True))

    @torch.no_grad()
    def _swap(self) -> None:
        """In place: a sharded model gathers its weights from the memory that they have had from the start."""
        for weight, other in self._pairs:
            kept = local(weight).clone()
            local(weight).copy_(local(other))
            local(other).copy_(kept)

    def __enter__(self) -> None:
        self._swap()

    def __exit__(self, *error: object) -> None:
        self._swap()


def product_context(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """Autocast to bfloat16 for "mixed", and for "auto" where the hardware has bfloat16 products; else nothing."""
    return torch.autocast(device.type, torch.bfloat16) if is_mixed(precision, device) else nullcontext()


def is_mixed(precision: Precision, device: torch.device) -> bool:
    """Whether the products are computed in bfloat16, from float32 weights."""
    return precision == "mixed" or (precision == "auto" and has_bfloat16(device))


def has_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 products are faster than float32: a GPU that supports them, a CPU with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    path = Path("/proc/cpuinfo")
    flags = path.read_text() if device.type == "cpu" and path.is_file() else ""
    return " avx512_bf16" in flags or " amx_bf16" in flags
