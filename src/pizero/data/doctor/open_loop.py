"""Open-loop replay: what a policy would have done where a demonstrator acted, in the robot's units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pizero.data.doctor.grippers import gripper_dimensions
from pizero.data.doctor.signals import two_ends
from pizero.data.norm_stats import NEAR_CONSTANT

EVENT_WINDOW = 3
"""Frames by which a gripper event may come earlier or later."""


@dataclass(frozen=True)
class Replay:
    """recorded, predicted: [N, H, d]; padded [N, H] is true past an episode's end. frames [N]: where chunks start.
    subtasks: the text that each chunk is for, of a policy that writes one, else empty.
    """

    frames: NDArray[np.int64]
    recorded: NDArray[np.float32]
    predicted: NDArray[np.float32]
    padded: NDArray[np.bool_]
    subtasks: tuple[str, ...] = ()


def summarize(found: Replay, names: Sequence[str] | None = None) -> dict[str, Any]:
    """JSON: errors per dimension, and what a constant action would reach.

    error: mean absolute, robot units. spread: standard deviation of the recorded actions. relative_error: error by
    spread. constant_error: of always giving the median recorded action, by spread; a policy must be below. by_step:
    relative error of each step of the chunk, mean over the moving dimensions. grippers: by dimension, see `_gripper`.
    names: of the action dimensions, which show what is no gripper.
    """
    inside = ~found.padded
    recorded, predicted = found.recorded[inside], found.predicted[inside]
    error = np.abs(predicted - recorded).mean(axis=0)
    spread = recorded.std(axis=0)
    scale = np.where(spread >= NEAR_CONSTANT, spread, np.nan)
    constant = np.abs(recorded - np.median(recorded, axis=0)).mean(axis=0)
    steps = np.abs(found.predicted - found.recorded) / scale
    steps[found.padded] = np.nan
    moving = np.flatnonzero(spread >= NEAR_CONSTANT).tolist()
    return {
        "chunks": len(found.frames),
        "error": error.tolist(),
        "spread": spread.tolist(),
        "relative_error": [_number(value) for value in error / scale],
        "constant_error": [_number(value) for value in constant / scale],
        "by_step": [_number(np.nanmean(step[:, moving])) if moving else None for step in np.moveaxis(steps, 1, 0)],
        "grippers": {str(dim): _gripper(found, dim, recorded) for dim in gripper_dimensions(recorded, names)},
    }  # fmt: skip


def _gripper(found: Replay, dim: int, recorded: NDArray[np.float32]) -> dict[str, Any]:
    """same_side: share of frames in which both are on one side of the middle. events: recorded openings and closings
    within a chunk; found: those that the prediction has within EVENT_WINDOW frames; extra: predicted ones without any.
    """
    ends = two_ends(recorded[:, dim])
    assert ends is not None  # gripper_dimensions found them
    middle = sum(ends) / 2
    actual, guess = found.recorded[..., dim] > middle, found.predicted[..., dim] > middle
    inside = ~found.padded
    events = hits = extra = 0
    for row in range(len(actual)):
        length = int(inside[row].sum())
        real, made = _events(actual[row, :length]), _events(guess[row, :length])
        events += len(real)
        hits += sum(any(_near(event, other) for other in made) for event in real)
        extra += sum(not any(_near(event, other) for other in real) for event in made)
    return {"same_side": float((actual == guess)[inside].mean()), "events": events, "found": hits, "extra": extra}


def _near(first: tuple[int, bool], second: tuple[int, bool]) -> bool:
    """Whether two gripper events are one: of one direction, at most EVENT_WINDOW frames apart."""
    return first[1] == second[1] and abs(first[0] - second[0]) <= EVENT_WINDOW


def _events(closed: NDArray[np.bool_]) -> Sequence[tuple[int, bool]]:
    """(step, to the upper side) of each change."""
    changes = np.flatnonzero(closed[1:] != closed[:-1]) + 1
    return [(int(step), bool(closed[step])) for step in changes]


def _number(value: Any) -> float | None:
    return None if not np.isfinite(value) else round(float(value), 4)
