"""The network's weights as the fast path multiplies them.

Products that share an input are one. The query's scale is in its weights, and so is `1 + scale` of a plain norm where
they are float32: rounded weights would be rounded once more, and the scale costs next to nothing beside them. The two
halves that the rotary embedding turns against each other lie side by side, in every head of queries and keys alike, so
that a turn is one product of complex numbers; the logits do not change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pizero.engine.attention_kernels import Attention
from pizero.engine.int8 import ROWS
from pizero.engine.products import Gated, Kernels, Product, make_gated, make_product
from pizero.model.gemma import GemmaBlock
from pizero.model.layers import EPSILON, AdaptiveRMSNorm, RMSNorm
from pizero.model.siglip import VisionBlock

Modulation = tuple[Tensor | None, Tensor | None, Tensor | None]
"""Of a norm: 1 + scale [E], None where it is in the weights, and of an adaptive one shift and gate, all for one flow
time; or [B, H, E] where settled actions have another one than the rest.
"""

FOLDED: Modulation = (None, None, None)


@dataclass(frozen=True)
class Packing:
    """How a block is packed: tokens that it mostly sees, kernels by the product's name.

    fold: scales of plain norms into the weights.
    """

    tokens: int
    kernels: Callable[[str], Kernels]
    fold: bool

    def product(self, weight: Tensor, bias: Tensor | None, name: str) -> Product:
        return make_product(weight, bias, self.tokens, self.kernels(name))


@dataclass(frozen=True)
class PackedBlock:
    """One Gemma block. The last one of the prefix has keys and values only: `projection` makes no queries."""

    projection: Product
    """[B, T, W] -> queries (scaled), keys, values, head by head; halves of queries and keys side by side."""
    output: Product | None
    gated: Gated | None
    down: Product | None
    heads: int
    kv_heads: int
    head_dim: int
    norms: tuple[Modulation, Modulation]
    """Of attention and MLP, where they are not adaptive."""

    @staticmethod
    def of(block: GemmaBlock, name: str, packing: Packing, keys_only: bool = False) -> PackedBlock:
        """name: of the block, such as "prefix.17"; its products are "prefix.17.query", ".output", ".gate", ".down"."""
        dim = block.head_dim
        heads, kv_heads = block.query.out_features // dim, block.key.out_features // dim
        projection = packing.product(projection_weight(block, packing.fold, keys_only), None, f"{name}.query")
        norms = (FOLDED, FOLDED) if packing.fold else (plain(block.attention_norm), plain(block.mlp_norm))
        if keys_only:
            return PackedBlock(projection, None, None, None, 0, kv_heads, dim, norms)
        output = packing.product(block.output.weight.detach(), None, f"{name}.output")
        gate, up = mlp_weights(block, packing.fold)
        gated = make_gated(gate, up, packing.tokens, packing.kernels(f"{name}.gate"))
        down = packing.product(block.mlp.down.weight.detach(), None, f"{name}.down")
        return PackedBlock(projection, output, gated, down, heads, kv_heads, dim, norms)

    def finish(self, x: Tensor, attended: Tensor, first: Modulation, second: Modulation) -> Tensor:
        """Output projection, residual, MLP, residual: [B, T, W]. first, second: the norms of attention and MLP."""
        assert self.output is not None
        assert self.gated is not None
        assert self.down is not None
        x = _residual(self.output, attended, x, first[2])
        return _residual(self.down, self.gated(normalized(x, second)), x, second[2])


@dataclass(frozen=True)
class PackedVisionBlock:
    """One vision block with query, key and value joined."""

    block: VisionBlock
    projection: Product
    output: Product
    mlp_in: Product
    mlp_out: Product

    @staticmethod
    def of(block: VisionBlock, name: str, packing: Packing) -> PackedVisionBlock:
        def make(part: str) -> Product:
            layer = getattr(block, part)
            return packing.product(layer.weight.detach(), layer.bias.detach(), f"{name}.{part}")

        projection = packing.product(*vision_projection(block), f"{name}.query")
        return PackedVisionBlock(block, projection, make("output"), make("mlp_in"), make("mlp_out"))


def projection_weight(block: GemmaBlock, fold: bool, keys_only: bool = False) -> Tensor:
    """[out, W] of queries (scaled), keys and values, or of the last two; halves of queries and keys side by side."""
    dim, first = block.head_dim, _scale(block.attention_norm) if fold else None
    scaled = dim**-0.5 if first is None else first * dim**-0.5
    layers = [] if keys_only else [_columns(_pairs(block.query, dim), torch.as_tensor(scaled))]
    return torch.cat([*layers, _columns(_pairs(block.key, dim), first), _columns(block.value.weight, first)])


def mlp_weights(block: GemmaBlock, fold: bool) -> tuple[Tensor, Tensor]:
    """Of gate and up, [mlp_dim, W] each."""
    scale = _scale(block.mlp_norm) if fold else None
    return _columns(block.mlp.gate.weight, scale), _columns(block.mlp.up.weight, scale)


def vision_projection(block: VisionBlock) -> tuple[Tensor, Tensor]:
    """Weight [3 W, W] and bias [3 W] of queries (scaled), keys and values."""
    layers, scales = (block.query, block.key, block.value), (block.head_dim**-0.5, 1.0, 1.0)
    weight, bias = (
        torch.cat([getattr(layer, which).detach().float() * scale for layer, scale in zip(layers, scales, strict=True)])
        for which in ("weight", "bias")
    )
    return weight.to(block.query.weight.dtype), bias.to(block.query.weight.dtype)


def vision_layer(packed: PackedVisionBlock, attention: Attention, x: Tensor) -> Tensor:
    """[n, S_img, W] -> [n, S_img, W]."""
    block = packed.block
    qkv = packed.projection(block.attention_norm(x))
    query, key, value = qkv.unflatten(-1, (3, block.num_heads, block.head_dim)).unbind(2)
    x = packed.output(attention(query, key, value), x)
    return packed.mlp_out(packed.mlp_in.gelu(block.mlp_norm(x)), x)


def prefix_layer(
    block: PackedBlock, attention: Attention, x: Tensor, turns: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
) -> Tensor:
    """x [B, P, W], written into key and value [B, P, kv_heads, head_dim]; the last block does nothing else."""
    query = project(block, normalized(x, block.norms[0]), turns, key, value)
    return x if query is None else block.finish(x, attention(query, key, value, mask), *block.norms)


def expert_layer(
    block: PackedBlock, attention: Attention, x: Tensor, norms: list[Modulation], turns: Tensor, key: Tensor,
    value: Tensor, mask: Tensor | None,
) -> Tensor:  # fmt: skip
    """x [B, T, E], written into the last T places of key and value; sees all of them. norms: of attention and MLP."""
    ran = x.shape[1]
    query = project(block, normalized(x, norms[0]), turns, key[:, -ran:], value[:, -ran:])
    assert query is not None
    return block.finish(x, attention(query, key, value, mask), *norms)


def project(block: PackedBlock, y: Tensor, turns: Tensor, key: Tensor, value: Tensor) -> Tensor | None:
    """Normalised tokens [B, T, W] -> scaled query [B, T, heads, head_dim], if any; writes key and value."""
    qkv = block.projection(y).unflatten(-1, (-1, block.head_dim))
    split = block.heads + block.kv_heads
    rotated = turned(qkv[:, :, :split], turns)
    key.copy_(rotated[:, :, block.heads :])
    value.copy_(qkv[:, :, split:])
    return rotated[:, :, : block.heads].to(qkv.dtype) if block.heads else None


def plain(norm: nn.Module) -> Modulation:
    """Of a norm that does not depend on the time; nothing for one that does."""
    return (1 + norm.scale.detach().float(), None, None) if isinstance(norm, RMSNorm) else FOLDED


def normalized(x: Tensor, norm: Modulation) -> Tensor:
    """x / rms(x) * (1 + scale) + shift, in float32 and cast back."""
    scale, shift, _ = norm
    if x.dtype == torch.float32:
        y = F.rms_norm(x, x.shape[-1:], None, EPSILON)
    else:  # torch's own is slow in bfloat16 on a CPU
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        y = x * torch.rsqrt(length * length / x.shape[-1] + EPSILON)
    if scale is not None:
        y = y.mul_(scale)
    return (y if shift is None else y.add_(shift)).to(x.dtype)


def modulations(norm: nn.Module, conditioning: Tensor, folded: bool, dtype: torch.dtype) -> list[Modulation]:
    """Of a norm for each row of the conditioning [T, E], or for one row where it does not depend on the time.

    dtype: the tokens', and so the gates'; scale and shift are float32.
    """
    if isinstance(norm, RMSNorm):
        return [FOLDED if folded else plain(norm)]
    assert isinstance(norm, AdaptiveRMSNorm)
    scale, shift, gate = norm.modulation(conditioning.to(norm.modulation.weight.dtype)).chunk(3, dim=-1)
    return list(zip((1 + scale.float()).unbind(), shift.float().unbind(), gate.to(dtype).unbind(), strict=True))


def _residual(product: Product, y: Tensor, x: Tensor, gate: Tensor | None) -> Tensor:
    """x + product(y), or x + product(y) * gate after an adaptive norm."""
    return product(y, x) if gate is None else torch.addcmul(x, product(y), gate)


def _scale(norm: nn.Module) -> Tensor | None:
    """1 + scale [W] of a plain norm, for the columns of what reads it."""
    return 1 + norm.scale.detach().float() if isinstance(norm, RMSNorm) else None


def _columns(weight: Tensor, scale: Tensor | None) -> Tensor:
    """weight * scale, computed in float32, in the weight's dtype; a few rows at a time, which stay in the cache."""
    if scale is None:
        return weight.detach()
    scaled = torch.empty_like(weight)
    for part, rows in zip(scaled.split(ROWS), weight.detach().split(ROWS), strict=True):
        part.copy_(rows.float() * scale)
    return scaled


def _pairs(layer: nn.Linear, head_dim: int) -> Tensor:
    """The rows of each head [head_dim] with place i beside place i + head_dim / 2: [out, in]."""
    weight = layer.weight.detach()
    return weight.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).reshape(weight.shape)


def turned(x: Tensor, turns: Tensor) -> Tensor:
    """The rotary embedding of heads [B, T, heads, head_dim] whose pairs lie side by side; float32.

    turns: [B, T, 1, head_dim / 2, 2], cosine and sine. Eagerly on a CPU as complex numbers, the fastest by far there.
    """
    pairs = x.float().unflatten(-1, (-1, 2))
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        return torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(turns)).flatten(-2)
    sign = torch.arange(-1, 2, 2, device=x.device)  # no stack: compiled, it is part of what reads it
    return (pairs * turns[..., :1] + pairs.flip(-1) * (turns[..., 1:] * sign)).flatten(-2)
