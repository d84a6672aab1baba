"""What launches less: layers compiled by torch.compile, a whole call as one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.utils import _pytree

AnyCall = TypeVar("AnyCall", bound=Callable[..., Any])


def compiled(function: AnyCall) -> AnyCall:
    """With torch.compile, once for each shape of its inputs; layers of one kind share what was compiled."""
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, MOST_SHAPES)
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, MOST_SHAPES)
    return cast("AnyCall", torch.compile(function, dynamic=False, fullgraph=True))


def as_it_is(function: AnyCall) -> AnyCall:
    """What `compiled` is where nothing is compiled."""
    return function


MOST_SHAPES = 1024
"""Of cameras, prompt lengths, batch sizes and kinds of layers together; past them PyTorch would stop compiling."""

WARM_UPS = 3
"""Calls on a side stream before capture, as PyTorch's notes on CUDA graphs ask."""


class CudaGraphs:
    """One graph for each shape of the inputs, in one pool of memory of `device`, whichever is the current one."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._captured: dict[Any, tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]] = {}
        self._pool: Any = None

    def __call__(self, function: Callable[..., Tensor], what: object, *inputs: Any) -> Tensor:
        """function(*inputs), captured at the first call for `what` and these shapes, replayed afterwards."""
        leaves, structure = _pytree.tree_flatten(inputs)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        shapes = tuple((leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        key = what, str(structure), shapes
        with torch.cuda.device(self._device):
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
        copies = [leaf.to(self._device, copy=True) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        inputs = _pytree.tree_unflatten(copies, structure)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                function(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # thread_local: other threads, such as a server's that answers while a checkpoint is loaded anew, may allocate;
        # with a stream: torch's own one for captures is of the device that was first captured on
        with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
            output = function(*inputs)
        self._pool = graph.pool()
        return graph, [copy for copy in copies if isinstance(copy, Tensor)], output
