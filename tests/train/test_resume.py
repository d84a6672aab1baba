"""What a resume says: a run that is finished, settings that changed, more steps."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from train_helpers import losses, nano_baseline, nano_preset

from pizero.train.config import LoraConfig, PartsConfig, SelectionConfig
from pizero.train.optim import learning_rate
from pizero.train.run_folder import list_checkpoints
from pizero.train.trainer import Trainer
from pizero.types import UserError
from pizero.workflows.start import Initialization
from pizero.workflows.train import TrainResult, train_policy


@pytest.fixture
def run(dataset: Path, tmp_path: Path) -> Path:
    """Four steps."""
    train_policy(dataset, tmp_path / "run", nano_preset(steps=4, save_every=2))
    return tmp_path / "run"


def told(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


def test_a_finished_run_says_so_and_reads_nothing(
    dataset: Path, run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = losses(run)
    capsys.readouterr()
    monkeypatch.setattr("pizero.workflows.train.make_loaders", None)
    result = train_policy(dataset, run, nano_preset(steps=4, save_every=2), resume=True)
    assert "is finished: step 4 of 4; with --resume and more --steps it continues from there" in told(capsys)
    assert result.checkpoint == list_checkpoints(run)[-1]
    assert result.loss == first[4]
    assert losses(run) == first


def test_more_steps_go_on_by_the_longer_schedule(dataset: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, longer = losses(run), nano_preset(steps=6, save_every=2)
    capsys.readouterr()
    train_policy(dataset, run, longer, resume=True)
    shown = told(capsys)
    assert "changed: steps was 4, now 6" in shown
    assert "the learning rate follows the schedule of 6 steps from here on" in shown
    assert list_checkpoints(run)[-1].name == "0000006"
    assert {step: loss for step, loss in losses(run).items() if step <= 4} == first
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rates = {line["step"]: line["learning_rate"] for line in lines if "learning_rate" in line}
    assert rates[5] == learning_rate(longer.train, 4)
    assert json.loads((run / "run.json").read_text())["train"]["steps"] == 6


def test_what_changes_no_loss_may_change(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    train_policy(dataset, whole, nano_preset())
    interrupted(dataset, run, 6)
    capsys.readouterr()
    train_policy(dataset, run, nano_preset(save_every=3, log_every=1), resume=True)
    shown = told(capsys)
    assert "changed: save_every was 4, now 3" in shown
    assert "resuming from step 4 of 8" in shown
    assert losses(run) == losses(whole)


def test_what_changes_losses_is_told_old_and_new(dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    interrupted(dataset, run, 6)
    before = (run / "run.json").read_bytes()
    for changes, message in (
        ({"batch_size": 16}, "batch_size was 8, now 16; give the old values"),
        ({"steps": 6}, "steps was 8, now 6"),
        ({"learning_rate": 0.5, "save_every": 2}, r"other settings: learning_rate was 0\.001, now 0\.5; give"),
    ):
        with pytest.raises(UserError, match=message):
            train_policy(dataset, run, nano_preset(**changes), resume=True)
    with pytest.raises(UserError, match="is at step 4 of 8, and 3 steps are requested; give --steps 8 to continue"):
        train_policy(dataset, run, nano_preset(steps=3), resume=True)
    assert (run / "run.json").read_bytes() == before


def test_another_start_of_a_finished_run_is_not_ignored(
    dataset: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    train_policy(dataset, run, nano_preset(steps=4, save_every=2), resume=True, initial=Initialization("weights"))
    assert "weights is not read: its weights begin another run" in told(capsys)


def test_adapters_are_not_added_by_a_resume(dataset: Path, run: Path) -> None:
    with_lora = nano_preset(steps=6, save_every=2, parts=PartsConfig(lora=LoraConfig()))
    with pytest.raises(UserError, match=r"other settings: parts\.lora was None, now \{'prefix_rank': 16"):
        train_policy(dataset, run, with_lora, resume=True)
    train_policy(dataset, run, nano_preset(steps=6, save_every=2), resume=True)
    assert max(losses(run)) == 6


def test_a_run_that_ended_early(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def train(patience: int) -> TrainResult:
        still = nano_preset(
            learning_rate=1e-12, final_learning_rate=1e-12, steps=30, validate_every=1, save_every=30, ema_decay=0.0,
            selection=SelectionConfig(patience=patience),
        )  # fmt: skip
        return train_policy(dataset, tmp_path / "run", still, resume=True)

    ended = int(train(2).checkpoint.name)
    assert ended < 30
    capsys.readouterr()
    assert int(train(2).checkpoint.name) == ended
    assert f"is finished: it ended at step {ended}, after 2 measurements" in told(capsys)
    assert int(train(3).checkpoint.name) > ended


def interrupted(dataset: Path, run: Path, step: int) -> None:
    """A run that is stopped before its step `step`, after a checkpoint."""
    original = Trainer.train_step

    def stop(self: Trainer, batch: Any) -> Any:
        if self.step == step:
            raise KeyboardInterrupt
        return original(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", stop)
        with pytest.raises(KeyboardInterrupt):
            train_policy(dataset, run, nano_preset())


@pytest.mark.parametrize(
    ("train", "model", "text"),
    [
        ({"seed": 7}, {}, "seed was 3, now 7"),
        ({"steps": 3}, {}, "steps was 4, now 3"),
        ({}, {"state_input": "prompt"}, "was started with other settings: model.state_input was token, now prompt"),
    ],
)
def test_a_finished_run_is_not_passed_off_as_another(
    dataset: Path, run: Path, train: dict[str, Any], model: dict[str, Any], text: str
) -> None:
    asked = nano_preset(**{"steps": 4, "save_every": 2, **train})
    asked = dataclasses.replace(asked, model=dataclasses.replace(asked.model, **model))
    with pytest.raises(UserError, match=text):
        train_policy(dataset, run, asked, resume=True)


def test_a_finished_run_is_not_that_of_another_kind_of_model(dataset: Path, run: Path) -> None:
    asked = dataclasses.replace(nano_preset(steps=4, save_every=2), model=nano_baseline())
    with pytest.raises(UserError, match="was started with other settings"):
        train_policy(dataset, run, asked, resume=True)
