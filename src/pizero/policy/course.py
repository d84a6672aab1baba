"""A chunk with its way there: x_t of every step from noise to actions, in robot units, for people to watch."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pizero.baseline.policy import DiffusionPolicy
from pizero.engine.fast_sampler import FastSampler
from pizero.engine.text_writer import AfterText
from pizero.model.flow_matching import Velocity
from pizero.model.pi0 import Pi0
from pizero.policy.policy import ModelPolicy
from pizero.policy.sampling import device_of, sampler_of
from pizero.policy.subtasks import with_subtasks
from pizero.types import RobotDict


@dataclass(frozen=True)
class Course:
    """actions: [steps + 1, H, d] in robot units, the last is the chunk; [1, H, d] of a model that writes tokens.
    subtask: the text that they are for. milliseconds: of the whole call.
    """

    actions: NDArray[np.float32]
    subtask: str
    milliseconds: float

    @property
    def chunk(self) -> NDArray[np.float32]:
        return self.actions[-1]


def watcher(seen: list[torch.Tensor]) -> Callable[[Velocity], Velocity]:
    """A guide that changes nothing, and keeps the x_t of every call."""

    def watched(velocity: Velocity) -> Velocity:
        def watch(x_t: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            seen.append(x_t)
            return velocity(x_t, time)

        return watch

    return watched


def sample_course(
    policy: ModelPolicy, observation: RobotDict, noise: NDArray[np.float32], num_steps: int | None = None
) -> Course:
    """noise [H, action_dim]; num_steps: None takes the policy's own number. The chunk is that of `infer`.

    UserError as for `infer`; ValueError for a number of steps that the model cannot take.
    """
    start = time.perf_counter()
    pipeline, sampler = policy.pipeline, sampler_of(policy.model, policy.pipeline)
    device, steps = device_of(sampler), num_steps or policy.num_steps
    if policy.takes_subtask:
        (observation,), sampler = with_subtasks(sampler, pipeline, [observation], device, {})
    inputs = pipeline.observation(pipeline.robot_inputs([observation]), device)
    seen: list[torch.Tensor] = []

    options: dict[str, Any] = {"noise": torch.from_numpy(noise)[None].to(device)}  # pyright: ignore[reportUnknownMemberType]
    if isinstance(sampler, Pi0 | FastSampler | AfterText):
        actions = sampler.sample_actions(inputs, num_steps=steps, guide=watcher(seen), **options)
    elif isinstance(sampler, DiffusionPolicy):
        handle = sampler.unet.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        try:
            actions = sampler.sample_actions(inputs, num_steps=steps, **options)
        finally:
            handle.remove()
    else:
        actions = sampler.sample_actions(inputs, **options)
    x = torch.cat([*seen, actions])[:, sampler.config.past_actions :].float().cpu().numpy()
    states = np.repeat(np.asarray(observation["state"])[None], len(x), axis=0)
    in_units = pipeline.robot_actions(x, states)
    return Course(in_units, str(observation.get("subtask") or ""), 1000 * (time.perf_counter() - start))
