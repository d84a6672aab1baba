"""Torch's kernel is taken unless another is clearly faster; the times that decided are kept beside the choice."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pizero.engine import tuning
from pizero.engine.tuning import ROUNDS, Choice, fastest

X = torch.ones(1, 2, 4)
Ways = dict[str, Callable[[], Callable[[Tensor], Tensor]]]


class Clock:
    """Stands still but for what the calls take."""

    def __init__(self) -> None:
        self.now, self.order = 0.0, list[str]()

    def perf_counter(self) -> float:
        return self.now

    def ways(self, **microseconds: list[float]) -> Ways:
        """By name, what each of its calls takes, over and over."""

        def make(name: str, taken: list[float]) -> Callable[[], Callable[[Tensor], Tensor]]:
            each = cycle(taken)

            def call(x: Tensor) -> Tensor:
                self.order.append(name)
                self.now += next(each) / 1e6
                return x

            return lambda: call

        return {name: make(name, taken) for name, taken in microseconds.items()}


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setenv("PIZERO_CACHE", str(tmp_path))
    monkeypatch.setattr(tuning, "_known", None)
    monkeypatch.setattr(tuning, "used", {})
    made = Clock()
    monkeypatch.setattr(tuning, "time", made)
    return made


@pytest.mark.parametrize(
    ("torch_us", "onednn_us", "expected"),
    [
        ([100], [94], "onednn"),
        ([100], [96], "torch"),
        ([100], [105], "torch"),
        ([100, 100, 100, 100, 100, 100, 900], [94], "onednn"),
        ([100], [97, 97, 97, 97, 97, 97, 1], "torch"),  # one lucky round decides nothing
        ([100], [90, 90, 90, 90, 90, 900, 900], "onednn"),  # nor do two that something else disturbed
    ],
)
def test_the_median_with_a_margin(clock: Clock, torch_us: list[float], onednn_us: list[float], expected: str) -> None:
    assert fastest("p", clock.ways(torch=torch_us, onednn=onednn_us), X) == expected
    assert clock.order == ["torch", "onednn"] * ROUNDS
    assert tuning.used["p"].median_us == pytest.approx(
        {"torch": sorted(torch_us)[len(torch_us) // 2], "onednn": sorted(onednn_us)[len(onednn_us) // 2]}
    )


def test_a_choice_is_kept_with_its_times(clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that has become slow for oneDNN the kept choice stands, in this process and in the next one."""
    fastest("p", clock.ways(torch=[100], onednn=[50]), X)
    ((key, kept),) = json.loads((tmp_path / "kernels.json").read_text()).items()
    assert key.endswith("threads · p")
    assert kept == {"way": "onednn", "median_us": {"torch": 100.0, "onednn": 50.0}}
    for known in (tuning._known, None):
        monkeypatch.setattr(tuning, "_known", known)
        assert fastest("p", clock.ways(torch=[100], onednn=[900]), X) == "onednn"
        assert tuning.used == {"p": Choice("onednn", {"torch": 100.0, "onednn": 50.0})}
    assert len(clock.order) == 2 * ROUNDS


@pytest.mark.parametrize("entry", ["onednn", {"way": "onednn"}, {"way": "gone", "median_us": {}}, None])
def test_what_is_no_choice_is_measured_again(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: object
) -> None:
    """Such as what an older version wrote, or a kernel that is here no more."""
    fastest("p", clock.ways(torch=[100], onednn=[50]), X)
    path = tmp_path / "kernels.json"
    path.write_text(json.dumps(dict.fromkeys(json.loads(path.read_text()), entry)))
    monkeypatch.setattr(tuning, "_known", None)
    assert fastest("p", clock.ways(torch=[100], onednn=[200]), X) == "torch"
    ((_, kept),) = json.loads(path.read_text()).items()
    assert kept["way"] == "torch"
