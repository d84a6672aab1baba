"""Optimizers that keep less than AdamW's two float32 averages."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer

from pizero.train.seeds import SEED_RULE, Purpose, stream
from pizero.types import UserError

BETAS, EPSILON = (0.9, 0.95), 1e-8
"""openpi src/openpi/training/optimizer.py."""
_CHUNK = 1 << 24
"""Elements that are computed in float32 at a time."""


class RoundedAdamW(Optimizer):
    """AdamW for bfloat16 weights, 8 bytes per weight with gradient and averages, instead of 16.

    A bfloat16 weight has 8 bits, and a step is often below the last of them. Each step is computed in float32 and
    rounded up or down at random, with chances that make its mean the exact one, so that small steps add up (as in arXiv
    2010.06192). The draws depend on the seed and the step alone.
    """

    def __init__(self, weights: Iterable[nn.Parameter], lr: float, weight_decay: float, seed: int = 0) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "seed": seed, "step": 0, "seed_rule": SEED_RULE}
        super().__init__(weights, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["step"] += 1
            generator = _generator(group, Purpose.ROUNDING)
            for weight in group["params"]:
                if weight.grad is not None:
                    state: dict[str, Any] = self.state[weight]
                    if not state:
                        state.update(mean=torch.zeros_like(weight), square=torch.zeros_like(weight))
                    tensors = (weight.data.view(-1), state["mean"].view(-1), state["square"].view(-1))
                    flat = (tensor.split(_CHUNK) for tensor in (*tensors, weight.grad.reshape(-1)))
                    for part, mean, square, gradient in zip(*flat, strict=True):
                        _adamw(part, mean, square, gradient, group, generator)


def _adamw(weight: Tensor, mean: Tensor, square: Tensor, gradient: Tensor, group: dict[str, Any], g: Generator) -> None:
    """One step of flat tensors, in place."""
    gradient = gradient.float()
    new_mean = mean.float().lerp_(gradient, 1 - BETAS[0])
    new_square = square.float().lerp_(gradient.square(), 1 - BETAS[1])
    mean.copy_(new_mean)
    square.copy_(new_square)
    divisor = (new_square / (1 - BETAS[1] ** group["step"])).sqrt_().add_(EPSILON)
    exact = weight.float().mul_(1 - group["lr"] * group["weight_decay"])
    exact.addcdiv_(new_mean, divisor, value=-group["lr"] / (1 - BETAS[0] ** group["step"]))
    weight.copy_(round_at_random(exact, g))


class RowSteps(Optimizer):
    """For an embedding table: each row that has a gradient moves along it by the learning rate, root mean square.

    As large as AdamW's first step, without anything kept per weight. Tables [rows, width].
    """

    def __init__(self, tables: Iterable[nn.Parameter], lr: float, seed: int = 0) -> None:
        super().__init__(tables, {"lr": lr, "seed": seed, "step": 0, "seed_rule": SEED_RULE})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["step"] += 1
            generator = _generator(group, Purpose.TABLE)
            for table in group["params"]:
                if table.grad is None:
                    continue
                rows = table.grad.any(dim=1).nonzero().squeeze(1)  # few: those of the batch's prompts
                gradient = table.grad[rows].float()
                # by a power of two, which rounds nothing: the squares of small or large gradients are still numbers
                exponent = gradient.abs().amax(dim=1, keepdim=True).frexp().exponent
                gradient = gradient.ldexp(-exponent.clamp(min=-120))
                step = gradient / gradient.square().mean(dim=1, keepdim=True).sqrt()
                exact = table[rows].float().sub_(step, alpha=group["lr"])
                rounded = round_at_random(exact, generator) if table.dtype == torch.bfloat16 else exact
                table.index_copy_(0, rows, rounded.to(table.dtype))


def round_at_random(exact: Tensor, generator: Generator) -> Tensor:
    """float32 -> bfloat16, to one of the two neighbours, the nearer one with the greater chance: right in the mean."""
    bits = exact.view(torch.int32)
    noise = torch.randint(0, 1 << 16, bits.shape, generator=generator, dtype=torch.int32, device=bits.device)
    return ((bits + noise) & -(1 << 16)).view(torch.float32).bfloat16()


def _generator(group: dict[str, Any], purpose: Purpose) -> Generator:
    """Of this step. A group that an older version saved names no rule."""
    return stream(group["seed"], group["step"], purpose, group.get("seed_rule", "sum"), group["params"][0].device)


def eight_bit_adamw(weights: Iterable[nn.Parameter], lr: float, weight_decay: float, seed: int = 0) -> Optimizer:
    """AdamW whose averages are kept in 8 bits by blocks of 256 (torchao; Dettmers et al., arXiv 2110.02861).

    bfloat16 weights are rounded at random, by the seed and the step alone: torchao draws from PyTorch's global numbers,
    which are set for each step and put back after it. UserError where torchao is missing.
    """
    try:
        from torchao.optim import AdamW8bit  # pyright: ignore
    except ImportError as error:
        raise UserError("8-bit AdamW needs torchao: pip install 'pizero[quant]'") from error

    class SeededAdamW8bit(AdamW8bit):  # pyright: ignore
        def step(self, closure: Any = None) -> Any:
            device = self.param_groups[0]["params"][0].device  # pyright: ignore
            taken = max((int(state["step"]) for state in self.state.values()), default=0)  # pyright: ignore
            with torch.random.fork_rng([device] if device.type == "cuda" else []):  # pyright: ignore
                torch.manual_seed(stream(seed, taken, Purpose.ROUNDING).initial_seed())
                return super().step(closure)  # pyright: ignore

    optimizer: Any = SeededAdamW8bit(  # pyright: ignore
        weights, lr=lr, betas=BETAS, eps=EPSILON, weight_decay=weight_decay, bf16_stochastic_round=True
    )
    return optimizer
