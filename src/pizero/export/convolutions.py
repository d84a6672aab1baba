"""Convolutions and their norms in ONNX's operations."""

from __future__ import annotations

from typing import cast

import numpy as np
from torch import nn

from pizero.baseline.encoder import FixedBatchNorm
from pizero.export.graph import Graph, Value


def conv(graph: Graph, x: Value, layer: nn.Conv1d | nn.Conv2d | nn.ConvTranspose1d, name: str) -> Value:
    kernel = graph.kernel(f"{name}.weight", layer.weight)
    bias = [] if layer.bias is None else [graph.vector(f"{name}.bias", layer.bias)]
    pads = [int(pad) for pad in cast("tuple[int, ...]", layer.padding)]
    kind = "ConvTranspose" if isinstance(layer, nn.ConvTranspose1d) else "Conv"
    return graph.op(kind, x, kernel, *bias, strides=list(layer.stride), pads=[*pads, *pads])


def normed(graph: Graph, x: Value, norm: nn.Module, name: str, dims: int) -> Value:
    """Group norm, or a batch norm whose statistics are fixed, of x with so many axes: [n, C, ...] -> the same shape."""
    if isinstance(norm, FixedBatchNorm):
        names = {"weight": norm.weight, "bias": norm.bias}
        names |= {which: norm.get_buffer(which) for which in ("running_mean", "running_var")}
        return graph.op("BatchNormalization", x, *(graph.vector(f"{name}.{n}", v) for n, v in names.items()))
    assert isinstance(norm, nn.GroupNorm)
    apart = graph.op("Reshape", x, graph.integers(0, norm.num_groups, -1))
    ones = np.ones(norm.num_groups, np.float32)
    apart = graph.op(
        "InstanceNormalization", apart, graph.constant(ones), graph.constant(np.zeros_like(ones)), epsilon=norm.eps
    )
    y = graph.op("Reshape", apart, graph.op("Shape", x))
    axes = (-1,) + (1,) * (dims - 2)
    scale, shift = (
        graph.vector(f"{name}.weight", norm.weight.view(axes)),
        graph.vector(f"{name}.bias", norm.bias.view(axes)),
    )
    return graph.op("Add", graph.op("Mul", y, scale), shift)
