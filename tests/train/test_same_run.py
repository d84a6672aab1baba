"""A run's folder holds one run: one training at a time, on the data that it was started with; and it can be written."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from train_helpers import losses, nano_preset

from pizero.cli.main import run as command
from pizero.train.run_folder import list_checkpoints
from pizero.train.run_lock import LOCK, only_training
from pizero.train.trainer import Trainer
from pizero.types import UserError
from pizero.workflows.start import Initialization
from pizero.workflows.train import train_policy
from pizero.workflows.training_data import DataOptions

HOLD = (
    "import sys; from pathlib import Path; from pizero.train.run_lock import only_training\n"
    "with only_training(Path(sys.argv[1])):\n    print('in', flush=True); sys.stdin.readline()\n"
)


def holder(folder: Path) -> subprocess.Popen[str]:
    """Another process that is in the folder until it is told to end."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "in\n"
    return process


def test_one_training_at_a_time(dataset: Path, tmp_path: Path) -> None:
    run, preset = tmp_path / "run", nano_preset(steps=2, save_every=2)
    other = holder(run)
    try:
        with pytest.raises(UserError, match=rf"is in use: process {other.pid} on .* trains into it"):
            train_policy(dataset, run, preset)
        assert [path.name for path in run.iterdir()] == [LOCK]
    finally:
        other.communicate("end\n")
    assert list(tmp_path.iterdir()) == []  # nothing came of it
    train_policy(dataset, run, preset)  # the step after it
    assert sorted(losses(run)) == [1, 2]
    assert not (run / LOCK).exists()
    stored = json.loads((run / "run.json").read_text())
    other = holder(run)
    try:
        with pytest.raises(UserError, match="is in use"):
            train_policy(dataset, run, nano_preset(steps=4, seed=4), resume=True)
        assert json.loads((run / "run.json").read_text()) == stored
    finally:
        other.communicate("end\n")
    train_policy(dataset, run, nano_preset(steps=4, save_every=2), resume=True)
    assert sorted(losses(run)) == [1, 2, 3, 4]


def test_a_killed_training_leaves_the_folder_free(dataset: Path, tmp_path: Path) -> None:
    other = holder(tmp_path / "run")
    os.kill(other.pid, signal.SIGKILL)
    other.communicate()
    assert (tmp_path / "run" / LOCK).is_file()
    train_policy(dataset, tmp_path / "run", nano_preset(steps=1, save_every=1))
    assert sorted(losses(tmp_path / "run")) == [1]


def test_a_second_training_of_one_process(tmp_path: Path) -> None:
    with only_training(tmp_path), pytest.raises(UserError, match="in use"), only_training(tmp_path):
        pass
    with only_training(tmp_path):
        pass


def test_an_output_that_cannot_be_written(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    for output in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/run")):
        assert command("train", [str(dataset), "--preset", "tabletop", "--output", str(output)]) == 2
        shown = capsys.readouterr().err
        assert "cannot be written" in " ".join(shown.split())
        assert "Traceback" not in shown
    assert (tmp_path / "file").read_text() == "mine"


# ---------------------------------------------------------------- data


def change_column(root: Path, name: str, change: Callable[[pa.ChunkedArray], pa.Array]) -> None:
    path = next((root / "data").rglob("*.parquet"))
    table = pq.read_table(path)
    index = table.column_names.index(name)
    pq.write_table(table.set_column(index, table.schema.field(index), change(table.column(name))), path)


def negated(column: pa.ChunkedArray) -> pa.Array:
    flat = pc.multiply(pc.list_flatten(column), pa.scalar(-3.0, pa.float32())).combine_chunks()
    return pa.FixedSizeListArray.from_arrays(flat, column.type.list_size)


def change_text(root: Path) -> None:
    path = root / "meta" / "tasks.parquet"
    table = pq.read_table(path)
    name = next(field.name for field in table.schema if pa.types.is_string(field.type))
    texts = [f"{text}!" for text in table.column(name).to_pylist()]
    pq.write_table(table.set_column(table.column_names.index(name), table.schema.field(name), pa.array(texts)), path)


def stopped_run(dataset: Path, folder: Path, **changes: Any) -> None:
    """Up to step 6."""
    original = Trainer.train_step

    def step(self: Trainer, batch: Any) -> torch.Tensor:
        if self.step == 6:
            raise KeyboardInterrupt
        return original(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", step)
        with pytest.raises(KeyboardInterrupt):
            train_policy(dataset, folder, nano_preset(**changes))


CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "actions": (lambda root: change_column(root, "action", negated), r"changed: actions[,.]"),
    "states": (lambda root: change_column(root, "observation.state", negated), r"changed: states[,.]"),
    "instructions": (change_text, "changed: instructions"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_data_that_changed_is_refused(kind: str, dataset: Path, tmp_path: Path) -> None:
    change, text = CHANGES[kind]
    data, run = shutil.copytree(dataset, tmp_path / "data"), tmp_path / "run"
    stopped_run(data, run)
    change(data)
    with pytest.raises(UserError, match=text) as caught:
        train_policy(data, run, nano_preset(), resume=True)
    newest = list_checkpoints(run)[-1]
    assert f"--checkpoint {newest} and another --output" in str(caught.value)
    # its advice works, and so does the run with its own data, at another place
    more = nano_preset(steps=1, save_every=1)
    train_policy(data, tmp_path / "new", more, initial=Initialization(newest))
    moved = shutil.copytree(dataset, tmp_path / "moved")
    train_policy(moved, run, nano_preset(), resume=True)
    train_policy(dataset, tmp_path / "whole", nano_preset())
    assert losses(run) == losses(tmp_path / "whole")


def test_other_episodes_are_refused(dataset: Path, tmp_path: Path) -> None:
    stopped_run(dataset, tmp_path / "run")
    with pytest.raises(UserError, match=r"number of episodes \(8, now 7\)"):
        train_policy(dataset, tmp_path / "run", nano_preset(), resume=True, data=DataOptions(range(7)))


def test_a_checkpoint_that_names_no_data_goes_on(dataset: Path, tmp_path: Path) -> None:
    stopped_run(dataset, tmp_path / "run")
    path = list_checkpoints(tmp_path / "run")[-1] / "training_state" / "state.pt"
    state = torch.load(path, weights_only=True)
    torch.save({name: value for name, value in state.items() if name not in ("data", "losses")}, path)
    train_policy(dataset, tmp_path / "run", nano_preset(), resume=True)
    assert max(losses(tmp_path / "run")) == 8


def test_the_first_loss_after_a_resume_is_that_of_its_whole_interval(dataset: Path, tmp_path: Path) -> None:
    settings = {"log_every": 4, "save_every": 3, "steps": 10}
    stopped_run(dataset, tmp_path / "run", **settings)
    assert list_checkpoints(tmp_path / "run")[-1].name == "0000006"
    train_policy(dataset, tmp_path / "run", nano_preset(**settings), resume=True)
    train_policy(dataset, tmp_path / "whole", nano_preset(**settings))
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert sorted(losses(tmp_path / "run")) == [4, 8, 10]
    one, other = (load_file(list_checkpoints(tmp_path / name)[-1] / "model.safetensors") for name in ("run", "whole"))
    assert all(torch.equal(one[name], other[name]) for name in one)
