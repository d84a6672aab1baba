"""kill -9 at any moment, and a full disk: the run goes on from a complete checkpoint, to the same numbers."""

from __future__ import annotations

import random
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import begin
from rank_runs import train
from safetensors.torch import load_file
from test_distributed import torchrun
from train_helpers import nano_preset

from pizero.checkpoints.native.checkpoint import load_checkpoint, verify_example
from pizero.train.metrics import read_metrics
from pizero.train.run_folder import list_checkpoints
from pizero.types import UserError
from pizero.workflows.train import train_policy

LONG = {"threads": 1, "steps": 60, "save_every": 4, "validate_every": 30, "keep": 2}


def losses(folder: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line}


def moments(run: Path, cache: Path) -> dict[str, Callable[[], bool]]:
    """By kind: whether one of these moments is now."""
    lines = len(losses(run))
    return {
        "cache": lambda: any(cache.rglob("*.partial-*")),
        "save": lambda: any((run / "checkpoints").glob(".*.new")),
        "step": lambda: len(losses(run)) not in (0, lines),
    }


def kill_and_resume(dataset: Path, folder: Path, kinds: list[str]) -> dict[str, int]:
    """Runs a training that is killed at a moment of each of these kinds, then to its end; how many kills came."""
    run, cache, chance, killed = folder / "run", folder / "cache", random.Random(0), dict.fromkeys(kinds, 0)
    settings = {"output": str(run), "changes": LONG, "options": {"resume": True, "data": {"frames": "disk"}}}
    shown = folder / "shown.txt"
    for kind in [*kinds, "never"]:
        if kind == "cache":
            for path in cache.rglob("*.npy"):
                path.unlink()
        process = begin([settings], dataset, shown, PIZERO_CACHE=str(cache))
        now = moments(run, cache).get(kind, lambda: False)
        while process.is_alive() and not now():
            time.sleep(0.004)  # what is asked for has a hundred chances, and reading it costs a core
        if process.is_alive():
            time.sleep(chance.random() * 0.05)
            process.kill()
            killed[kind] += 1
        process.join(120)
        assert process.exitcode in (0, -9), shown.read_text()
        for path in list_checkpoints(run)[-1:]:
            verify_example(load_checkpoint(path))
        assert len(list_checkpoints(run)) <= LONG["keep"] + 1
    return killed


def check_equal(dataset: Path, folder: Path) -> None:
    train(dataset, {"output": str(folder / "whole"), "changes": LONG})
    assert losses(folder / "run") == losses(folder / "whole")
    assert sorted(losses(folder / "run")) == list(range(1, LONG["steps"] + 1))
    one, other = (load_file(list_checkpoints(folder / name)[-1] / "model.safetensors") for name in ("whole", "run"))
    assert all(torch.equal(weight, other[name]) for name, weight in one.items())
    assert not list((folder / "run" / "checkpoints").glob(".*"))


def test_kills_change_nothing(dataset: Path, tmp_path: Path) -> None:
    killed = kill_and_resume(dataset, tmp_path, ["cache", "step", "save"])
    assert killed == {"cache": 1, "step": 1, "save": 1}
    check_equal(dataset, tmp_path)


@pytest.mark.slow
def test_twenty_kills_change_nothing(dataset: Path, tmp_path: Path) -> None:
    killed = kill_and_resume(dataset, tmp_path, ["cache", "step", "save"] * 6 + ["step", "save"])
    assert sum(killed.values()) >= 15, killed
    assert min(killed.values()) >= 3, killed
    check_equal(dataset, tmp_path)


def test_a_full_disk_leaves_the_checkpoint_before(dataset: Path, tmp_path: Path) -> None:
    """A limit on the size of files fails in the same calls as a full disk."""
    settings: dict[str, Any] = {"output": str(tmp_path / "run"), "changes": {"threads": 1}, "full_disk": 5}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(
            UserError, match=r"step 8 could not be written \(.*make room, then continue with --resume"
        ) as error:
            train(dataset, settings)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(error.value)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["0000004"]
    train_policy(dataset, tmp_path / "run", nano_preset(threads=1), resume=True)
    train_policy(dataset, tmp_path / "whole", nano_preset(threads=1))
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


@pytest.mark.slow
def test_a_full_disk_ends_all_ranks(dataset: Path, tmp_path: Path) -> None:
    run = {
        "output": str(tmp_path / "run"),
        "changes": {"threads": 1},
        "full_disk": 5,
        "options": {"runtime": {"sharding": "fsdp"}},
    }
    with pytest.raises(AssertionError) as error:
        torchrun([run], dataset, tmp_path)
    lines = [line for line in str(error.value).splitlines() if "UserError: " in line]
    assert 1 <= len(lines) <= 2
    assert all("could not be written" in line for line in lines)
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["0000004"]
    without = {name: value for name, value in run.items() if name != "full_disk"}
    torchrun([{**without, "options": {"runtime": {"sharding": "fsdp"}, "resume": True}}], dataset, tmp_path)
    assert list_checkpoints(tmp_path / "run")[-1].name == "0000008"
