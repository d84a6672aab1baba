"""Presets: complete settings of a training, one short function each. PRESETS lists the names that users type.

Each header tells command, hardware, time and expected result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pizero.data.norm_stats import Mode
from pizero.model.config import Pi0Config, small_config
from pizero.train.config import TrainConfig
from pizero.types import UserError

ModelName = Literal["pi0", "pi05"]


@dataclass(frozen=True)
class Preset:
    """A model from scratch, how it is trained, and what its data looks like."""

    embodiment: str
    model: Pi0Config
    train: TrainConfig
    norm_mode: Mode
    tokenizer_size: int
    """Pieces of the SentencePiece model that is trained on the dataset's own prompts."""
    execution_horizon: int
    """Actions played before the next chunk is asked for."""


def tabletop(model: ModelName = "pi0") -> Preset:
    """Tiny π0 for the built-in simulator.

    command   pizero quickstart
    hardware  2 CPU cores
    time      4 to 5 minutes
    result    100 % over 200 episodes, π0.5 94.5 % (docs/results/quickstart.md)
    """
    config = small_config(
        "tiny", pi05=model == "pi05", state_dim=7, action_dim=5, action_horizon=4, **_prompt(model, 16, 72)
    )
    train = TrainConfig(
        steps=1_600, batch_size=32, learning_rate=3e-3, final_learning_rate=2e-5, warmup_steps=50, ema_decay=0.99,
        optimizer="muon", early_frames=1.5, draws=4, augmentation="none", log_every=20, validate_every=800,
        save_every=800, validation_fraction=0.02, seed=0,
    )  # fmt: skip
    return Preset("tabletop", config, train, _mode(model), 384, execution_horizon=2)


def metaworld(model: ModelName = "pi0") -> Preset:
    """Small π0 for six Meta-World tasks, one language-conditioned policy from scratch.

    command   make demo-metaworld
    hardware  2 CPU cores
    time      5 minutes of demonstrations, 14 of training, 3 of evaluation
    result    97 % on the mean of six tasks, 50 episodes each (docs/results/metaworld.md)
    """
    config = small_config("small", pi05=model == "pi05", **_prompt(model, 16, 48))
    train = TrainConfig(
        steps=5_000, batch_size=32, learning_rate=1.5e-3, final_learning_rate=1e-5, warmup_steps=100, ema_decay=0.995,
        draws=2, augmentation="shift", log_every=50, validate_every=1_000, save_every=1_000, seed=0,
    )  # fmt: skip
    return Preset("metaworld", config, train, _mode(model), 384, execution_horizon=8)


PRESETS: dict[str, Callable[[ModelName], Preset]] = {"tabletop": tabletop, "metaworld": metaworld}


def get_preset(name: str, model: ModelName = "pi0") -> Preset:
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}; expected one of {', '.join(PRESETS)}")
    return PRESETS[name](model)


def _mode(model: ModelName) -> Mode:
    """z-score for π0, quantiles for π0.5, as in openpi (src/openpi/training/config.py)."""
    return "quantile" if model == "pi05" else "zscore"


def _prompt(model: ModelName, without_state: int, with_state: int) -> dict[str, int]:
    return {"prompt_length": with_state if model == "pi05" else without_state}
