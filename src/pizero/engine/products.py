"""A product with one weight matrix, by the kernel that is fastest here: torch's, oneDNN's with packed weights, int8.

All of them are torch's. On a CPU the choice between the first two is measured once for each shape and kept in
`kernels.json` of the cache folder; int8 and float8 are taken where they are asked for, never silently.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from pizero.engine.derivative import differentiable
from pizero.engine.int8 import Int8Gated, Int8Product, largest_code
from pizero.engine.tuning import fastest
from pizero.model.layers import gelu
from pizero.types import UserError

Kernels: TypeAlias = Literal["auto", "torch", "onednn", "int8", "float8"]


class Product(Protocol):
    """x [..., in] -> x W^T + bias, [..., out]; `plus` [..., out] is added, `gelu` applied (its tanh form)."""

    def __call__(self, x: Tensor, plus: Tensor | None = None) -> Tensor: ...

    def gelu(self, x: Tensor) -> Tensor: ...


class Gated(Protocol):
    """x [..., in] -> gelu(x G^T) * (x U^T), [..., mlp_dim]."""

    def __call__(self, x: Tensor) -> Tensor: ...


class TorchProduct:
    """On any device; can be differentiated."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        if plus is not None and x.is_cuda and self.bias is None:  # one kernel there
            return torch.addmm(plus.flatten(0, -2), x.flatten(0, -2), self.weight.t()).view_as(plus)
        y = F.linear(x, self.weight, self.bias)
        return y if plus is None else plus + y

    def gelu(self, x: Tensor) -> Tensor:
        return gelu(self(x))


class OneDnnProduct:
    """With packed weights on a CPU, bias, GELU, factor or addition in the same pass over the result."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None, tokens: int | None = None) -> None:
        self.packed, self.bias = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), tokens), bias

    def __call__(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        if x.requires_grad:
            y = differentiable(self, x)
            return y if plus is None else plus + y
        if plus is not None:
            return torch.ops.mkldnn._linear_pointwise.binary(x, plus, self.packed, self.bias, "add")
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")

    def gelu(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            return gelu(self(x))
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "gelu", [], "tanh")

    def times(self, x: Tensor, factor: Tensor) -> Tensor:
        if x.requires_grad:
            return self(x) * factor
        return torch.ops.mkldnn._linear_pointwise.binary(x, factor, self.packed, self.bias, "mul")

    def dense(self, dtype: torch.dtype) -> Tensor:
        return self.packed.to_dense().to(dtype)


class Float8Product:
    """E4M3 weights with a scale per output, activations with a scale per token (NVIDIA Ada, Hopper and later)."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.scale = (weight.float().abs().amax(1, keepdim=True) / _FLOAT8_MAX).clamp(min=1e-12)
        self.codes = (weight.float() / self.scale).to(torch.float8_e4m3fn)
        self.bias = bias

    def __call__(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        if x.requires_grad:
            y = differentiable(self, x)
            return y if plus is None else plus + y
        rows = x.flatten(0, -2)
        scale = (rows.float().abs().amax(1, keepdim=True) / _FLOAT8_MAX).clamp(min=1e-12)
        codes = (rows.float() / scale).to(torch.float8_e4m3fn)
        y = torch._scaled_mm(  # pyright: ignore[reportPrivateImportUsage]
            codes, self.codes.t(), scale_a=scale, scale_b=self.scale.t(), bias=self.bias, out_dtype=x.dtype
        ).view(*x.shape[:-1], -1)
        return y if plus is None else plus + y

    def gelu(self, x: Tensor) -> Tensor:
        return gelu(self(x))

    def dense(self, dtype: torch.dtype) -> Tensor:
        return (self.codes.float() * self.scale).to(dtype)


@dataclass(frozen=True)
class PlainGated:
    """Two products of any kind."""

    gate: Product
    up: Product

    def __call__(self, x: Tensor) -> Tensor:
        return self.gate.gelu(x) * self.up(x)


@dataclass(frozen=True)
class JoinedGated:
    """One product that makes both halves."""

    gate_up: Product

    def __call__(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return gelu(gate) * up


@dataclass(frozen=True)
class OneDnnGated:
    """GELU and factor in the products' own passes over their results."""

    gate: OneDnnProduct
    up: OneDnnProduct

    def __call__(self, x: Tensor) -> Tensor:
        return self.up.times(x, self.gate.gelu(x))


_FLOAT8_MAX = 448.0


def make_product(weight: Tensor, bias: Tensor | None, tokens: int, kernels: Kernels) -> Product:
    """weight [out, in] as the kernels take it; tokens: how many it is mostly multiplied with."""
    makers = _makers(weight, kernels)
    if len(makers) == 1:
        (maker,) = makers.values()
        return maker(weight, bias)
    x = torch.ones(1, tokens, weight.shape[1], dtype=weight.dtype)
    name = f"{tokens} x {weight.shape[1]} x {weight.shape[0]} {weight.dtype}".replace("torch.", "")
    return makers[fastest(name, {key: lambda make=make: make(weight, bias) for key, make in makers.items()}, x)](
        weight, bias
    )


def make_gated(gate: Tensor, up: Tensor, tokens: int, kernels: Kernels) -> Gated:
    """The first half of a gated MLP, gate and up [mlp_dim, in]."""
    makers: dict[str, Callable[[], Gated]] = {
        "torch": lambda: JoinedGated(TorchProduct(torch.cat([gate, up]))),
        "onednn": lambda: OneDnnGated(OneDnnProduct(gate, None, tokens), OneDnnProduct(up, None, tokens)),
        "int8": lambda: Int8Gated(Int8Product(gate), Int8Product(up)),
        "float8": lambda: JoinedGated(Float8Product(torch.cat([gate, up]))),
    }
    allowed = list(_makers(gate, kernels))
    if len(allowed) == 1:
        return makers[allowed[0]]()
    x = torch.ones(1, tokens, gate.shape[1], dtype=gate.dtype)
    name = f"{tokens} x {gate.shape[1]} x 2 x {gate.shape[0]} {gate.dtype}".replace("torch.", "")
    return makers[fastest(name, {key: makers[key] for key in allowed}, x)]()


def check_kernels(kernels: Kernels, device: torch.device, dtype: torch.dtype) -> None:
    """UserError where the device, this processor or this torch does not have them for weights of this dtype."""
    if kernels in ("onednn", "int8") and device.type != "cpu":
        raise UserError(f"{kernels} kernels run on a CPU, and the model is on {device}; choose auto or float8")
    if kernels in ("onednn", "int8") and not torch.backends.mkldnn.is_available():
        raise UserError(f"this torch was built without oneDNN, which has the {kernels} kernels; choose auto")
    if kernels == "onednn" and not has_onednn(dtype):
        name = str(dtype).removeprefix("torch.")
        raise UserError(f"oneDNN's kernels have no {name} on this processor; choose auto, or float32 as dtype")
    if kernels == "int8" and largest_code() is None:
        raise UserError("the int8 products of this torch are not exact on this processor; choose auto")
    if kernels == "float8" and (device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9)):
        raise UserError(f"float8 kernels need an NVIDIA card of the Ada generation or later; the model is on {device}")


def has_onednn(dtype: torch.dtype) -> bool:
    """Whether this torch has oneDNN, and it multiplies by packed weights of this dtype on this processor."""
    return torch.backends.mkldnn.is_available() and _packs(dtype)


@cache
def _packs(dtype: torch.dtype) -> bool:
    """Tried once: in bfloat16 it needs AVX-512 or AVX-NE-CONVERT on x86, and other instructions elsewhere."""
    try:
        product, x = OneDnnProduct(torch.ones(16, 16, dtype=dtype)), torch.ones(1, 2, 16, dtype=dtype)
        product.times(product(product.gelu(x), x), x)
    except (AttributeError, RuntimeError):
        return False
    return True


def _makers(weight: Tensor, kernels: Kernels) -> dict[str, Callable[[Tensor, Tensor | None], Product]]:
    every: dict[str, Callable[[Tensor, Tensor | None], Product]] = {
        "torch": TorchProduct, "onednn": OneDnnProduct, "int8": Int8Product, "float8": Float8Product,
    }  # fmt: skip
    if kernels != "auto":
        return {kernels: every[kernels]}
    names = ["torch", "onednn"] if weight.device.type == "cpu" and has_onednn(weight.dtype) else ["torch"]
    return {name: every[name] for name in names}
