"""Scripted demonstrators of ALOHA's two tasks: stages of both hands, aimed at where the objects are at each step."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pizero.envs.aloha.scene import JOINTS, SIDES, START_JOINTS, Array, Scene
from pizero.envs.arm import Arm
from pizero.envs.rotations import rotation
from pizero.envs.stages import Hand, Pose, Stage

_TIPS = np.array([0.135, 0.0, 0.0])  # from the gripper's frame, x ahead, to between the finger tips, metres
_ABOVE = np.array([0.0, 0.0, 0.08])
_LOWEST = 0.02  # metres above the table
_SCATTER = 0.015  # metres beside the way, drawn by the episode; the next stage corrects it
_MEETING = np.array([0.0, 0.5, 0.25])  # of the hands, in front of both arms
_INSERTING = np.array([0.0, 0.5, 0.15])  # the middle between peg and socket
_HELD_WITHIN = 0.04  # metres from between the finger tips, and from the place where the other hand waits for it
_X = np.array([1.0, 0.0, 0.0])
_GRIPPER_AT_START = 0.1
_DOWN = 85.0  # degrees that hands point down to grasp


class AlohaDemonstrator:
    """Plays the stages of both hands; the last one holds until the episode ends.

    Each hand turns down while it is straight before its arm. Where a hand points as its forearm does, the joints beside
    them turn by up to half a circle for a small turn of the hand aside, in some episodes one way and in others the
    other, which no policy learns.
    """

    def __init__(self, scene: Scene, rng: np.random.Generator) -> None:
        """rng: draws how far the hands pass beside the straight way."""
        self._scene, self._rng = scene, rng
        plan = self._transfer() if scene.task == "transfer_cube" else self._insertion()
        self._hands = [
            Hand(_arm(scene, side), stages, _GRIPPER_AT_START) for side, stages in zip(SIDES, plan, strict=True)
        ]

    def act(self) -> NDArray[np.float32]:
        """The action [14] for the present state."""
        return np.concatenate([hand.act() for hand in self._hands]).astype(np.float32)

    def _transfer(self) -> tuple[list[Stage], list[Stage]]:
        """Stages of the left and the right hand. The left one is rolled, so that its fingers pass the other's."""
        left, right = _turn("left", pitch=0, roll=90), _turn("right", pitch=0)
        near, no_cube = _MEETING + self._beside() - 0.10 * _X, self._missed("right", "cube")
        return [
            Stage(100, 1.0, lambda: (near, left)),
            Stage(60, 1.0, ready=lambda: self._is_at("cube", _MEETING)),
            Stage(30, 1.0, lambda: (self._position("cube") - 0.005 * _X, left)),
            Stage(20, 0.0),
        ], [
            *self._grasp("right", "cube"),
            Stage(40, 0.0, lambda: self._carry("right", "cube", _MEETING), missed=no_cube),
            Stage(30, 0.0, lambda: self._carry("right", "cube", _MEETING, turn=right), missed=no_cube),
        ]  # fmt: skip

    def _insertion(self) -> tuple[list[Stage], list[Stage]]:
        """Both objects are grasped from above, brought in line, and the peg is pushed in up to the pin."""
        waiting, before, inside = _INSERTING - 0.06 * _X, _INSERTING + 0.11 * _X, 0.07 * _X
        no_socket, no_peg = self._missed("left", "socket"), self._missed("right", "peg")
        return [
            *self._grasp("left", "socket"),
            Stage(50, 0.0, lambda: self._carry("left", "socket", waiting), missed=no_socket),
        ], [
            *self._grasp("right", "peg"),
            Stage(50, 0.0, lambda: self._carry("right", "peg", before), missed=no_peg),
            Stage(
                30, 0.0, lambda: self._carry("right", "peg", before), ready=lambda: self._is_at("socket", waiting),
                missed=no_peg,
            ),
            Stage(90, 0.0, lambda: self._carry("right", "peg", self._position("socket") + inside), missed=no_peg),
        ]  # fmt: skip

    def _grasp(self, side: str, name: str) -> list[Stage]:
        """From above, once the hand has turned down where it is at the start. The tips of the fingers stay off the
        table, and close slowly, as the simulated ones do.
        """
        beside, turn, start = self._beside(), _turn(side, _DOWN), _arm(self._scene, side).pose()[0]

        def around() -> Array:
            return np.maximum(self._position(name), (-np.inf, -np.inf, _LOWEST))

        return [
            Stage(20, 0.4, lambda: (start, turn)),
            Stage(40, 1.0, lambda: (around() + _ABOVE + beside, turn)),
            Stage(30, 1.0, lambda: (around(), turn)),
            Stage(35, 0.0),
        ]

    def _carry(self, side: str, name: str, position: Array, turn: Array | None = None) -> Pose:
        """The hand's pose that brings what it holds to a position: upright and along x, unless a turn is given."""
        tips, held = self._hand(side)
        at, lies = self._scene.object_pose(name)
        return position + tips - at, lies.T @ held if turn is None else turn

    def _missed(self, side: str, name: str) -> Callable[[], bool]:
        """Whether an object is not between the finger tips."""
        return lambda: not self._is_at(name, self._hand(side)[0])

    def _is_at(self, name: str, position: Array) -> bool:
        return bool(np.linalg.norm(self._position(name) - position) < _HELD_WITHIN)

    def _hand(self, side: str) -> Pose:
        """Where the point between a hand's finger tips is, and how the hand is turned."""
        body = self._scene.data.body(f"vx300s_{side}/gripper_link")
        turned = body.xmat.reshape(3, 3)
        return body.xpos + turned @ _TIPS, turned

    def _position(self, name: str) -> Array:
        return self._scene.object_pose(name)[0]

    def _beside(self) -> Array:
        return np.array([*self._rng.uniform(-_SCATTER, _SCATTER, 2), 0.0])


def _arm(scene: Scene, side: str) -> Arm:
    joints = [f"vx300s_{side}/{name}" for name in JOINTS]
    return Arm(scene.model, f"vx300s_{side}/gripper_link", _TIPS, joints, START_JOINTS)


def _turn(side: str, pitch: float, roll: float = 0.0) -> Array:
    """Rotation [3, 3] of a gripper that points to the other arm, `pitch` degrees down, rolled about its own axis."""
    facing = rotation(np.array([0.0, 0.0, math.pi if side == "right" else 0.0]))
    return facing @ rotation(np.array([0.0, math.radians(pitch), 0.0])) @ rotation(math.radians(roll) * _X)
