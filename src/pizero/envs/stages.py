"""A scripted hand on its way through stages, aimed at where the objects are at each step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pizero.envs.arm import Arm, Array
from pizero.envs.rotations import rotation, rotation_vector

Pose = tuple[Array, Array]
"""Position [3] of the point between the finger tips, metres, and rotation [3, 3] of the hand."""


@dataclass(frozen=True)
class Stage:
    """steps: how long it takes. pose: where the hand is to be at the end, asked at each step; None stays.

    ready: asked at the end; the hand waits there until it is true. missed: asked at each step; where it is true the
    hand begins again with its second stage.
    """

    steps: int
    gripper: float
    pose: Callable[[], Pose] | None = None
    ready: Callable[[], bool] | None = None
    missed: Callable[[], bool] | None = None


class Hand:
    """One arm on its way through the stages; the last one holds until the episode ends."""

    def __init__(self, arm: Arm, stages: list[Stage], gripper: float) -> None:
        """gripper: how far it is open at the start."""
        self._arm, self._stages = arm, stages
        self._stage = self._step = 0
        self._start = self._pose = arm.pose()
        self._gripper_start = self._gripper = gripper

    def act(self) -> Array:
        """Joint angles (rad) and gripper of the next step."""
        stage = self._stages[self._stage]
        if stage.missed is not None and stage.missed():
            self._begin(1)
        elif (
            self._step == stage.steps and self._stage + 1 < len(self._stages) and (stage.ready is None or stage.ready())
        ):
            self._begin(self._stage + 1)
        stage = self._stages[self._stage]
        self._step = min(self._step + 1, stage.steps)
        done = self._step / stage.steps
        self._gripper = self._gripper_start + done * (stage.gripper - self._gripper_start)
        if stage.pose is not None:
            self._pose = _between(self._start, stage.pose(), done * done * (3 - 2 * done))
        return np.array([*self._arm.solve(*self._pose), self._gripper])

    def _begin(self, stage: int) -> None:
        self._stage, self._step = stage, 0
        self._start, self._gripper_start = self._pose, self._gripper


def _between(start: Pose, end: Pose, done: float) -> Pose:
    """The pose at a fraction of the way, turning about one axis."""
    turn = rotation(done * rotation_vector(end[1] @ start[1].T)) @ start[1]
    return start[0] + done * (end[0] - start[0]), turn
