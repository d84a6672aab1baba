"""What coarser numbers cost: the error of velocity and actions, and which layers it comes from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pizero.engine.fast_sampler import FastSampler
from pizero.engine.products import Kernels, check_kernels
from pizero.model.pi0 import Pi0
from pizero.types import Observation


@dataclass(frozen=True)
class Errors:
    """RMS distance over the RMS of what it is compared with: of the first velocity, and of the sampled actions."""

    velocity: float
    actions: float


@dataclass(frozen=True)
class Sensitivity:
    """whole: everything quantised. layers: one alone, "vision.0", "prefix.0" or "expert.0" and so on."""

    whole: Errors
    layers: dict[str, Errors]

    def worst(self, count: int) -> list[str]:
        """The layers whose quantisation alone moves the actions most."""
        return sorted(self.layers, key=lambda name: -self.layers[name].actions)[:count]


def errors(exact: FastSampler, other: FastSampler, observation: Observation, noise: Tensor, num_steps: int) -> Errors:
    """Of `other` against `exact` on observations [B] with noise [B, H, D]."""
    pairs = [
        [sampler.sample_actions(observation, noise=noise, num_steps=steps) for sampler in (exact, other)]
        for steps in (1, num_steps)
    ]
    (first, first_other), (actions, actions_other) = pairs
    # one step from the noise goes along the first velocity alone
    return Errors(_relative(first_other - noise, first - noise), _relative(actions_other, actions))


@torch.no_grad()
def sensitivity(
    model: Pi0, observation: Observation, noise: Tensor, num_steps: int, kernels: Kernels = "int8",
    on_layer: Callable[[str], None] = lambda name: None,
) -> Sensitivity:  # fmt: skip
    """Against the model in its own dtype, which stays as it is; `on_layer` hears each layer that is done.

    kernels: "int8" as this processor has it (`engine/int8.py`), or "float8"; UserError where it has not.
    """
    check_kernels(kernels, model.action_in_proj.weight.device, model.transformer.dtype)
    exact, other = FastSampler(model), FastSampler(model)
    layers: dict[str, Errors] = {}
    for name in other.layer_names():
        before = other.repack(name, kernels)
        layers[name] = errors(exact, other, observation, noise, num_steps)
        before()
        on_layer(name)
    return Sensitivity(errors(exact, FastSampler(model, kernels=kernels), observation, noise, num_steps), layers)


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).square().mean().sqrt() / expected.square().mean().sqrt())
