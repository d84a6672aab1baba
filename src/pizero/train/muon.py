"""Muon: momentum whose steps are made orthogonal, for the matrices inside the transformers (Jordan et al. 2024,
kellerjordan.github.io/posts/muon).

A small model from scratch finds out much sooner with it which word means which place in the image
(docs/results/quickstart.md). Matrices of one shape are orthogonalised together, in float32: torch.optim.Muon takes them
one by one in bfloat16, ten times slower on a CPU without bfloat16 units.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration in the same source
ITERATIONS = 5


class Muon(Optimizer):
    """Steps of size 0.2 * lr * sqrt(longer side): as large as AdamW's, so that both share one learning rate
    (arXiv 2502.16982, section 2.2). Parameters [rows, columns]; no weight decay.
    """

    def __init__(self, matrices: Iterable[nn.Parameter], lr: float) -> None:
        super().__init__(matrices, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[tuple[int, ...], list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[tuple(parameter.shape)].append((parameter, self._direction(parameter)))
            for shape, pairs in by_shape.items():
                scale = 0.2 * group["lr"] * max(shape) ** 0.5
                steps = orthogonalize(torch.stack([direction for _, direction in pairs]))
                for (parameter, _), step in zip(pairs, steps, strict=True):
                    parameter.add_(step, alpha=-scale)

    def _direction(self, parameter: nn.Parameter) -> Tensor:
        """Nesterov momentum of the gradient."""
        state: dict[str, Any] = self.state[parameter]
        assert parameter.grad is not None
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"].lerp_(parameter.grad, 1 - MOMENTUM)
        return parameter.grad.lerp(momentum, MOMENTUM)


def orthogonalize(matrices: Tensor) -> Tensor:
    """[n, rows, columns] -> the same with all singular values near 1 (0.7 to 1.2): a Newton-Schulz iteration."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x
