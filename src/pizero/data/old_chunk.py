"""What an observation brings of the chunk that plays, for whoever continues it (`policy/real_time.py`)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pizero.data.pipeline import Pipeline
from pizero.data.robot_values import FAR, float_array, whole_number
from pizero.types import RobotDict, UserError


class OldChunk(NamedTuple):
    """actions [H, action_dim] as the model has them, zeros after the first `left`; the first `delay` will be played
    before the answer arrives.
    """

    actions: NDArray[np.float32]
    left: int
    delay: int


def old_chunk(observation: RobotDict, pipeline: Pipeline, horizon: int) -> OldChunk:
    """Of "previous_actions" [n, robot_action_dim], in robot units: what is left of the chunk that plays, this control
    step's action first; and of "inference_delay", 0 if absent. UserError names what does not fit a chunk of `horizon`.
    """
    given = float_array("previous_actions", observation["previous_actions"])
    width = pipeline.robot_action_dim
    if given.ndim != 2 or not 0 < len(given) <= horizon or given.shape[1] != width:
        raise UserError(f"previous_actions: got shape {given.shape}, expected (1 to {horizon}, {width})")
    if not np.isfinite(given).all():
        raise UserError("previous_actions: NaN or infinite; expected numbers")
    actions = np.zeros((horizon, pipeline.action_dim), np.float32)
    state = np.asarray(observation.get("state"))
    actions[: len(given)] = pipeline.model_actions(given[None], state[None])[0]
    if not (np.abs(actions) <= FAR).all():
        raise UserError("previous_actions: they lie further from the training data than any robot's")
    delay = whole_number("inference_delay", observation.get("inference_delay", 0), "control steps")
    return OldChunk(actions, len(given), min(delay, len(given)))
