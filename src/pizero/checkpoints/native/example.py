"""The stored example of a checkpoint: an observation, the noise, and the action chunk that they must give."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from pizero.data.example import Example
from pizero.data.pipeline import Pipeline
from pizero.model.action_model import ActionSampler
from pizero.model.pi0_fast import Pi0Fast
from pizero.policy.sampling import sample_chunks
from pizero.types import LARGEST_LENGTH, RobotDict, UserError

TOLERANCE, TOLERANCE_LOW_PRECISION = 2e-3, 1e-1
"""Largest error, as a part of each action dimension's largest value: other kernels and devices stay well below."""


def make_example(
    model: ActionSampler | Pi0Fast,
    pipeline: Pipeline,
    observation: RobotDict,
    noise: NDArray[np.float32],
    num_steps: int | None = None,
) -> Example:
    """Runs the model once: what `save_checkpoint` stores. num_steps: None takes the model's own number."""
    num_steps = model.config.default_num_steps if num_steps is None else num_steps
    actions = sample_chunks(model, pipeline, [observation], noise[None], num_steps)[0]
    low = not _in_float32(model) or torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")
    return Example(observation, noise, actions, num_steps, low)


def reproduce(model: ActionSampler | Pi0Fast, pipeline: Pipeline, example: Example) -> float:
    """Runs the example again; the largest error, as a part of each action dimension's largest value.

    UserError when it is above the tolerance.
    """
    shape = model.config.action_horizon, model.config.action_dim
    if example.noise.shape != shape or example.noise.dtype != np.float32:
        raise UserError(f"the stored example's noise is {example.noise.shape}, this model takes {shape} of float32")
    if not 1 <= example.num_steps <= LARGEST_LENGTH:
        raise UserError(f"the stored example has {example.num_steps} steps of sampling; copy the checkpoint again")
    actions = sample_chunks(model, pipeline, [example.observation], example.noise[None], example.num_steps)[0]
    error = example.error(actions)
    tolerance = TOLERANCE_LOW_PRECISION if example.low_precision or not _in_float32(model) else TOLERANCE
    if not error <= tolerance:  # NaN fails as well
        raise UserError(
            f"the checkpoint's stored example no longer reproduces: relative error {error:.2g}, at most {tolerance:g} "
            "allowed; its weights, statistics or transforms were changed"
        )
    return error


def _in_float32(model: ActionSampler | Pi0Fast) -> bool:
    return not isinstance(model, torch.nn.Module) or all(p.dtype == torch.float32 for p in model.parameters())
