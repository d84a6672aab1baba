"""Nano diffusion policies and observations for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pizero.baseline.config import BaselineConfig, small_baseline
from pizero.baseline.policy import DiffusionPolicy
from pizero.types import Observation


def make_model(seed: int = 0, **changes: Any) -> DiffusionPolicy:
    torch.manual_seed(seed)
    return DiffusionPolicy(small_baseline("nano", **changes))


def make_observation(config: BaselineConfig, batch: int = 2, seed: int = 0, **changes: Any) -> Observation:
    """All cameras present, a whole history, prompts of different lengths."""
    generator = seeded(seed)
    frames, size, length = (batch, config.num_history), config.image_size, config.prompt_length
    real = torch.randint(1, length + 1, (batch, 1), generator=generator)
    values: dict[str, Any] = {
        "images": {name: torch.rand(*frames, size, size, 3, generator=generator) * 2 - 1 for name in config.cameras},
        "image_masks": {name: torch.ones(batch, dtype=torch.bool) for name in config.cameras},
        "state": torch.randn(*frames, config.state_dim, generator=generator),
        "prompt_tokens": torch.randint(0, config.vocab_size, (batch, length), generator=generator),
        "prompt_mask": torch.arange(length)[None] < real,
    }
    return Observation(**{**values, **changes})


def make_actions(config: BaselineConfig, batch: int = 2, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Actions [B, H, D], noise [B, H, D], time [B]."""
    generator = seeded(seed)
    shape = (batch, config.action_horizon, config.action_dim)
    actions, noise = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    return actions, noise, torch.rand(batch, generator=generator)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
