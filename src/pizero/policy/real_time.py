"""Real-time chunking: the next chunk goes on where the present one will be when it arrives.

While a chunk is computed, the robot plays `delay` more actions of the old one. Two ways to make the new chunk agree:

guided    any model: each integration step is pulled towards the old chunk, by a vector-Jacobian product through the
          action expert (arXiv 2506.07339).
trained   a model trained with delays takes the first `delay` actions as given (arXiv 2512.05964), at no extra cost.

        old chunk      o o o o o o o o o . . . .            actions left of it, from now on
        weight         1 1 1 1 .6 .3 .2 .1 0 0 0 0 0        1 while it is surely played, then falling
        new chunk      n n n n n n n n n n n n n            its first `delay` actions are never played
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from pizero.model.flow_matching import Velocity, estimate_actions, pulled_velocity

Schedule: TypeAlias = Literal["exp", "linear", "ones", "zeros"]
Jacobian: TypeAlias = Literal["paper", "identity"]

MAX_GUIDANCE_WEIGHT = 5.0
"""The paper's beta for ten integration steps or fewer (arXiv 2506.07339, section 4 and appendix)."""


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
