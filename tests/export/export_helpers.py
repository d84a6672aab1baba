"""Tiny checkpoints of every kind that is exported."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pizero.baseline.config import small_baseline
from pizero.baseline.policy import DiffusionPolicy
from pizero.checkpoints.facts import make_pipeline
from pizero.checkpoints.format import Facts
from pizero.checkpoints.models import Network
from pizero.checkpoints.native.checkpoint import save_checkpoint
from pizero.checkpoints.native.example import make_example
from pizero.data.embodiments import generic
from pizero.data.norm_stats import FieldStats, NormStats
from pizero.data.pipeline import Pipeline
from pizero.data.tokenizer import PaligemmaTokenizer
from pizero.model.config import LanguageConfig, SiglipConfig, small_config
from pizero.model.pi0 import Pi0
from pizero.types import RobotDict

CAMERAS = ("base_0_rgb", "left_wrist_0_rgb")
SIZES: dict[str, Any] = {"vocab_size": 259, "prompt_length": 80, "cameras": CAMERAS}
STEM = SiglipConfig(width=16, depth=1, mlp_dim=32, num_heads=2, patch_size=4, stem_width=8)
PI0_KINDS: dict[str, Any] = {
    "pi0": small_config("nano", **SIZES),
    "pi0-causal": small_config("nano", **SIZES, action_attention="causal"),
    "pi0-stem": small_config("nano", **SIZES, vision=STEM),
    "pi05": small_config("nano", pi05=True, **SIZES),
    "pi0-one-step-delays": small_config("nano", **SIZES, one_step=True, max_delay=3),
    "pi05-one-step": small_config("nano", pi05=True, **SIZES, one_step=True),
    "pi0-delays": small_config("nano", **SIZES, max_delay=3),
    "pi05-delays": small_config("nano", pi05=True, **SIZES, max_delay=3, state_input="token"),
    "pi05-text": small_config("nano", pi05=True, **SIZES, language=LanguageConfig(text_length=8)),
    "pi05-fast": small_config("nano", pi05=True, **SIZES, language=LanguageConfig(text_weight=0.0)),
}


def observation(seed: int = 0, history: int = 1) -> RobotDict:
    generator = np.random.default_rng(seed)
    past = (history,) if history > 1 else ()
    return {
        "state": generator.standard_normal((*past, 3)).astype(np.float32),
        "images": {
            name: generator.integers(0, 256, (*past, 20, 28, 3), dtype=np.uint8) for name in ("top", "hand")
        },
        "prompt": f"pick {seed}",
    }  # fmt: skip


def pipeline_of(config: Any, **changes: Any) -> Pipeline:
    facts = Facts(
        generic({"base_0_rgb": "top", "left_wrist_0_rgb": "hand"}, relative_mask=(False, True)),
        NormStats(
            "zscore", FieldStats(np.array([0.5, -1.0, 0.0]), np.ones(3)),
            FieldStats(np.array([10.0, -0.2]), np.array([4.0, 0.5])),
        ),
        PaligemmaTokenizer.bytes(),
    )  # fmt: skip
    return make_pipeline(config, replace(facts, **changes))


def network(kind: str) -> Network:
    """With fresh weights; what begins at zero does not."""
    torch.manual_seed(0)
    model = Pi0(PI0_KINDS[kind]) if kind in PI0_KINDS else DiffusionPolicy(BASELINES[kind])
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


_BASELINE: dict[str, Any] = {
    "cameras": CAMERAS, "vocab_size": 259, "prompt_length": 16, "action_dim": 4, "state_dim": 5, "action_horizon": 6
}  # fmt: skip
BASELINES: dict[str, Any] = {
    "diffusion": small_baseline("nano", **_BASELINE),
    "flow": small_baseline(
        "nano", **_BASELINE, num_history=1, objective="flow", image_fusion="separate", state_input=True,
        instruction=True, step_embedding="sincos", stem_stride=4,
    ),
}  # fmt: skip
KINDS = [*PI0_KINDS, *BASELINES]


def write(folder: Path, kind: str) -> Path:
    """A checkpoint with its stored example."""
    model = network(kind)
    pipeline, config = pipeline_of(model.config), model.config
    noise = np.random.default_rng(1).standard_normal((config.action_horizon, config.action_dim), np.float32)
    example = make_example(model, pipeline, observation(history=config.num_history), noise)
    save_checkpoint(folder, model, pipeline, example)
    return folder
