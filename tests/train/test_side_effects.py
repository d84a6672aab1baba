"""A training that is called as a function leaves the process as it was, whether it ends well or not."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from train_helpers import nano_preset

from pizero.types import UserError
from pizero.workflows.measures import MeasureConfig
from pizero.workflows.progress import console
from pizero.workflows.train import train_policy

NOT_OURS = {"PYTEST_CURRENT_TEST", "TORCHINDUCTOR_CACHE_DIR"}
"""The second is set by PyTorch, when its compiler is imported."""


def state() -> dict[str, Any]:
    return {
        "threads": torch.get_num_threads(),
        "environment": {name: value for name, value in os.environ.items() if name not in NOT_OURS},
        "warnings": list(warnings.filters),
        "random numbers": (torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "precision": torch.get_float32_matmul_precision(),
        "dtype": torch.get_default_dtype(),
        "quiet": console.quiet,
    }


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Settings that no training would choose."""
    torch.set_num_threads(2)  # conftest.py sets them anew for the next test
    torch.manual_seed(11)
    monkeypatch.setattr(console, "quiet", True)
    return state()


def test_nothing_is_left_behind(process: dict[str, Any], dataset: Path, tmp_path: Path) -> None:
    measure = MeasureConfig(open_loop_chunks=2, env="tabletop", evaluate_every=100, episodes=1)
    train_policy(dataset, tmp_path / "run", nano_preset(steps=1, save_every=1, validate_every=1), measure=measure)
    for name, value in state().items():
        assert value == process[name], name


def test_nothing_is_left_behind_by_an_error(process: dict[str, Any], dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the loss is nan"):
        train_policy(dataset, tmp_path / "run", nano_preset(learning_rate=1e30, clip_norm=1e30))
    for name, value in state().items():
        assert value == process[name], name
