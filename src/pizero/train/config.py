"""What a training run is made of, apart from the model and the data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pizero.data.augment import AugmentationKind
from pizero.types import UserError

Precision = Literal["auto", "float32", "mixed"]
OptimizerName = Literal["adamw", "muon"]


@dataclass(frozen=True)
class TrainConfig:
    """Optimisation settings. The defaults are openpi's (src/openpi/training/config.py, optimizer.py)."""

    steps: int = 30_000
    """Optimizer steps."""
    batch_size: int = 32
    learning_rate: float = 2.5e-5
    """Peak, reached after the warm-up."""
    final_learning_rate: float = 2.5e-6
    """At the end of the cosine."""
    warmup_steps: int = 1_000
    weight_decay: float = 1e-10
    clip_norm: float = 1.0
    """Global gradient norm."""
    ema_decay: float = 0.99
    """Average of the weights, the one that is evaluated; 0 keeps the last weights."""
    ema_power: float = 0.0
    """Above 0 the average starts short: its decay is 1 - (1 + step) ** -ema_power, at most ema_decay. The diffusion
    policy's power is 0.75.
    """
    optimizer: OptimizerName = "adamw"
    """muon: for the matrices inside the transformers, AdamW for the rest; for small models from scratch."""
    draws: int = 1
    """(noise, time) draws per sample that share one pass over the prefix."""
    max_delay: int = 0
    """Above 0 a chunk's first actions, 0 to max_delay of them, are given clean, and the rest is learnt: training-time
    real-time chunking (arXiv 2512.05964). π0 and π0.5 alone.
    """
    augmentation: AugmentationKind = "openpi"
    early_frames: float = 0.0
    """Frame i of an episode is drawn in proportion to (1 + i) ** -early_frames; 0 draws each frame once per epoch.

    At the start of an episode only image and instruction tell where to go; later the robot's own position tells it too.
    """
    precision: Precision = "auto"
    """mixed: float32 weights, bfloat16 products; auto: mixed where the hardware computes in bfloat16, else float32."""
    validation_fraction: float = 0.05
    """Share of the episodes that is held out."""
    log_every: int = 50
    validate_every: int = 1_000
    save_every: int = 1_000
    keep: int = 2
    """Checkpoints kept, newest first."""
    seed: int = 42
    threads: int = 0
    """CPU threads; 0 takes all cores."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "learning_rate", "clip_norm", "draws", "log_every", "save_every", "keep"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"ema_decay must be in [0, 1), got {self.ema_decay}")
        if not 0 <= self.validation_fraction < 1:
            raise UserError(f"validation_fraction must be in [0, 1), got {self.validation_fraction}")
        for name in ("early_frames", "ema_power", "max_delay"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must not be negative, got {getattr(self, name)}")
        for name, kind in (("precision", Precision), ("optimizer", OptimizerName)):
            if getattr(self, name) not in get_args(kind):
                raise UserError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(get_args(kind))}")

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> TrainConfig:
        known = {field.name for field in dataclasses.fields(TrainConfig)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise UserError(f"unknown keys in the training config: {', '.join(unknown)}")
        return TrainConfig(**values)
