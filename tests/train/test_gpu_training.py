"""Training on GPUs, left out where there are none: shards that are measured, with frozen parts; seeds that agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from rank_runs import train
from test_distributed import curve, torchrun

from pizero.checkpoints.native.checkpoint import load_checkpoint, verify_example
from pizero.train.run_folder import list_checkpoints
from pizero.train.seeds import Purpose, stream

pytestmark = pytest.mark.gpu
FROZEN = {"threads": 1, "precision": "mixed", "freeze": ["vision", "prefix"], "save_every": 4}
MEASURED = {"measure": {"open_loop_chunks": 2}}


def run(folder: Path, changes: dict[str, Any], sharding: str = "ddp", **more: Any) -> dict[str, Any]:
    runtime = {"device": "cuda", "sharding": sharding}
    return {"output": str(folder), "changes": changes, "options": {**MEASURED, "runtime": runtime, **more}}


def test_a_measured_training_with_frozen_parts(dataset: Path, tmp_path: Path) -> None:
    train(dataset, run(tmp_path / "run", FROZEN))
    assert set(curve(tmp_path / "run", "open_loop_error")) == {4, 8}
    verify_example(load_checkpoint(list_checkpoints(tmp_path / "run")[-1]))


@pytest.mark.two_gpus
@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_ranks_that_measure_with_frozen_parts(dataset: Path, tmp_path: Path, sharding: str) -> None:
    """With shards a host copy is measured and saved, whose frozen weights are bfloat16."""
    torchrun([run(tmp_path / "two", FROZEN, sharding=sharding)], dataset, tmp_path)
    train(dataset, run(tmp_path / "one", FROZEN))
    two, one = (curve(tmp_path / name, "open_loop_error") for name in ("two", "one"))
    assert set(two) == {4, 8}
    assert two == pytest.approx(one, rel=0.05)
    verify_example(load_checkpoint(list_checkpoints(tmp_path / "two")[-1]))
    again = run(
        tmp_path / "two", {**FROZEN, "steps": 10}, sharding=sharding, resume=True
    )  # the step after it is as good
    torchrun([again], dataset, tmp_path)
    assert max(curve(tmp_path / "two", "loss")) == 10


def test_streams_on_a_gpu_are_apart_too() -> None:
    firsts = [
        tuple(torch.randint(1 << 30, (2,), generator=g, device="cuda").tolist())
        for seed in range(4) for step in range(50) for purpose in (Purpose.ROUNDING, Purpose.TABLE)
        for g in [stream(seed, step, purpose, device="cuda")]
    ]  # fmt: skip
    assert len(set(firsts)) == len(firsts)
