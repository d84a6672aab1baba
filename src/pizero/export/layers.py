"""The small parts of π0 in ONNX's operations, in the patterns that runtimes recognise and fuse. Tokens are [T, W]: a
graph has one observation.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pizero.export.graph import Graph, Value
from pizero.model.attention import MASKED
from pizero.model.gemma import GemmaBlock
from pizero.model.layers import EPSILON, RMSNorm, rotary_table

GELU = {"approximate": "tanh"}


class Modulation(NamedTuple):
    """Of an adaptive norm at one flow time: 1 + scale, shift and the residual's gate, [1, E] each, or [T, E]
    where settled actions have another one."""

    scale: Value
    shift: Value
    gate: Value


def linear(graph: Graph, x: Value, layer: nn.Linear, name: str) -> Value:
    """A small layer in float32."""
    y = graph.op("MatMul", x, graph.vector(f"{name}.weight", layer.weight.t()))
    return graph.op("Add", y, graph.vector(f"{name}.bias", layer.bias))


def product(graph: Graph, x: Value, layer: nn.Linear, name: str, scale: float = 1.0) -> Value:
    """A large layer, its output scaled."""
    bias = None if layer.bias is None else layer.bias.float() * scale  # pyright: ignore[reportUnnecessaryComparison]
    return graph.product(x, name, lambda: layer.weight if scale == 1.0 else layer.weight.float() * scale, bias)


def layer_norm(graph: Graph, x: Value, norm: nn.LayerNorm, name: str) -> Value:
    scale, bias = graph.vector(f"{name}.weight", norm.weight), graph.vector(f"{name}.bias", norm.bias)
    return graph.op("LayerNormalization", x, scale, bias, axis=-1, epsilon=norm.eps)


def rms_norm(graph: Graph, x: Value, name: str, norm: nn.Module, at: Modulation | None) -> Value:
    """x / rms(x) * (1 + scale), plus the shift of an adaptive norm."""
    square = graph.op("ReduceMean", graph.op("Pow", x, graph.constant(2.0)), graph.integers(-1), keepdims=1)
    y = graph.op("Div", x, graph.op("Sqrt", graph.op("Add", square, graph.constant(EPSILON))))
    if at is not None:
        return graph.op("Add", graph.op("Mul", y, at.scale), at.shift)
    assert isinstance(norm, RMSNorm)
    return graph.op("Mul", y, graph.vector(f"{name}.scale", lambda: 1 + norm.scale.float()))


def residual(graph: Graph, x: Value, y: Value, at: Modulation | None) -> Value:
    return graph.op("Add", x, y if at is None else graph.op("Mul", y, at.gate))


def gelu(graph: Graph, x: Value) -> Value:
    return graph.op("Gelu", x, **GELU)


class Rotary:
    """Cosines and sines [T, 1, head_dim / 2] of a graph's tokens, cut out of tables for every position."""

    def __init__(self, graph: Graph, positions: int, head_dim: int, start: Value, end: Value) -> None:
        """start, end: [1], of the tokens' positions."""
        tables = rotary_table(torch.arange(positions)[None], head_dim)
        self.cos, self.sin = (
            graph.op("Slice", graph.vector(name, table[0]), start, end)
            for name, table in zip(("rotary.cos", "rotary.sin"), tables, strict=True)
        )

    def turn(self, graph: Graph, x: Value) -> Value:
        """The two halves of each head [T, heads, head_dim] against each other."""
        first, second = graph.ops("Split", 2, x, axis=-1, num_outputs=2)
        cos, sin = self.cos, self.sin
        halves = (
            graph.op("Sub", graph.op("Mul", first, cos), graph.op("Mul", second, sin)),
            graph.op("Add", graph.op("Mul", second, cos), graph.op("Mul", first, sin)),
        )
        return graph.op("Concat", *halves, axis=-1)


class Projected(NamedTuple):
    """query [K, G * T, head_dim], scaled, the heads that share a key head as rows; None where keys alone are asked for.

    key [K, head_dim, T], value [K, T, head_dim].
    """

    query: Value | None
    key: Value
    value: Value


def project(graph: Graph, y: Value, block: GemmaBlock, name: str, rotary: Rotary, keys_only: bool = False) -> Projected:
    """Normalised tokens to rotated heads; one product for all."""
    dim = block.head_dim
    heads, kv_heads = block.query.out_features // dim, block.key.out_features // dim
    layers = (block.key, block.value) if keys_only else (block.query, block.key, block.value)
    scale = dim**-0.5

    def weight() -> Tensor:
        parts = [layer.weight.float() * (scale if layer is block.query else 1.0) for layer in layers]
        return torch.cat(parts)

    turned = kv_heads if keys_only else heads + kv_heads
    qkv = graph.op("Reshape", graph.product(y, f"{name}.query", weight), graph.integers(0, -1, dim))
    split = graph.integers(turned, kv_heads)
    rotated, value = graph.ops("Split", 2, qkv, split, axis=1)
    rotated = rotary.turn(graph, rotated)
    query = None
    if not keys_only:
        query, key = graph.ops("Split", 2, rotated, graph.integers(heads, kv_heads), axis=1)
        query = graph.op("Reshape", query, graph.integers(0, kv_heads, heads // kv_heads, dim))
        query = graph.op("Transpose", query, perm=(1, 2, 0, 3))
        query = graph.op("Reshape", query, graph.integers(kv_heads, -1, dim))
    else:
        key = rotated
    key = graph.op("Transpose", key, perm=(1, 2, 0))
    return Projected(query, key, graph.op("Transpose", value, perm=(1, 0, 2)))


def attended(graph: Graph, weighted: Value, block: GemmaBlock) -> Value:
    """[K, G * T, head_dim] -> [T, heads * head_dim]."""
    dim = block.head_dim
    kv_heads, heads = block.key.out_features // dim, block.query.out_features // dim
    x = graph.op("Reshape", weighted, graph.integers(kv_heads, heads // kv_heads, -1, dim))
    return graph.op("Reshape", graph.op("Transpose", x, perm=(2, 0, 1, 3)), graph.integers(-1, heads * dim))


def finish(
    graph: Graph, x: Value, seen: Value, block: GemmaBlock, name: str,
    first: Modulation | None, second: Modulation | None,
) -> Value:  # fmt: skip
    """Output projection, residual, MLP, residual."""
    x = residual(graph, x, product(graph, seen, block.output, f"{name}.output"), first)
    y = rms_norm(graph, x, f"{name}.mlp_norm", block.mlp_norm, second)
    gate = gelu(graph, product(graph, y, block.mlp.gate, f"{name}.gate"))
    gated = graph.op("Mul", gate, product(graph, y, block.mlp.up, f"{name}.up"))
    return residual(graph, x, product(graph, gated, block.mlp.down, f"{name}.down"), second)


def masked(graph: Graph, sees: Value) -> Value:
    """What is added to logits: 0 where a query sees a key, and a very negative number elsewhere."""
    return graph.op("Where", sees, graph.constant(0.0), graph.constant(MASKED))


def add_mask(graph: Graph, logits: Value, bias: Value, block: GemmaBlock) -> Value:
    """logits [K, G * T, S] plus bias [T, S]."""
    kv_heads, heads = block.key.out_features // block.head_dim, block.query.out_features // block.head_dim
    shape = graph.op("Shape", logits)
    length = graph.op("Slice", shape, graph.integers(2), graph.integers(3))
    apart = graph.op("Concat", graph.integers(kv_heads, heads // kv_heads, -1), length, axis=0)
    return graph.op("Reshape", graph.op("Add", graph.op("Reshape", logits, apart), bias), shape)
