"""Devices that are not here, by stand-ins: which kinds of numbers are asked of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pizero.model.layers import embed_time


class WithoutFloat64(TorchDispatchMode):
    """Fails as Apple's GPUs do."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor) and value.dtype == torch.float64 and value.device.type == "mps":
                raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return result


def test_the_time_embedding_asks_a_gpu_without_float64_for_none() -> None:
    with FakeTensorMode(), WithoutFloat64():
        with pytest.raises(TypeError, match="float64"):
            torch.zeros(3, device="mps").double()
        found = embed_time(torch.zeros(3, device="mps"), 8)
        assert (found.device.type, found.dtype, found.shape) == ("mps", torch.float32, (3, 8))


def test_the_time_embedding_on_the_host() -> None:
    time = torch.tensor([0.0, 0.25, 1.0])
    found = embed_time(time, 8)
    periods = 4e-3 * 1000.0 ** torch.linspace(0, 1, 4, dtype=torch.float64)
    expected = (time.double()[:, None] * 2 * torch.pi / periods).sin()
    torch.testing.assert_close(found[:, :4].double(), expected, atol=1e-7, rtol=0)
