"""Numbers that no workflow can have are refused before it begins, in one line."""

from __future__ import annotations

from typing import Any

import pytest

from pizero.configs.ladder import LadderConfig
from pizero.types import UserError
from pizero.workflows.bench_inference import BenchConfig
from pizero.workflows.collect import CollectConfig
from pizero.workflows.compare import CompareConfig
from pizero.workflows.training_data import DataOptions


def compared(**values: Any) -> CompareConfig:
    return CompareConfig(LadderConfig(), **values)


@pytest.mark.parametrize(
    ("config", "values"),
    [
        (BenchConfig, {"batch": 0}), (BenchConfig, {"num_steps": 0}), (BenchConfig, {"threads": -1}),
        (CollectConfig, {"seed": -1}), (CollectConfig, {"episodes": 0}), (CollectConfig, {"workers": 0}),
        (compared, {"workers": 0}), (compared, {"demonstrations": 0}), (compared, {"episodes": -1}),
        (compared, {"seeds": (0, -1)}), (LadderConfig, {"steps": 0}), (LadderConfig, {"seconds": -1.0}),
        (LadderConfig, {"seconds": float("nan")}), (DataOptions, {"workers": -1}),
    ],
)  # fmt: skip
def test_a_number_that_cannot_be(config: Any, values: dict[str, Any]) -> None:
    config()
    with pytest.raises(UserError, match=rf"{next(iter(values))} must be at least [01], got"):
        config(**values)
