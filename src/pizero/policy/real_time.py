"""Real-time chunking: the next chunk continues where the present one will be when it arrives.

While a chunk is computed, the robot plays `delay` more actions of the old one. Two ways to make the new chunk agree:

guided    any model: each integration step is pulled towards the old chunk, by a vector-Jacobian product through the
          action expert (arXiv 2506.07339). With a single step the new chunk blends over from the old one.
trained   a model trained with delays takes the first `delay` actions as given (arXiv 2512.05964), at no extra cost.

        old chunk      o o o o o o o o o . . . .            actions left of it, from now on
        weight         1 1 1 1 .6 .3 .2 .1 0 0 0 0 0        1 while it is surely played, then falling
        new chunk      n n n n n n n n n n n n n            its first `delay` actions are never played
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from pizero.data.old_chunk import old_chunk
from pizero.data.pipeline import Pipeline
from pizero.model.action_model import ActionModelConfig
from pizero.model.config import Pi0Config
from pizero.model.flow_matching import ActionPrefix, Velocity, estimate_actions, pulled_velocity
from pizero.types import RobotDict, UserError

Schedule: TypeAlias = Literal["exp", "linear", "ones", "zeros"]
Jacobian: TypeAlias = Literal["paper", "identity"]

MAX_GUIDANCE_WEIGHT = 5.0
"""The paper's beta for ten integration steps or fewer (arXiv 2506.07339, section 4 and appendix)."""


@dataclass(frozen=True)
class RealTime:
    """How a policy continues what an observation brings as "previous_actions".

    kind: None takes "trained" for a model that was trained with delays and "guided" for any other.
    jacobian, schedule, max_weight: of the guided kind; the defaults are the paper's.
    """

    kind: Literal["guided", "trained"] | None = None
    jacobian: Jacobian = "paper"
    schedule: Schedule = "exp"
    max_weight: float = MAX_GUIDANCE_WEIGHT

    def in_steps(self, num_steps: int) -> RealTime:
        """For so many integration steps. With a single one nothing comes after a pull, which is therefore the whole
        difference, taken once and as it is: the chunk is the old one where that one's weight is 1, and blends over.
        """
        return self if num_steps > 1 else replace(self, jacobian="identity", max_weight=1.0)


def sampling_options(
    observations: Sequence[RobotDict],
    pipeline: Pipeline,
    config: ActionModelConfig,
    settings: RealTime,
    device: torch.device,
) -> dict[str, Any]:
    """What `sample_actions` is given beside the observations: nothing where none of them brings an old chunk.

    "previous_actions" and "inference_delay": as `old_chunk` has them. A trained model settles at most as many actions
    as it was trained to. UserError names what does not fit.
    """
    if not any("previous_actions" in observation for observation in observations):
        return {}
    if not isinstance(config, Pi0Config):
        raise UserError("previous_actions: only π0 and π0.5 can continue a chunk; play whole chunks of this model")
    kind = settings.kind or ("trained" if config.max_delay else "guided")
    if kind == "trained" and not config.max_delay:
        raise UserError(
            "this model was not trained with delays (pizero train --max-delay); use guided real-time chunking"
        )
    horizon = config.action_horizon
    wanted = np.zeros((len(observations), horizon, config.action_dim), np.float32)
    left, delay = torch.zeros(2, len(observations), dtype=torch.long)
    for row, observation in enumerate(observations):
        if "previous_actions" in observation:
            wanted[row], left[row], delay[row] = old_chunk(observation, pipeline, horizon)
    old = torch.from_numpy(wanted).to(device)  # pyright: ignore[reportUnknownMemberType]
    if kind == "trained":
        return {"settled": ActionPrefix(old, delay.clamp(max=config.max_delay).to(device))}
    weights = soft_mask(delay, left, horizon, settings.schedule).to(device)
    return {"guide": Guidance(old, weights, settings.max_weight, settings.jacobian)}


def soft_mask(delay: Tensor, left: Tensor, horizon: int, schedule: Schedule = "exp") -> Tensor:
    """Weights [B, H] in [0, 1] of the old chunk: 1 for the first delay [B] actions, 0 from left [B] on.

    Between them they fall: "exp" is the paper's (equation 5), "linear" a straight line, "ones" stays at 1, "zeros"
    drops at once. left: how many actions of the old chunk are left. A delay beyond them counts as `left`.
    """
    place = torch.arange(horizon, device=left.device)
    delay, left = torch.minimum(delay, left)[:, None], left[:, None]
    falling = (left - place) / (left - delay + 1)
    if schedule == "exp":
        falling = falling * torch.expm1(falling) / (math.e - 1)
    elif schedule != "linear":
        falling = torch.full_like(falling, float(schedule == "ones"))
    return torch.where(place < delay, 1.0, falling) * (place < left)


@dataclass(frozen=True)
class Guidance:
    """Pulls the integration towards actions [B, H, D] with weights [B, H]; given to `sample_actions` as `guide`.

    jacobian: "paper" sends the pull through the derivative of the estimated actions with respect to x_t, which costs
    about two more passes through the action expert a step; "identity" takes the pull as it is. LeRobot's RTC is the
    latter: it computes the velocity before it asks for gradients.
    """

    actions: Tensor
    weights: Tensor
    max_weight: float = MAX_GUIDANCE_WEIGHT
    jacobian: Jacobian = "paper"

    def __call__(self, velocity: Velocity) -> Velocity:
        def guided(x_t: Tensor, time: Tensor) -> Tensor:
            with torch.set_grad_enabled(self.jacobian == "paper"):
                x_t = x_t.detach().requires_grad_(self.jacobian == "paper")
                v_t = velocity(x_t, time)
                estimate = estimate_actions(x_t, v_t, time)
                pull = (self.actions - estimate.detach()) * self.weights[..., None]
                if self.jacobian == "paper":
                    (pull,) = torch.autograd.grad(estimate, x_t, pull)
            return pulled_velocity(v_t.detach(), pull, time, self.max_weight)

        return guided
