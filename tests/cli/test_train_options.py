"""Options of pizero train, as the settings that they become."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pizero.cli.main import run
from pizero.configs.presets import Preset
from pizero.train.config import GradientConfig, LoraConfig, PartsConfig, SelectionConfig
from pizero.workflows import train
from pizero.workflows.measures import MeasureConfig
from pizero.workflows.start import Initialization
from pizero.workflows.training_data import DataOptions


def settings(arguments: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Preset, dict[str, Any]]:
    """What `train_policy` would be called with."""
    called: list[tuple[Preset, dict[str, Any]]] = []

    def train_policy(dataset: Path, folder: Path, preset: Preset, **options: Any) -> train.TrainResult:
        called.append((preset, options))
        return train.TrainResult(Path("c"), 1, 0.5, 1.0)

    monkeypatch.setattr(train, "train_policy", train_policy)
    assert run("train", ["data", "--output", "run", *arguments.split()]) == 0
    return called[0]


def test_options_become_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    preset, options = settings(
        "--preset libero --model pi05 --lora --freeze vision heads --accumulate 8 --ignore-padding "
        "--non-finite skip --precision bfloat16 --optimizer adamw8bit --ema-decay 0.5 --metric open_loop_error "
        "--keep-best --patience 3 --open-loop-chunks 16 --evaluate-env tabletop --evaluate-every 7 "
        "--evaluate-episodes 2 --compile --recompute --track tensorboard wandb --validate-every 11 "
        "--validation-fraction 0.2 --steps 12 --warmup-steps 5",
        monkeypatch,
    )
    config = preset.train
    assert (config.steps, config.warmup_steps) == (12, 5)
    assert config.parts == PartsConfig(("vision", "heads"), LoraConfig())
    assert config.gradient == GradientConfig(8, False, "skip")
    assert config.selection == SelectionConfig("open_loop_error", True, 3)
    assert (config.precision, config.optimizer, config.ema_decay) == ("bfloat16", "adamw8bit", 0.5)
    assert (config.validate_every, config.validation_fraction, config.steps) == (11, 0.2, 12)
    assert config.learning_rate == 5e-5  # the preset's own
    assert options["measure"] == MeasureConfig(16, "tabletop", 7, 2, ("tensorboard", "wandb"))
    assert options["runtime"] == train.Runtime(recompute=True, compiled=True)


def test_without_options_the_preset_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    from pizero.configs.presets import get_preset

    preset, options = settings("--preset tabletop", monkeypatch)
    assert preset == get_preset("tabletop")
    assert options["measure"] == MeasureConfig()
    assert options["initial"] == Initialization()
    assert options["data"] == DataOptions()
    assert options["runtime"] == train.Runtime()


def test_a_setting_that_contradicts_another_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = ["data", "--output", "run", "--preset", "tabletop", "--lora"]  # whose optimizer is muon
    assert run("train", wrong) == 2
    assert "not for LoRA's factors; use adamw" in " ".join(capsys.readouterr().err.split())
    for option in (["--lora"], ["--text", "openpi"], ["--fast"], ["--no-insulation"]):
        assert run("train", [*wrong[:5], "--one-step", "--checkpoint", "base", *option]) == 2
        assert "leave --lora, --text, --fast and --no-insulation out" in " ".join(capsys.readouterr().err.split())
    assert settings("--preset tabletop --lora --optimizer adamw", monkeypatch)[0].train.parts.lora == LoraConfig()
