"""What a preset is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast

from pizero.baseline.config import BaselineConfig
from pizero.data.norm_stats import Mode
from pizero.model.config import Pi0Config
from pizero.model.pi0_fast import Pi0FastConfig
from pizero.train.config import TrainConfig
from pizero.types import UserError

OWN = "own"
"""In the place of a robot's name: the dataset's own columns and cameras."""

Pi0Name = Literal["pi0", "pi05"]
ModelName = Literal["pi0", "pi05", "pi0-fast", "diffusion"]


@dataclass(frozen=True)
class Preset:
    """A model, how it is trained, and what its data looks like."""

    embodiment: str
    """Name, or path of a TOML file; `OWN` takes the dataset's own columns and cameras."""
    model: Pi0Config | Pi0FastConfig | BaselineConfig
    """With an initial checkpoint, its sizes hold; action horizon and state input are the preset's all the same."""
    train: TrainConfig
    norm_mode: Mode
    tokenizer_size: int
    """Pieces of the SentencePiece model that is trained on the dataset's own prompts."""
    execution_horizon: int
    """Actions played before the next chunk is asked for."""
    codec_size: int = 1024
    """Tokens of the action codec that is fitted to the dataset, for a model that writes actions as tokens."""
    from_data: bool = False
    """Whether the fields `OF_THE_DATA` of the model come from the dataset (`workflows/sizes.py`)."""
    task_weights: Mapping[str, float] | None = None
    """Instruction: how often its frames are drawn in training, those of others counting 1. For tasks that need more
    samples than their share of the frames gives them.
    """

    def __post_init__(self) -> None:
        weights: object = self.task_weights
        if weights is not None and not isinstance(weights, Mapping):
            raise UserError(f"task_weights must be a table of instructions and numbers, got {str(weights)[:60]}")
        for task, weight in cast("Mapping[str, object]", weights or {}).items():
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
                raise UserError(f"task_weights of {task!r} must be a number above 0, got {str(weight)[:60]}")


OF_THE_DATA = (
    "cameras", "image_size", "state_dim", "action_dim", "action_horizon", "prompt_length", "vision", "stem_stride"
)  # fmt: skip


def norm_mode(model: ModelName) -> Mode:
    """z-score for π0, quantiles for π0.5 and π0-FAST, as in openpi (src/openpi/training/config.py)."""
    return "quantile" if model in ("pi05", "pi0-fast") else "zscore"
