"""The flow from noise to an action chunk: its course, how straight it is, and how many steps it needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pizero.baseline.policy import DiffusionPolicy
from pizero.model.flow_matching import integrate
from pizero.model.layers import AdaptiveRMSNorm
from pizero.model.pi0 import Pi0
from pizero.types import Observation, UserError

Course: TypeAlias = Callable[[Tensor, int], NDArray[np.float32]]
"""Noise [N, H, D] and a number of steps -> x_t [steps + 1, N, H, D], from the noise to the actions."""

NEEDED = 0.02
"""Error in normalised units that counts as none: one fiftieth of the scale on which actions are about 1."""


@dataclass(frozen=True)
class Straightness:
    """Of N courses in fine steps. times [K]. deviation [K]: distance of the velocity from the straight one, in shares
    of its length, so 0 everywhere for a straight flow (its mean square is the straightness of arXiv 2209.03003). turn
    [K - 1]: degrees between one velocity and the next. length: of the path, in shares of the straight distance.
    """

    times: NDArray[np.float32]
    deviation: NDArray[np.float32]
    turn: NDArray[np.float32]
    length: float


@dataclass(frozen=True)
class StepErrors:
    """errors: by number of steps, the root mean square distance from the chunk of `reference` steps, in normalised
    units. spread: the same distance between chunks of different noise. needed: the fewest of these steps below NEEDED,
    None where there is none.
    """

    reference: int
    errors: dict[int, float]
    spread: float
    needed: int | None


def course_of(model: Pi0 | DiffusionPolicy, observation: Observation) -> Course:
    """The observation is encoded once for a π0."""
    return _flow_course(model, observation) if isinstance(model, Pi0) else _unet_course(model, observation)


def _flow_course(model: Pi0, observation: Observation) -> Course:
    with torch.no_grad():
        cache = model.prefill(observation)

    @torch.no_grad()
    def course(noise: Tensor, steps: int) -> NDArray[np.float32]:
        state = None if observation.state is None else observation.state.repeat(len(noise), 1)
        seen: list[Tensor] = []

        def velocity(x: Tensor, time: Tensor) -> Tensor:
            seen.append(x)
            return model.decode(cache, state, x, time)

        seen.append(integrate(velocity, noise, steps))
        return torch.stack(seen).float().cpu().numpy()

    return course


def _unet_course(model: DiffusionPolicy, observation: Observation) -> Course:
    @torch.no_grad()
    def course(noise: Tensor, steps: int) -> NDArray[np.float32]:
        seen: list[Tensor] = []
        watching = model.unet.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            several = observation[torch.zeros(len(noise), dtype=torch.long)]
            seen.append(model.sample_actions(several, num_steps=steps, noise=noise))
        finally:
            watching.remove()
        return torch.stack(seen).float().cpu().numpy()

    return course


def straightness(course: Course, noise: Tensor, steps: int, dims: int) -> Straightness:
    """Of the first `dims` dimensions, those of the robot, along `steps` equal steps."""
    x = course(noise, steps)[..., :dims].astype(np.float64)
    x = x.reshape(steps + 1, len(noise), -1)
    chord, moves = x[-1] - x[0], np.diff(x, axis=0) * steps
    size = np.linalg.norm(chord, axis=-1).clip(1e-12)
    lengths = np.linalg.norm(moves, axis=-1).clip(1e-12)
    cosine = (moves[1:] * moves[:-1]).sum(axis=-1) / (lengths[1:] * lengths[:-1])
    return Straightness(
        times=(1 - np.arange(steps) / steps).astype(np.float32),
        deviation=(np.linalg.norm(moves - chord, axis=-1) / size).mean(axis=1).astype(np.float32),
        turn=np.degrees(np.arccos(cosine.clip(-1, 1))).mean(axis=1).astype(np.float32),
        length=float((lengths.mean(axis=0) / size).mean()),
    )


def step_errors(course: Course, noise: Tensor, counts: list[int], reference: int, dims: int) -> StepErrors:
    """counts: numbers of steps, rising, all below `reference`; noise [N, H, D] with N of at least 2."""
    ends = {steps: course(noise, steps)[-1][..., :dims].astype(np.float64) for steps in (*counts, reference)}
    best = ends[reference]
    errors = {steps: float(np.sqrt(np.square(ends[steps] - best).mean())) for steps in counts}
    between = best - np.roll(best, 1, axis=0)
    needed = next((steps for steps in counts if all(errors[n] <= NEEDED for n in counts if n >= steps)), None)
    return StepErrors(reference, errors, float(np.sqrt(np.square(between).mean())), needed)


def step_counts(model: Pi0 | DiffusionPolicy, reference: int) -> tuple[list[int], int]:
    """Numbers of steps to compare, and the reference: for DDIM divisors of the steps of its training."""
    usual = [1, 2, 3, 4, 5, 7, 10, 15, 20]
    if isinstance(model, DiffusionPolicy) and model.schedule is not None:
        whole = model.config.diffusion_steps
        return [steps for steps in (1, 2, 4, 5, 10, 20, 25, 50) if whole % steps == 0 and steps < whole], whole
    return usual, reference


@torch.no_grad()
def adaptive_gates(model: Pi0, times: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """Mean absolute gate of each layer's residuals over flow time: "attention" and "mlp", both [layers, times].

    UserError for a model without adaptive norms. The gates depend on the flow time alone, not on the observation.
    """
    if not model.config.adaptive:
        raise UserError("this model has no adaptive norms: its time is joined with the actions")
    device = model.action_in_proj.weight.device
    time = torch.from_numpy(times).to(device)
    noise = torch.zeros(len(times), model.config.action_horizon, model.config.action_dim, device=device)
    state = torch.zeros(len(times), model.config.state_dim, device=device) if model.config.has_state_token else None
    conditioning = model.embed_suffix(state, noise, time)[2]

    def gate(norm: AdaptiveRMSNorm) -> NDArray[np.float32]:
        some = norm.modulation.weight.new_zeros(len(times), 1, model.config.expert.width)
        return norm(some, conditioning)[1].abs().mean(dim=(1, 2)).float().cpu().numpy()

    blocks = [layer.expert for layer in cast("list[Any]", list(model.transformer.layers))]
    return {
        "attention": np.stack([gate(block.attention_norm) for block in blocks]),
        "mlp": np.stack([gate(block.mlp_norm) for block in blocks]),
    }
