"""Seeds, steps and purposes have streams of their own; a run keeps the rule that it was started with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from train_helpers import nano_preset

from pizero.model.pi0 import Pi0
from pizero.train.config import TrainConfig
from pizero.train.inputs import draw
from pizero.train.low_memory import RoundedAdamW, RowSteps
from pizero.train.run_folder import list_checkpoints
from pizero.train.seeds import Purpose, SeedRule, stream
from pizero.train.trainer import Trainer
from pizero.types import UserError
from pizero.workflows.train import train_policy

ACTIONS = torch.zeros(2, 3, 2)


def drawn(seed: int, step: int, rule: SeedRule = "sequence") -> list[float]:
    """Noise, times and delays of a step."""
    values = draw(TrainConfig(max_delay=2), ACTIONS, stream(seed, step, Purpose.DRAWS, rule))
    return values["noise"].flatten().tolist() + values["time"].flatten().tolist()


def test_seeds_and_steps_share_no_number() -> None:
    numbers = [number for seed in range(4) for step in range(200) for number in drawn(seed, step)]
    # single float32 numbers may be alike by chance, streams would share all of theirs
    assert len(set(numbers)) > 0.99 * len(numbers)
    assert drawn(1, 7) == drawn(1, 7)
    assert drawn(0, 100, "sum") == drawn(2, 102, "sum")  # of runs that are older


def test_purposes_share_no_number() -> None:
    firsts = [
        float(torch.randn(1, generator=stream(seed, step, purpose)))
        for purpose in Purpose for seed in range(4) for step in range(50)
    ]  # fmt: skip
    assert len(set(firsts)) == len(firsts)


def rounded_weights(seed: int, steps: int) -> list[Tensor]:
    """Of a parameter whose exact steps lie between two numbers of bfloat16."""
    weight = nn.Parameter(torch.ones(64, dtype=torch.bfloat16))
    optimizer, found = RoundedAdamW([weight], 1e-3, 0.0, seed), list[Tensor]()
    for _ in range(steps):
        with torch.no_grad():
            weight.fill_(1.0)
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        found.append(weight.detach().clone())
    return found


def test_rounding_at_random_differs_between_seeds() -> None:
    every = [tuple(weight.tolist()) for seed in range(4) for weight in rounded_weights(seed, 6)]
    assert len(set(every)) == len(every)


def watched_noise(patch: pytest.MonkeyPatch) -> list[Tensor]:
    """Noise and times of every loss that is computed in a training from now on."""
    seen: list[Tensor] = []
    loss = Pi0.loss

    def watched(model: Pi0, *inputs: Any, **options: Any) -> Tensor:
        if model.training:
            seen.append(torch.cat([options["noise"].flatten(), options["time"].flatten()]))
        return loss(model, *inputs, **options)

    patch.setattr(Pi0, "loss", watched)
    return seen


def test_runs_of_two_seeds_share_no_noise(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watched_noise(monkeypatch)
    for seed in (0, 2):
        train_policy(dataset, tmp_path / str(seed), nano_preset(seed=seed, precision="bfloat16"))
    assert len(seen) == 16
    numbers = torch.cat(seen)
    assert len(numbers.unique()) > 0.99 * len(numbers)  # single ones may be alike by chance, streams share all


def test_an_older_run_goes_on_by_its_own_rule(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preset = nano_preset(precision="bfloat16")
    stop = Trainer.train_step

    def until_five(self: Trainer, batch: Any) -> Tensor:
        if self.step == 5:
            raise KeyboardInterrupt
        return stop(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", until_five)
        with pytest.raises(KeyboardInterrupt):
            train_policy(dataset, tmp_path / "run", preset)
    path = list_checkpoints(tmp_path / "run")[-1] / "training_state" / "state.pt"
    state = torch.load(path, weights_only=True)
    assert state.pop("seed_rule") == "sequence"
    rounded = [group for optimizer in state["optimizers"] for group in optimizer["param_groups"] if "step" in group]
    assert [group.pop("seed_rule") for group in rounded] == ["sequence"]
    torch.save(state, path)
    seen = watched_noise(monkeypatch)
    train_policy(dataset, tmp_path / "run", preset, resume=True)
    config, size = preset.train, preset.model.action_horizon * preset.model.action_dim
    for step, noise in zip(range(4, 8), seen, strict=True):
        generator = torch.Generator().manual_seed(config.seed * 2_147_483_647 + step)
        # augmentation draws before: two cameras, one of them a wrist's
        for shape in ((3, 8), (3, 8), (3, 8)):
            torch.rand(shape, generator=generator)
        count = len(noise) * size // (size + 1)  # without a time for each chunk
        assert torch.equal(noise[:count], torch.randn(count, generator=generator))
    # the checkpoints that follow name it, and so does the optimizer
    state = torch.load(list_checkpoints(tmp_path / "run")[-1] / "training_state" / "state.pt", weights_only=True)
    assert state["seed_rule"] == "sum"


def test_a_rule_of_a_later_version_is_refused() -> None:
    with pytest.raises(UserError, match="the rule 'later', which this version does not know"):
        stream(0, 0, Purpose.DRAWS, "later")  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [1e-45, 1e-24, 1e-3, 1e18, 1e38])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_move_by_the_rate_whatever_their_gradient_measures(size: float, dtype: torch.dtype) -> None:
    table = nn.Parameter(torch.zeros(3, 4, dtype=dtype))
    optimizer = RowSteps([table], 0.5)
    for _ in range(2):  # the step after it is as good
        table.grad = torch.zeros_like(table)
        table.grad[1] = size
        table.grad[2] = torch.tensor([3.0, 0.0, 0.0, 0.0]) * min(size, 1e37)
        optimizer.step()
    if table.grad[1].any():
        torch.testing.assert_close(table.data[1], -torch.ones(4, dtype=dtype))
        torch.testing.assert_close(table.data[2], torch.tensor([-2.0, 0, 0, 0], dtype=dtype))
    assert not table.data[0].any()
