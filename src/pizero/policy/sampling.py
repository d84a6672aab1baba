"""The one way from raw observations through a model and back to actions in robot units."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pizero.data.pipeline import Pipeline
from pizero.engine.fast_writer import FastWriter
from pizero.model.action_model import ActionSampler
from pizero.model.pi0_fast import Pi0Fast
from pizero.policy.token_sampler import TokenSampler
from pizero.types import RobotDict


def sampler_of(model: ActionSampler | Pi0Fast | FastWriter, pipeline: Pipeline) -> ActionSampler:
    """The model itself, or around one that writes tokens what makes actions of them."""
    return TokenSampler(model, pipeline) if isinstance(model, Pi0Fast | FastWriter) else model


def sample_chunks(
    model: ActionSampler | Pi0Fast | FastWriter,
    pipeline: Pipeline,
    observations: Sequence[RobotDict],
    noise: NDArray[np.float32],
    num_steps: int,
    device: str | torch.device | None = None,
    timing: dict[str, float] | None = None,
    **options: Any,
) -> NDArray[np.float32]:
    """Robot dictionaries and noise [B, H, action_dim] -> actions [B, H, robot_action_dim] in robot units, float32.

    Values are checked, and the batch is one model call.
    Actions that lie before the newest observation are dropped: H becomes H - `past_actions`.
    device: where a model is that does not know it, as for `device_of`. timing: gets the milliseconds of each stage.
    options: of `sample_actions`.
    """
    marks = [time.perf_counter()]
    model = sampler_of(model, pipeline)
    device = device_of(model, device)
    observation = pipeline.observation(pipeline.robot_inputs(observations), device)
    marks.append(time.perf_counter())
    noises = torch.from_numpy(noise).to(device)  # pyright: ignore[reportUnknownMemberType]
    actions = model.sample_actions(observation, num_steps=num_steps, noise=noises, **options)
    states = np.stack([np.asarray(raw["state"]) for raw in observations])
    chunk = actions[:, model.config.past_actions :].float().cpu().numpy()
    marks.append(time.perf_counter())
    in_units = pipeline.robot_actions(chunk, states)
    marks.append(time.perf_counter())
    if timing is not None:
        for stage, start, end in zip(("inputs_ms", "model_ms", "outputs_ms"), marks, marks[1:], strict=False):
            timing[stage] = 1000 * (end - start)
    return in_units


def device_of(model: ActionSampler, otherwise: str | torch.device | None = None) -> torch.device:
    """Where a module's parameters are, or what an attribute `device` says; `otherwise`, or the host, for a model with
    neither.
    """
    device = getattr(model, "device", None)
    if device is None and isinstance(model, torch.nn.Module):
        device = next((parameter.device for parameter in model.parameters()), None)
    return torch.device(device or otherwise or "cpu")


def episode_noise(seed: int, chunk: int, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Noise [H, action_dim] of the chunk of this number in the episode of this seed, whatever runs beside it."""
    return np.random.default_rng([seed, chunk]).standard_normal(shape, np.float32)
