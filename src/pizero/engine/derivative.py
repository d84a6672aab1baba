"""The derivative of a product whose kernel has none, or whose numbers are rounded to codes."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class FixedProduct(Protocol):
    """A product x [..., in] -> [..., out] with weights that never change."""

    def __call__(self, x: Tensor) -> Tensor: ...

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weights [out, in] that it multiplies with; of codes, the numbers that they stand for."""
        ...


def differentiable(product: FixedProduct, x: Tensor) -> Tensor:
    """product(x) with a derivative in x: that of the dense weights, as if nothing of x were rounded (straight-through).

    The derivative of rounding itself is 0 nearly everywhere, and of no use to what follows a gradient.
    """
    return _Differentiable.apply(x, product)


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, product: FixedProduct) -> Tensor:  # pyright: ignore
        ctx.product = product
        return product(x.detach())

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore
        return grad @ ctx.product.dense(grad.dtype), None
