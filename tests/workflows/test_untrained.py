"""What a training begins with, for a loop that is not ours: as `pizero train` begins."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_sizes import record, short

from pizero.checkpoints.native.checkpoint import load_checkpoint, save_checkpoint
from pizero.types import UserError
from pizero.workflows.train import train_policy
from pizero.workflows.untrained import untrained


def test_from_scratch_as_pizero_train_begins(tmp_path: Path) -> None:
    root = record(tmp_path / "data")
    model, pipeline = untrained(root, "pi0", 30)
    trained = load_checkpoint(train_policy(root, tmp_path / "run", short(steps=1)).checkpoint)
    assert trained.pipeline is not None
    assert pipeline.to_json() == trained.pipeline.to_json()
    assert pipeline.norm_stats.actions.to_json() == trained.pipeline.norm_stats.actions.to_json()
    assert model.config == trained.model.config
    assert untrained(root, "pi05", 7)[0].config.action_horizon == 7


def test_from_a_checkpoint_with_the_datasets_robot_and_statistics(tmp_path: Path) -> None:
    first, pipeline = untrained(record(tmp_path / "one"), "pi0", 8)
    save_checkpoint(tmp_path / "checkpoint", first, pipeline)
    other = record(tmp_path / "other", prompts=("pick", "place"), robot="koch")
    model, pipeline = untrained(other, "pi0", 8, tmp_path / "checkpoint")
    assert all(torch.equal(tensor, first.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert pipeline.embodiment.name == "koch"
    fresh = untrained(other, "pi0", 8)[1].norm_stats.state
    np.testing.assert_array_equal(pipeline.norm_stats.state.mean, fresh.mean)
    with pytest.raises(UserError, match="nowhere"):
        untrained(other, "pi0", 8, tmp_path / "nowhere")
