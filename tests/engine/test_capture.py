"""Whole calls are captured where the sampler is, whichever device is the current one. The stand-in for a GPU is the
meta device, and what torch.cuda would do is noted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from pizero.engine.capture import WARM_UPS, CudaGraphs

DEVICE = torch.device("meta")


class Noted:
    """A torch.cuda that runs at once, and notes on which device it was asked to."""

    def __init__(self) -> None:
        self.current: list[Any] = ["another"]
        self.captures: list[dict[str, Any]] = []
        self.replayed = 0

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        self.current.append(device)
        yield
        self.current.pop()

    def make_stream(self) -> Any:
        return type("Stream", (), {"on": self.current[-1], "wait_stream": lambda *_: None})()

    @contextmanager
    def capture(self, graph: Any, **options: Any) -> Iterator[None]:
        self.captures.append({**options, "on": self.current[-1]})
        yield

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        assert stream.on == DEVICE
        yield

    def make_graph(self) -> Any:
        return type("Graph", (), {"replay": lambda _: self.replay(), "pool": lambda _: "pool"})()

    def replay(self) -> None:
        assert self.current[-1] == DEVICE
        self.replayed += 1


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> Noted:
    noted = Noted()
    for name, value in {
        "device": noted.device, "Stream": noted.make_stream, "current_stream": noted.make_stream,
        "stream": noted.stream, "CUDAGraph": noted.make_graph, "graph": noted.capture,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    return noted


def test_inputs_streams_and_graphs_are_the_samplers(noted: Noted) -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def call(x: Tensor, y: Tensor) -> Tensor:
        assert noted.current[-1] == DEVICE
        seen.append((x, y))
        return x + y

    graphs = CudaGraphs(DEVICE)
    given = torch.ones(2, device=DEVICE), torch.ones(2)  # one of them still on the host
    for _ in range(2):
        assert graphs(call, "what", *given).device == DEVICE
    assert len(seen) == WARM_UPS + 1
    assert {tensor.device for pair in seen for tensor in pair} == {DEVICE}
    assert all(place is not tensor for pair in seen for place, tensor in zip(pair, given, strict=True))
    assert noted.replayed == 2
    assert noted.current == ["another"]
    (capture,) = noted.captures
    assert capture["on"] == capture["stream"].on == DEVICE
    # other threads, such as a server's that answers, go on allocating meanwhile
    assert capture["capture_error_mode"] == "thread_local"
