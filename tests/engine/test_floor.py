"""The floor computes the model's products, all of them and nothing else: its operations are counted on paper."""

from __future__ import annotations

import pytest
import torch
from model_helpers import make_observation, random_model
from torch.utils.flop_counter import FlopCounterMode

from pizero.engine.fast_sampler import FastSampler
from pizero.engine.floor import floor_calls
from pizero.model.config import GemmaConfig, Pi0Config


def gemma_layer(config: GemmaConfig, tokens: int, keys: int) -> int:
    """Operations of one layer: projections, attention over so many keys, the gated MLP."""
    heads, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    weights = config.width * (heads + 2 * kv) + heads * config.width + 3 * config.width * config.mlp_dim
    return 2 * tokens * weights + 2 * 2 * tokens * keys * heads


def counted(config: Pi0Config, batch: int, images: int, cameras: int, prompt: int) -> dict[str, int]:
    vision, prefix = config.vision, config.prefix
    patches = (config.image_size // vision.patch_size) ** 2
    block = 2 * patches * vision.width * (4 * vision.width + 2 * vision.mlp_dim) + 4 * patches**2 * vision.width
    length = patches * cameras + prompt
    last = 2 * length * prefix.width * 2 * prefix.num_kv_heads * prefix.head_dim  # keys and values alone
    horizon, room = config.action_horizon, length + config.suffix_length
    return {
        "vision": images * vision.depth * block,
        "prefix": batch * ((prefix.depth - 1) * gemma_layer(prefix, length, length) + last),
        "step": batch * config.expert.depth * gemma_layer(config.expert, horizon, room),
    }


@pytest.mark.parametrize("state_input", ["token", "prompt"])
def test_the_floor_is_every_product_once(state_input: str) -> None:
    """One camera is absent, another is there for one of two samples, and the longest prompt has five tokens."""
    model = random_model(state_input=state_input)
    observation = make_observation(model.config)
    absent, half, _ = model.config.cameras
    observation.image_masks[absent][:] = False
    observation.image_masks[half][1:] = False
    observation.prompt_mask[:] = torch.arange(8) < torch.tensor([[5], [2]])
    found: dict[str, int] = {}
    for name, call in floor_calls(FastSampler(model, kernels="torch"), observation).items():
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            call()
        found[name] = counter.get_total_flops()
    assert found == counted(model.config, batch=2, images=3, cameras=2, prompt=5)
