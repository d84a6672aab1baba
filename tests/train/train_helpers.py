"""A preset that trains in seconds."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from pizero.baseline.config import BaselineConfig, small_baseline
from pizero.configs.presets import Preset
from pizero.model.config import Pi0Config, small_config
from pizero.model.pi0_fast import Pi0FastConfig
from pizero.train.config import TrainConfig
from pizero.train.metrics import read_metrics


def nano_model(pi05: bool = False, **changes: Any) -> Pi0Config:
    sizes: dict[str, Any] = {
        "vocab_size": 384, "prompt_length": 16, "state_dim": 8, "action_dim": 5,
        "cameras": ("base_0_rgb", "left_wrist_0_rgb"),
    }  # fmt: skip
    return small_config("nano", pi05=pi05, **{**sizes, **changes})


def nano_baseline(**changes: Any) -> BaselineConfig:
    sizes: dict[str, Any] = {"vocab_size": 384, "prompt_length": 16, "state_dim": 8, "action_dim": 5}
    return small_baseline("nano", **{**sizes, **changes})


def nano_fast(**changes: Any) -> Pi0FastConfig:
    pi0 = nano_model()
    sizes: dict[str, Any] = {
        "vision": pi0.vision, "prefix": pi0.prefix, "vocab_size": 384 + 300 + 128, "cameras": pi0.cameras,
        "image_size": pi0.image_size, "prompt_length": 16, "state_dim": 8, "action_dim": 5, "action_horizon": 6,
    }  # fmt: skip
    return Pi0FastConfig(**{**sizes, **changes})


def nano_fast_preset(**changes: Any) -> Preset:
    preset = nano_preset(**{"draws": 1, **changes})
    return dataclasses.replace(preset, model=nano_fast(), norm_mode="quantile", codec_size=300)


def nano_preset(**changes: Any) -> Preset:
    """8 steps; `changes` are fields of TrainConfig."""
    settings: dict[str, Any] = {
        "steps": 8, "batch_size": 8, "learning_rate": 1e-3, "warmup_steps": 2, "draws": 2, "augmentation": "openpi",
        "log_every": 1, "validate_every": 4, "save_every": 4, "validation_fraction": 0.2, "seed": 3, "threads": 1,
    }  # fmt: skip
    return Preset("tabletop", nano_model(), TrainConfig(**{**settings, **changes}), "zscore", 384, execution_horizon=4)


def losses(folder: Path) -> dict[int, float]:
    """Of a run, by step."""
    return {line["step"]: line["loss"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line}
