"""The arm's hand as LIBERO's controller moves it: towards a pose, or still."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator

import numpy as np

from pizero.envs.libero.geometry import Geometry
from pizero.envs.libero.simulator import Array
from pizero.envs.rotations import rotation_vector

OPEN, CLOSED = -1.0, 1.0
SLOW = 0.6
_STILL, _LITTLE = 15, 0.002  # a hand that comes no nearer than so many metres in so many steps stands still
_RADIUS = 0.1  # metres that a radian counts as
_FULL_STEP, _FULL_TURN = 0.05, 0.5  # metres and radians that an action of 1 asks for

Actions = Generator[Array]


class Hand:
    """Each action goes from where the hand is towards its next way point."""

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry

    @property
    def position(self) -> Array:
        """Between the finger tips [3], metres."""
        return self._geometry.hand()[0]

    def go(
        self,
        position: Array,
        turn: Array,
        gripper: float,
        near: float,
        *,
        most: int = 80,
        speed: float = 1.0,
        until: Callable[[], bool] = lambda: False,
    ) -> Generator[Array, None, bool]:
        """Ends when the hand is as near (metres) and turned; returns whether it is.

        It also ends when the hand stands still, after `most` steps or when `until` is true.
        """
        nearest = [math.inf] * (_STILL + 1)  # so far, after each step
        for _ in range(most):
            hand, turned = self._geometry.hand()
            move, rotate = position - hand, rotation_vector(turn @ turned.T)
            if np.linalg.norm(move) < near and np.linalg.norm(rotate) < 0.08:
                return True
            distance = float(np.linalg.norm(move) + _RADIUS * np.linalg.norm(rotate))
            nearest.append(min(nearest[-1], distance))
            still = nearest[-1] > nearest[-1 - _STILL] - _LITTLE
            if still or until():
                return False
            step = move / _FULL_STEP
            step *= speed / max(speed, float(np.abs(step).max()))
            yield np.array([*step, *(rotate / _FULL_TURN).clip(-1.0, 1.0), gripper])
        return False

    def hold(self, gripper: float, steps: int) -> Actions:
        """Stays where the hand is, and opens or closes."""
        for _ in range(steps):
            yield np.array([0.0] * 6 + [gripper])
