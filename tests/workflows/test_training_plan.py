"""pizero train --plan: whether a training fits, and what to change."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from pizero.cli.main import run
from pizero.configs.finetune import aloha
from pizero.configs.language import with_language
from pizero.configs.presets import Preset, get_preset, tabletop
from pizero.model.config import small_config
from pizero.train.config import OptimizerName
from pizero.types import UserError
from pizero.workflows.plan import Resources, plan_training

BASE = "gs://openpi-assets/checkpoints/pi0_base"
"""A start, of which nothing is read."""


def small_aloha() -> Preset:
    """openpi's settings for a network that takes no time to plan."""
    return dataclasses.replace(aloha("pi0"), model=small_config("tiny"))


def test_what_fits_needs_no_advice() -> None:
    plan = plan_training(small_aloha(), Resources(memory=2**30))
    assert plan.fits
    assert plan.advice == ()
    assert plan.seconds > 0


@pytest.mark.slow
@pytest.mark.parametrize(("text", "optimizer"), [(False, "adamw"), (True, "adamw"), (True, "muon")])
def test_models_that_write_are_advised_like_others(text: bool, optimizer: OptimizerName) -> None:
    """Neither shards nor adapters where the optimizer is Muon, which has none."""
    preset = get_preset("tabletop", "pi05" if text else "pi0-fast")
    preset = dataclasses.replace(preset, train=dataclasses.replace(preset.train, optimizer=optimizer))
    preset = with_language(preset, "openpi", True, True) if text else preset
    plan = plan_training(preset, Resources(local_ranks=4, memory=1000), BASE)
    options = [advice.options for advice in plan.advice]
    assert [name in options for name in ("--sharding fsdp", "--lora")] == [optimizer == "adamw"] * 2
    assert options[-1] == "--freeze vision"


def test_advice_goes_on_until_it_fits() -> None:
    preset = small_aloha()
    needed = plan_training(preset, Resources(memory=2**40)).step.total
    plan = plan_training(preset, Resources(memory=needed // 8), BASE)
    assert plan.fits is False
    totals = [advice.step.total for advice in plan.advice]
    assert totals == sorted(totals, reverse=True)
    assert totals[-1] <= needed // 8 < totals[-2]
    last = plan.advice[-1]
    again = plan_training(last.preset, dataclasses.replace(last.resources, memory=needed // 8), BASE)
    assert again.fits
    assert again.step.total == last.step.total


@pytest.mark.slow
def test_too_little_for_any_change_says_so() -> None:
    plan, fresh = (plan_training(small_aloha(), Resources(memory=1000), start) for start in (BASE, None))
    assert [advice.options for advice in fresh.advice] == [advice.options for advice in plan.advice[:-2]]
    assert [advice.options for advice in plan.advice] == [
        "--recompute", "--accumulate 32", "--optimizer adamw8bit", "--ema-decay 0", "--lora", "--freeze vision",
    ]  # fmt: skip
    assert plan.advice[-1].step.total > 1000


@pytest.mark.slow
def test_ranks_are_advised_to_share() -> None:
    plan = plan_training(small_aloha(), Resources(local_ranks=4, memory=1000))
    assert plan.advice[1].options == "--sharding fsdp"
    assert plan.advice[1].resources.layout.shards == 4


def test_a_device_of_no_kind() -> None:
    with pytest.raises(UserError, match="unknown device 'gpu'"):
        Resources("gpu")


def test_a_device_that_is_not_here_is_not_guessed() -> None:
    assert plan_training(small_aloha(), Resources("cuda")).fits is None


@pytest.mark.parametrize(("machines", "memory"), [(0, None), (1, 0)])
def test_impossible_places(machines: int, memory: int | None) -> None:
    with pytest.raises(UserError, match="must be positive"):
        Resources(machines=machines, memory=memory)


def test_a_batch_that_cannot_be_divided() -> None:
    with pytest.raises(UserError, match="32 cannot be divided among 5 ranks"):
        plan_training(tabletop(), Resources(local_ranks=5))


def test_the_command_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--preset", "tabletop", "--output", str(tmp_path / "run"), "--plan", "--plan-memory", "1"]
    assert run("train", ["no-data-yet", *options]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "fits into the 1.0 GiB" in said
    assert "1,600 steps in" in said
    assert not (tmp_path / "run").exists()
