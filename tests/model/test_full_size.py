"""The full sizes, on the meta device: exact parameter counts, and the shapes of a whole pass."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from pizero.model.config import Pi0Config
from pizero.model.pi0 import Pi0
from pizero.types import Observation

MANIFESTS = Path(__file__).parents[1] / "golden" / "openpi" / "manifests"
PRESETS = {"pi0": Pi0Config.pi0, "pi05": Pi0Config.pi05}


def part(name: str) -> str:
    if name.startswith("vision_tower."):
        return "projector" if ".projection." in name else "vision_tower"
    if name.startswith(("token_embedding.", "transformer.prefix_norm.")) or ".prefix." in name:
        return "gemma_2b"
    return "action_expert" if name.startswith("transformer.") else "heads"


@cache
def build(preset: str) -> Pi0:
    with torch.device("meta"):
        return Pi0(PRESETS[preset]())


@pytest.mark.parametrize("preset", PRESETS)
def test_parameter_counts(preset: str) -> None:
    expected = json.loads((MANIFESTS / "parameter_counts.json").read_text())[preset]["jax"]
    counts: Counter[str] = Counter()
    for name, parameter in build(preset).named_parameters():
        counts[part(name)] += parameter.numel()
    assert {**counts, "total": counts.total()} == expected


def test_the_documented_totals() -> None:
    totals = {name: sum(p.numel() for p in build(name).parameters()) for name in PRESETS}
    assert totals == {"pi0": 3_238_048_528, "pi05": 3_353_433_872}


@torch.no_grad()
@pytest.mark.parametrize("preset", PRESETS)
def test_shapes_of_a_pass(preset: str) -> None:
    """Full widths and lengths; two layers of each stack, since the others repeat them."""
    full = PRESETS[preset]()
    parts = {name: replace(getattr(full, name), depth=2) for name in ("vision", "prefix", "expert")}
    with torch.device("meta"):
        model = Pi0(replace(full, **parts))
        observation = Observation(
            images={name: torch.zeros(2, 224, 224, 3) for name in full.cameras},
            image_masks={name: torch.ones(2, dtype=torch.bool, device="cpu") for name in full.cameras},
            state=torch.zeros(2, 32),
            prompt_tokens=torch.zeros(2, full.prompt_length, dtype=torch.int32),
            prompt_mask=torch.ones(2, full.prompt_length, dtype=torch.bool),
        )
        actions = torch.zeros(2, 50, 32)
        noise, time = torch.zeros(3, 2, 50, 32), torch.zeros(3, 2)
    cache = model.prefill(observation)
    length = 3 * 256 + full.prompt_length
    assert [tuple(key.shape) for key in cache.keys] == [(2, length, 1, 256)] * 2
    assert model.decode(cache, observation.state, actions, time[0]).shape == (2, 50, 32)
    assert model.loss(observation, actions, noise=noise, time=time, draws=3).shape == (2, 50)
