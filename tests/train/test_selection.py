"""The best checkpoint, an early end, measurements during a run, and where numbers go."""

from __future__ import annotations

import json
import math
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from train_helpers import losses, nano_baseline, nano_preset

from pizero.checkpoints.native.checkpoint import load_checkpoint, verify_example
from pizero.train.config import SelectionConfig
from pizero.train.low_memory import eight_bit_adamw
from pizero.train.metrics import TRACKERS, read_metrics
from pizero.train.run_folder import list_checkpoints
from pizero.train.selection import Selection
from pizero.train.trainer import Trainer
from pizero.types import UserError
from pizero.workflows.measures import MeasureConfig
from pizero.workflows.train import train_policy


def test_lower_losses_and_higher_success_are_better() -> None:
    loss = Selection(SelectionConfig(patience=2))
    assert [loss.take(step, {"validation_loss": value}) for step, value in enumerate((3.0, 2.0, math.nan))] == [
        True, True, False,
    ]  # fmt: skip
    assert not loss.ended
    assert not loss.take(3, {"open_loop_error": 0.1})  # not its metric
    assert not loss.take(4, {"validation_loss": 2.0})
    assert loss.ended
    assert (loss.best_step, loss.best) == (1, 2.0)
    again = Selection(SelectionConfig(patience=2))
    again.load(loss.state())
    assert again.ended
    success = Selection(SelectionConfig(metric="success_rate", keep_best=True))
    assert [success.take(step, {"success_rate": value}) for step, value in enumerate((0.5, 0.4, 0.6))] == [
        True, False, True,
    ]  # fmt: skip
    assert not success.ended


def planned(values: dict[int, float]) -> Any:
    """A Trainer.validate that finds these losses by step."""
    return lambda self: {"validation_loss": values[self.step]}


def test_the_best_checkpoint_stays_and_the_run_ends_early(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {step: abs(step - 3) + 1.0 for step in range(1, 9)}  # the best at step 3
    monkeypatch.setattr(Trainer, "validate", planned(values))
    preset = nano_preset(
        validate_every=1, save_every=100, keep=1, selection=SelectionConfig(keep_best=True, patience=3)
    )
    run = tmp_path / "run"
    result = train_policy(dataset, run, preset)
    assert result.checkpoint.name == "0000006"
    assert [path.name for path in list_checkpoints(run)] == ["0000003", "0000006"]
    assert json.loads((run / "best.json").read_text()) == {"step": 3, "metric": "validation_loss", "value": 1.0}
    verify_example(load_checkpoint(run / "checkpoints" / "0000003"))
    before = losses(run)
    assert train_policy(dataset, run, preset, resume=True).checkpoint.name == "0000006"  # it has ended
    assert losses(run) == before
    shutil.rmtree(run / "checkpoints" / "0000006")
    train_policy(dataset, run, preset, resume=True)
    assert [path.name for path in list_checkpoints(run)] == ["0000003", "0000006"]
    assert losses(run) == before


def test_a_metric_that_is_not_measured_is_an_error(dataset: Path, tmp_path: Path) -> None:
    for metric in ("open_loop_error", "success_rate"):
        preset = nano_preset(selection=SelectionConfig(metric=metric, keep_best=True))  # type: ignore[arg-type]
        with pytest.raises(UserError, match=f"compared by {metric}, which this run does not measure"):
            train_policy(dataset, tmp_path / "run", preset)
    preset = nano_preset(validation_fraction=0.0, selection=SelectionConfig(patience=1))
    with pytest.raises(UserError, match="compared by validation_loss"):
        train_policy(dataset, tmp_path / "run", preset)
    with pytest.raises(UserError, match="open-loop errors need held-out episodes"):
        train_policy(
            dataset, tmp_path / "run", nano_preset(validation_fraction=0.0), measure=MeasureConfig(open_loop_chunks=2)
        )


@pytest.mark.parametrize("kind", ["pi0", "diffusion"])
def test_open_loop_errors_and_success_are_measured(dataset: Path, tmp_path: Path, kind: str) -> None:
    """On the averaged weights, without touching the training: its losses stay what they are."""
    preset = nano_preset(steps=4, validate_every=2, save_every=4, threads=1)
    if kind == "diffusion":
        preset = type(preset)(**{**vars(preset), "model": nano_baseline()})
    measure = MeasureConfig(open_loop_chunks=3, env="tabletop", evaluate_every=4, episodes=1)
    plain, run = tmp_path / "plain", tmp_path / "run"
    train_policy(dataset, plain, preset)
    train_policy(dataset, run, preset, measure=measure)
    assert losses(run) == losses(plain)
    lines = read_metrics(run / "metrics.jsonl")
    errors = {line["step"]: line["open_loop_error"] for line in lines if "open_loop_error" in line}
    assert set(errors) == {2, 4}
    assert all(math.isfinite(error) and error > 0 for error in errors.values())
    rates = {line["step"]: line["success_rate"] for line in lines if "success_rate" in line}
    assert set(rates) == {4}
    assert 0 <= rates[4] <= 1


class Recorder:
    def __init__(self, folder: Path) -> None:
        self.folder, self.values, self.closed = folder, list[tuple[int, dict[str, Any]]](), False

    def write(self, step: int, **values: Any) -> None:
        self.values.append((step, values))

    def close(self) -> None:
        self.closed = True


def test_trackers_get_every_line(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Recorder] = []
    monkeypatch.setitem(TRACKERS, "recorder", lambda folder: made.append(Recorder(folder)) or made[-1])
    train_policy(dataset, tmp_path / "run", nano_preset(steps=2), measure=MeasureConfig(track=("recorder",)))
    lines = [(line.pop("step"), line) for line in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert made[0].values == lines
    assert made[0].closed
    assert made[0].folder == tmp_path / "run"
    with pytest.raises(UserError, match="unknown tracker 'paper'; expected one of tensorboard, wandb"):
        train_policy(dataset, tmp_path / "other", nano_preset(), measure=MeasureConfig(track=("paper",)))


def test_tensorboard_writes_event_files(dataset: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train_policy(dataset, tmp_path / "run", nano_preset(steps=2), measure=MeasureConfig(track=("tensorboard",)))
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    recorded = {event.step: event.value for event in events.Scalars("loss")}
    assert recorded == pytest.approx(losses(tmp_path / "run"), rel=1e-6)


def test_wandb_without_an_account(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in a folder where it was missing before."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "wandb", None)
        with pytest.raises(UserError, match=r"wandb is missing: pip install 'pizero\[track\]'"):
            train_policy(dataset, tmp_path / "run", nano_preset(steps=2), measure=MeasureConfig(track=("wandb",)))
    train_policy(dataset, tmp_path / "run", nano_preset(steps=2), measure=MeasureConfig(track=("wandb",)))
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))


def test_a_missing_package_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, module in (("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")):
        with monkeypatch.context() as without:
            without.setitem(sys.modules, module, None)
            with pytest.raises(UserError, match=r"missing: pip install 'pizero\[track\]'"):
                TRACKERS[name](tmp_path)
    assert not list(tmp_path.iterdir())
    tracker = TRACKERS["tensorboard"](tmp_path)
    tracker.write(1, loss=2.0)
    tracker.close()
    assert list(tmp_path.glob("events.*"))


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_eight_bit_adamw_follows_adamw(dataset: Path, tmp_path: Path, compiled: bool) -> None:
    """Within the coarseness of its averages, and through a resume to the bit. It compiles its step for every shape."""
    with nullcontext() if compiled else torch.compiler.set_stance("force_eager"):
        check_eight_bit_adamw(dataset, tmp_path)


def check_eight_bit_adamw(dataset: Path, tmp_path: Path) -> None:
    whole, parted, plain = (tmp_path / name for name in ("whole", "parted", "plain"))
    options: dict[str, Any] = {"steps": 4, "save_every": 2, "validate_every": 4, "precision": "float32"}
    result = train_policy(dataset, whole, nano_preset(optimizer="adamw8bit", **options))
    train_policy(dataset, plain, nano_preset(**options))
    assert losses(whole) == pytest.approx(losses(plain), rel=0.02)
    verify_example(load_checkpoint(result.checkpoint))
    state = torch.load(result.checkpoint / "training_state" / "state.pt", weights_only=True)["optimizers"][0]["state"]
    kinds = {type(entry["exp_avg"]).__name__ for entry in state.values()}
    assert "OptimState8bit" in kinds
    shutil.copytree(whole, parted)
    shutil.rmtree(parted / "checkpoints" / "0000004")
    train_policy(dataset, parted, nano_preset(optimizer="adamw8bit", **options), resume=True)
    assert losses(parted) == losses(whole)


def test_eight_bit_adamw_rounds_by_seed_and_step() -> None:
    """Of bfloat16 weights: the same from a saved state on, whatever PyTorch's global numbers are; these stay."""
    gradients = torch.randn(4, 16, 256, generator=torch.Generator().manual_seed(0)).bfloat16()

    def trained(seed: int, stop: int = 4) -> torch.Tensor:
        weight, taken = torch.nn.Parameter(torch.ones(16, 256, dtype=torch.bfloat16)), 0
        optimizer = eight_bit_adamw([weight], 1e-4, 0.0, seed)
        for gradient in gradients:
            if taken == stop:
                state, (weight, taken) = optimizer.state_dict(), (torch.nn.Parameter(weight.detach().clone()), taken)
                optimizer = eight_bit_adamw([weight], 1e-4, 0.0, seed)
                optimizer.load_state_dict(state)
            torch.manual_seed(len(torch.get_rng_state()) + stop + taken)
            before, weight.grad = torch.get_rng_state(), gradient
            optimizer.step()
            assert torch.equal(torch.get_rng_state(), before)
            taken += 1
        return weight.detach()

    with torch.compiler.set_stance("force_eager"):
        whole = trained(1)
        assert torch.equal(trained(1, stop=2), whole)
        assert not torch.equal(trained(2), whole)


def test_eight_bit_adamw_without_torchao(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "torchao.optim", None)
        with pytest.raises(UserError, match=r"needs torchao: pip install 'pizero\[quant\]'"):
            eight_bit_adamw([weight], 0.1, 0.0)
    weight.grad = torch.ones(3)
    with torch.compiler.set_stance("force_eager"):
        eight_bit_adamw([weight], 0.1, 0.0).step()
    torch.testing.assert_close(weight.data, torch.full((3,), 0.9))
