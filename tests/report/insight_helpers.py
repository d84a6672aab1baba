"""Nano policies of the built-in simulator of every kind, with their plain models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from pizero.baseline.config import small_baseline
from pizero.baseline.policy import DiffusionPolicy
from pizero.data.embodiments import tabletop
from pizero.data.fast.codec import FastCodec
from pizero.data.fast.tokens import FastTokenizer
from pizero.data.norm_stats import FieldStats, NormStats
from pizero.data.pipeline import Pipeline
from pizero.data.tokenizer import PaligemmaTokenizer
from pizero.model.config import SMALL_SIZES, small_config
from pizero.model.pi0 import Pi0
from pizero.model.pi0_fast import Pi0Fast, Pi0FastConfig
from pizero.policy.policy import ModelPolicy
from pizero.types import RobotDict

SIZE, STEPS = 28, 3
CAMERAS = ("base_0_rgb", "left_wrist_0_rgb")
GOLDEN = Path(__file__).parents[1] / "golden"
STATS = NormStats("zscore", FieldStats(np.zeros(7), np.ones(7)), FieldStats(np.zeros(5), np.full(5, 0.5)), epsilon=0.0)


def pi0_policy(pi05: bool = False) -> ModelPolicy:
    """π0 or π0.5, whose norms get weights, so that their gates depend on the time."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 259,
        "prompt_length": 80 if pi05 else 40,
        "cameras": CAMERAS,
        "state_dim": 7,
        "action_dim": 5,
    }
    config = small_config("nano", pi05=pi05, **sizes)
    model = Pi0(config).eval()
    for name, parameter in model.named_parameters():
        if "modulation" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return _policy(model, PaligemmaTokenizer.bytes(), "pi05" if pi05 else "pi0", STEPS)


def diffusion_policy(**changes: Any) -> ModelPolicy:
    torch.manual_seed(0)
    values = {"vocab_size": 259, "prompt_length": 56, "cameras": CAMERAS, "state_dim": 7, "action_dim": 5}
    config = small_baseline("nano", **{**values, "image_size": SIZE, "num_history": 1, **changes})
    return _policy(DiffusionPolicy(config).eval(), PaligemmaTokenizer.bytes(), "pi0", 5)


def fast_policy() -> ModelPolicy:
    """π0-FAST."""
    torch.manual_seed(0)
    codec = FastCodec.load(GOLDEN / "fast_codec" / "t10_d7_v256" / "tokenizer")
    tokenizer = PaligemmaTokenizer(GOLDEN / "fast_prompts" / "loc256" / "tokenizer.model")
    nano = SMALL_SIZES["nano"]
    config = Pi0FastConfig(
        vision=nano["vision"], prefix=nano["prefix"], vocab_size=896, image_size=SIZE, prompt_length=96,
        cameras=CAMERAS, action_dim=5, action_horizon=5,
    )  # fmt: skip
    return _policy(Pi0Fast(config).eval(), tokenizer, "fast", None, fast=FastTokenizer(tokenizer, codec))


def _policy(model: Any, tokenizer: PaligemmaTokenizer, format: Any, steps: int | None, **options: Any) -> ModelPolicy:
    pipeline = Pipeline(
        tabletop(), STATS, tokenizer, cameras=CAMERAS, prompt_format=format, prompt_length=model.config.prompt_length,
        image_size=(SIZE, SIZE), state_dim=7, action_dim=5, **options,
    )  # fmt: skip
    return ModelPolicy(model, pipeline, num_steps=steps, fast=False)


def robot() -> RobotDict:
    rng = np.random.default_rng(0)
    return {
        "state": rng.uniform(-1, 1, 7).astype(np.float32),
        "images": {name: rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8) for name in ("top", "ego")},
        "prompt": "lift the <b>disc</b>",
    }
