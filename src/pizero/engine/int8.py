"""Products with 8-bit codes, and how far the codes may go where this processor multiplies.

Processors with VNNI (and Arm's) add 8-bit products in 32 bits. Others add each two of them in 16 bits first, which
saturates: weights then have 7 bits, and any two products fit. Which kind this is shows in one exact product;
so the answer holds whatever the processor's name, or the instructions that `ONEDNN_MAX_CPU_ISA` leaves it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from pizero.engine.derivative import differentiable
from pizero.model.layers import gelu

ROWS = 512
"""Rows of a weight that are computed at a time, so that they stay in the cache."""
EIGHT_BITS, SEVEN_BITS = 127, 63
"""Largest code of a weight, either sign."""
_ZERO = 128
"""The code of a token's zero."""


class Int8Product:
    """Weights of 8 bits with a scale per output (7 bits where 8 saturate), activations of 8 with one per token."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        largest = largest_code()
        if largest is None:
            raise RuntimeError("no exact int8 product on this processor; check_kernels says so beforehand")
        codes, self.scale = int8_codes(weight, largest)
        self.packed = torch.ops.onednn.qlinear_prepack(codes, None)
        self.bias = bias
        self._zero = torch.zeros(len(weight), dtype=torch.int64)

    def __call__(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        if x.requires_grad:
            y = differentiable(self, x)
            return y if plus is None else plus + y
        codes, scale = quantized_tokens(x)
        y = self.coded(codes, x.dtype).mul_(scale)
        if self.bias is not None:
            y += self.bias
        return y if plus is None else y.add_(plus)

    def gelu(self, x: Tensor) -> Tensor:
        return gelu(self(x))

    def coded(self, codes: Tensor, dtype: torch.dtype) -> Tensor:
        """The product with tokens that are codes already, before their scales and the bias."""
        return _qlinear(codes, self.packed, self.scale, self._zero, dtype)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weights [out, in] that the codes stand for."""
        return (self.packed.to_dense().t() * self.scale[:, None]).to(dtype)


@dataclass(frozen=True)
class Int8Gated:
    """The first half of a gated MLP; both products read the same codes."""

    gate: Int8Product
    up: Int8Product

    def __call__(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            return gelu(self.gate(x)) * self.up(x)
        codes, scale = quantized_tokens(x)
        activated = gelu(self.gate.coded(codes, x.dtype).mul_(scale))
        return activated.mul_(self.up.coded(codes, x.dtype)).mul_(scale)


@cache
def largest_code() -> int | None:
    """Of a weight, either sign, so that no product saturates here; None where no int8 product is exact."""
    try:
        return next((largest for largest in (EIGHT_BITS, SEVEN_BITS) if _is_exact(largest)), None)
    except (AttributeError, RuntimeError):  # torch without oneDNN
        return None


def weight_bits() -> int:
    """Of a weight in int8 here, with its sign: 8, or 7 where 8 saturate."""
    return 8 if largest_code() == EIGHT_BITS else 7


def int8_codes(weight: Tensor, largest: int) -> tuple[Tensor, Tensor]:
    """[out, in] -> int8 codes from -largest to largest, and the scale [out] of a code."""
    codes = torch.empty_like(weight, dtype=torch.int8)
    scale = torch.empty(len(weight))
    for code, size, rows in zip(*(part.split(ROWS) for part in (codes, scale, weight)), strict=True):
        rows = rows.float()
        torch.amax(rows.abs() / largest, 1, out=size)
        code.copy_((rows / size.clamp_(min=1e-12)[:, None]).round_())
    return codes, scale


def quantized_tokens(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [..., in] -> uint8 codes around 128, and the scale [..., 1] in x's dtype that turns a code into its value.

    The factor is rounded to x's dtype before it is used, so that scale and codes agree; 126 leaves room for that.
    """
    largest = x.abs().amax(dim=-1, keepdim=True).clamp_(min=1e-12)
    factor = 126.0 / largest
    codes = (x * factor).round_().add_(_ZERO).to(torch.uint8)
    return codes, factor.reciprocal()


def _qlinear(codes: Tensor, packed: Tensor, scale: Tensor, zero: Tensor, dtype: torch.dtype) -> Tensor:
    # a result in bfloat16 takes a reference kernel where the processor has no bfloat16, a thousand times slower
    direct = dtype if dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32
    y = torch.ops.onednn.qlinear_pointwise(
        codes, 1.0, _ZERO, packed, scale, zero, None, 1.0, 0, direct, "none", [], ""
    )  # fmt: skip
    return y.to(dtype)


def _is_exact(largest: int) -> bool:
    """Whether products of the largest codes, and of any others, are those of whole numbers."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 256, (33, 96), generator=generator)
    tokens[0], tokens[1], tokens[2, ::2] = 255, 1, 255
    weight = torch.randint(-largest, largest + 1, (48, 96), generator=generator)
    weight[0], weight[1], weight[2, ::2] = largest, -largest, largest
    packed = torch.ops.onednn.qlinear_prepack(weight.to(torch.int8), None)
    scale, zero = torch.ones(len(weight)), torch.zeros(len(weight), dtype=torch.int64)
    return all(
        torch.equal(
            _qlinear(some.to(torch.uint8), packed, scale, zero, torch.float32).long(), (some - _ZERO) @ weight.T
        )
        for some in (tokens, tokens[:1])  # one token may have a kernel of its own
    )
