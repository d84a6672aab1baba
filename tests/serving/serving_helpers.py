"""A nano π0 for the built-in simulator, and observations for it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from pizero.data.embodiments import tabletop
from pizero.data.norm_stats import FieldStats, NormStats
from pizero.data.pipeline import Pipeline
from pizero.data.tokenizer import PaligemmaTokenizer
from pizero.model.config import LanguageConfig, small_config
from pizero.model.pi0 import Pi0
from pizero.policy.policy import ModelPolicy
from pizero.types import RobotDict

SIZE = 28


def make_policy(seed: int = 0, **changes: Any) -> ModelPolicy:
    cameras = ("base_0_rgb", "left_wrist_0_rgb")
    values = {"vocab_size": 259, "prompt_length": 40, "cameras": cameras, "state_dim": 7, "action_dim": 5}
    config = small_config("nano", **{**values, **changes})
    torch.manual_seed(seed)
    stats = NormStats(
        "zscore", FieldStats(np.zeros(7), np.ones(7)), FieldStats(np.zeros(5), np.full(5, 0.5)), epsilon=0.0
    )
    pipeline = Pipeline(
        tabletop(), stats, PaligemmaTokenizer.bytes(), cameras=cameras, prompt_format="pi0",
        prompt_length=config.prompt_length, image_size=(SIZE, SIZE), state_dim=7, action_dim=5,
    )  # fmt: skip
    return ModelPolicy(Pi0(config).eval(), pipeline, num_steps=2)


def make_text_policy(text: str = "lift it") -> ModelPolicy:
    """A nano π0.5 that writes this subtask, whatever it sees."""
    length, cameras = len(text) + 12, ("base_0_rgb", "left_wrist_0_rgb")
    config = small_config(
        "nano", pi05=True, vocab_size=259, prompt_length=140, cameras=cameras, state_dim=7, action_dim=5,
        language=LanguageConfig(text_length=length, fast_weight=0),
    )  # fmt: skip
    pipeline = dataclasses.replace(
        make_policy().pipeline, prompt_format="pi05", prompt_length=140, layout="openpi", text_length=length
    )
    torch.manual_seed(0)
    model = Pi0(config)
    inputs = pipeline.robot_inputs([{**observation(seed), "subtask": text} for seed in range(2)])
    seen, actions = pipeline.observation(inputs, "cpu"), torch.zeros(2, 6, 5)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(100):
        loss = model.losses(seen, actions).text.mean()
        if loss < 0.02:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return ModelPolicy(model.eval(), pipeline, num_steps=2)


def observation(seed: int = 0, size: int = SIZE) -> RobotDict:
    rng = np.random.default_rng(seed)
    return {
        "state": rng.uniform(-1, 1, 7).astype(np.float32),
        "images": {name: rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for name in ("top", "ego")},
        "prompt": f"lift the red block {seed}",
    }


def noise(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((6, 5)).astype(np.float32)
