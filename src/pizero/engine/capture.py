"""CUDA graphs: a whole call becomes one launch. Not measured: no GPU was at hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

WARM_UPS = 3
"""Calls on a side stream before capture, as PyTorch's notes on CUDA graphs ask."""


class CudaGraphs:
    """One graph for each shape of the inputs, in one pool of memory."""

    def __init__(self) -> None:
        self._captured: dict[Any, tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]] = {}
        self._pool: Any = None

    def __call__(self, function: Callable[..., Tensor], what: object, *inputs: Any) -> Tensor:
        """function(*inputs), captured at the first call for `what` and these shapes, replayed afterwards."""
        leaves, structure = _pytree.tree_flatten(inputs)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        shapes = tuple((leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        key = what, str(structure), shapes
        if key not in self._captured:
            self._captured[key] = self._capture(function, leaves, structure)
        graph, places, output = self._captured[key]
        for place, tensor in zip(places, tensors, strict=True):
            place.copy_(tensor)
        graph.replay()
        return output.clone()

    def _capture(
        self, function: Callable[..., Tensor], leaves: list[Any], structure: Any
    ) -> tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]:
        copies = [leaf.cuda().clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        inputs = _pytree.tree_unflatten(copies, structure)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                function(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            output = function(*inputs)
        self._pool = graph.pool()
        return graph, [copy for copy in copies if isinstance(copy, Tensor)], output
