"""Small models with every weight random, and observations for them."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from pizero.model.config import Pi0Config, small_config
from pizero.model.pi0 import Pi0
from pizero.types import Observation

VARIANTS = [
    {"state_input": state, "time_conditioning": time, "action_attention": attention}
    for state, time, attention in itertools.product(
        ("token", "prompt", "none"), ("concat_mlp", "adarms"), ("bidirectional", "causal")
    )
]


def variant_name(variant: dict[str, str]) -> str:
    return "-".join(variant.values())


def random_model(seed: int = 0, **changes: Any) -> Pi0:
    """A nano model whose scales, biases and modulations are random too: gates are open, nothing is the identity."""
    torch.manual_seed(seed)
    model = Pi0(small_config("nano", **changes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = parameter.shape[-1] ** -0.5 if parameter.ndim == 2 else 0.3
            parameter.normal_(std=spread)
            if "norm.weight" in name:  # a LayerNorm's scale is 1 when it does nothing
                parameter.add_(1.0)
    return model


def make_observation(config: Pi0Config, batch: int = 2, seed: int = 0, **changes: Any) -> Observation:
    """All cameras present; prompts of different lengths, padded on the right."""
    generator = torch.Generator().manual_seed(seed)
    size, length = config.image_size, config.prompt_length
    real = torch.randint(1, length + 1, (batch, 1), generator=generator)
    values: dict[str, Any] = {
        "images": {name: torch.rand(batch, size, size, 3, generator=generator) * 2 - 1 for name in config.cameras},
        "image_masks": {name: torch.ones(batch, dtype=torch.bool) for name in config.cameras},
        "state": torch.randn(batch, config.state_dim, generator=generator) if config.has_state_token else None,
        "prompt_tokens": torch.randint(0, config.vocab_size, (batch, length), generator=generator),
        "prompt_mask": torch.arange(length)[None] < real,
    }
    return Observation(**{**values, **changes})


def make_actions(config: Pi0Config, batch: int = 2, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Actions [B, H, D], noise [B, H, D], flow time [B]."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, config.action_horizon, config.action_dim)
    actions, noise = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    return actions, noise, torch.rand(batch, generator=generator)


def gradients(model: Pi0, value: Tensor) -> dict[str, Tensor | None]:
    """Of a scalar with respect to every parameter; None where it does not depend on it."""
    parameters = dict(model.named_parameters())
    found = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
    return dict(zip(parameters, found, strict=True))


def dead_parameters(config: Pi0Config) -> set[str]:
    """What the loss cannot reach: of its last layer the prefix expert only gives keys and values."""
    last = f"transformer.layers.{config.prefix.depth - 1}.prefix."
    matrices = {f"{last}{part}.weight" for part in ("query", "output", "mlp.gate", "mlp.up", "mlp.down")}
    return matrices | {f"{last}mlp_norm.scale", "transformer.prefix_norm.scale"}
