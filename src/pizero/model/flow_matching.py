"""Flow matching. This file alone knows the direction of time: t = 1 is noise, t = 0 is the action.

The released weights use it; the π0 paper (arXiv 2410.24164, section IV) prints the reverse.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

Solver = Literal["euler", "heun", "midpoint"]

Velocity = Callable[[Tensor, Tensor], Tensor]
"""x_t [B, H, D] and flow time [B] -> velocity [B, H, D]; with a clean prefix the time is [B, H]."""

CLEAN = 0.0
"""Flow time of an action without noise."""

FLOW_SHARE, SHORTCUT_SHARE = 0.5, 0.5 * 0.1
"""Weights of the two errors that a one-step model learns from: alpha and (1 - alpha) * lambda of SnapFlow (arXiv
2604.05656).
"""


def sample_time(
    shape: tuple[int, ...], generator: Generator | None = None, device: torch.device | None = None
) -> Tensor:
    """Training times Beta(1.5, 1) * 0.999 + 0.001, in [0.001, 1]: more weight near the noise (π0 paper, appendix B).

    Beta(1.5, 1) has the distribution function x^1.5, so it is a uniform number to the power 2/3.
    """
    uniform = torch.rand(shape, generator=generator, device=device)
    return uniform ** (2.0 / 3.0) * 0.999 + 0.001


def fill_draws(
    actions: Tensor, noise: Tensor | None, time: Tensor | None, draws: int, generator: Generator | None = None
) -> tuple[Tensor, Tensor]:
    """The draws of a loss for actions [B, H, D]: noise [draws, B, H, D] and time [draws, B], drawn where not given.

    For one draw [B, H, D] and [B] will do. ValueError for another shape.
    """
    batch, device = actions.shape[0], actions.device
    if noise is None:
        noise = torch.randn((draws, *actions.shape), generator=generator, device=device)
    if time is None:
        time = sample_time((draws, batch), generator, device)
    for name, value, expected in (("noise", noise, (draws, *actions.shape)), ("time", time, (draws, batch))):
        if tuple(value.shape) != expected and (draws, *value.shape) != (1, *expected[1:]):
            raise ValueError(f"{name}: got shape {tuple(value.shape)}, expected {expected} (draws, batch, ...)")
    return noise.view(draws, *actions.shape), time.view(draws, batch)


def interpolate(actions: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """x_t on the straight path: actions and noise [..., H, D], time [...] or one per action [..., H] -> [..., H, D]."""
    time = time[..., None] if time.ndim + 1 == noise.ndim else time[..., None, None]
    return time * noise + (1 - time) * actions


def velocity_target(actions: Tensor, noise: Tensor) -> Tensor:
    """u_t = dx_t / dt, the same at all times of a path."""
    return noise - actions


@dataclass(frozen=True)
class ActionPrefix:
    """Actions that are settled before the chunk is made: the first length [B] of each chunk in actions [B, H, D]."""

    actions: Tensor
    length: Tensor

    @property
    def settled(self) -> Tensor:
        """[B, H] bool."""
        return first_actions(self.length, self.actions.shape[1])

    def start(self, noise: Tensor) -> Tensor:
        """The noise [B, H, D] with the settled actions in their places."""
        return torch.where(self.settled[..., None], self.actions.to(noise), noise)

    def keep(self, velocity: Velocity) -> Velocity:
        """The velocity at which settled actions are clean and stay what they are."""
        settled = self.settled

        def kept(x_t: Tensor, time: Tensor) -> Tensor:
            return velocity(x_t, time_per_action(time, settled)).masked_fill(settled[..., None], 0.0)

        return kept


def first_actions(length: Tensor, horizon: int) -> Tensor:
    """[...] numbers of actions -> [..., H] bool, true for the first so many."""
    return torch.arange(horizon, device=length.device) < length[..., None]


def time_per_action(time: Tensor, settled: Tensor) -> Tensor:
    """time [...] -> [..., H]: settled actions [..., H] are clean, the others at their chunk's time."""
    return time[..., None].masked_fill(settled, CLEAN)


def estimate_actions(x_t: Tensor, v_t: Tensor, time: Tensor) -> Tensor:
    """Where the straight path through x_t with velocity v_t [B, H, D] ends, time [B]: the estimated action sample."""
    return x_t - time[:, None, None] * v_t


def pulled_velocity(v_t: Tensor, pull: Tensor, time: Tensor, max_weight: float) -> Tensor:
    """The velocity whose path bends along `pull` [B, H, D], a direction in the space of x.

    Weight of the pull: (t^2 + (1 - t)^2) / (t (1 - t)), at most `max_weight` (arXiv 2506.07339, equations 2 and 4,
    where tau = 1 - t); without the maximum it is infinite at both ends.
    """
    rest = 1 - time
    weight = ((time.square() + rest.square()) / (time * rest).clamp(min=1e-12)).clamp(max=max_weight)
    return v_t - weight[:, None, None] * pull


def mean_error(error: Tensor, action_mask: Tensor | None) -> Tensor:
    """Mean over the action dimensions that count: error [N, B, H, D], action_mask [B, D] bool or None -> [N, B, H]."""
    if action_mask is None:
        return error.mean(dim=-1)
    return (error * action_mask[:, None]).sum(dim=-1) / action_mask.sum(dim=-1, keepdim=True).clamp(min=1)


@dataclass(frozen=True)
class Sampling:
    """How noise becomes actions: in how many steps, by which solver, with first actions that are settled, and along a
    velocity that `guide` changes.
    """

    num_steps: int
    solver: Solver = "euler"
    settled: ActionPrefix | None = None
    guide: Callable[[Velocity], Velocity] | None = None

    @property
    def is_one_step(self) -> bool:
        """From noise to actions with a single velocity."""
        return self.num_steps == 1 and self.solver == "euler"


def integrate(velocity: Velocity, noise: Tensor, num_steps: int, solver: Solver = "euler") -> Tensor:
    """Follows dx/dt = velocity(x, t) from the noise at t = 1 to the action sample at t = 0.

    noise [B, H, D] in float32; velocity takes x [B, H, D] and t [B]. Exactly `num_steps` equal steps. "euler" calls
    the velocity once a step (the last at t = 1 / num_steps), "midpoint" and "heun" twice, and are of second order.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    x, dt = noise.float(), -1.0 / num_steps
    for step in range(num_steps):
        time = 1.0 + step * dt
        v = velocity(x, _at(time, x))
        if solver == "midpoint":
            v = velocity(x + 0.5 * dt * v, _at(time + 0.5 * dt, x))
        elif solver == "heun":
            # max: the end of the last step is exactly 0 but for rounding
            v = 0.5 * (v + velocity(x + dt * v, _at(max(time + dt, 0.0), x)))
        elif solver != "euler":
            raise ValueError(f"unknown solver {solver!r}; expected euler, heun or midpoint")
        x = x + dt * v
    return x


def follow(velocity: Velocity, noise: Tensor, sampling: Sampling) -> Tensor:
    """`integrate` from noise, as `sampling` says: [B, H, D]."""
    if sampling.settled is not None:
        noise, velocity = sampling.settled.start(noise), sampling.settled.keep(velocity)
    if sampling.guide is not None:
        velocity = sampling.guide(velocity)
    return integrate(velocity, noise, sampling.num_steps, sampling.solver)


def _at(time: float, x: Tensor) -> Tensor:
    return torch.full(x.shape[:1], time, dtype=torch.float32, device=x.device)
