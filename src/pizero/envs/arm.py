"""Inverse kinematics of one arm of a MuJoCo model: joint angles for a pose of the point that it works with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pizero.envs.offscreen import import_mujoco
from pizero.envs.rotations import rotation_vector

Array = NDArray[np.float64]

_TURN_WEIGHT = 0.3  # a radian counts as so many metres
_DAMPING = 1e-4
_ITERATIONS = 20
_LARGEST_STEP = 0.2  # rad
_CLOSE_ENOUGH = 3e-4


class Arm:
    """Damped least squares, from the last solution on, so that consecutive poses give a smooth motion."""

    def __init__(self, model: Any, hand: str, tips: Array, joints: Sequence[str], start: Array) -> None:
        """hand: a body. tips: from its frame to the point that is moved [3], metres. start: of the joints, rad."""
        self._model = model
        self._data = import_mujoco().MjData(model)  # for the arm alone; where the objects lie does not matter
        self._body, self._tips = model.body(hand).id, tips
        found = [model.joint(name) for name in joints]
        self._angles = np.array([joint.qposadr[0] for joint in found])
        self._columns = np.array([joint.dofadr[0] for joint in found])
        self._low, self._high = np.array([joint.range for joint in found]).T
        self.joints = start.copy()

    def pose(self) -> tuple[Array, Array]:
        """Position [3] of the point and rotation [3, 3] of the hand for `joints`."""
        mujoco = import_mujoco()
        self._data.qpos[self._angles] = self.joints
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_comPos(self._model, self._data)
        turn = self._data.xmat[self._body].reshape(3, 3).copy()
        return self._data.xpos[self._body] + turn @ self._tips, turn

    def solve(self, position: Array, turn: Array) -> Array:
        """Joint angles for a pose of the world, as near to it as the arm comes."""
        mujoco = import_mujoco()
        weights = np.repeat((1.0, _TURN_WEIGHT), 3)
        jacobian = np.zeros((6, self._model.nv))
        for _ in range(_ITERATIONS):
            now, turned = self.pose()
            error = np.concatenate([position - now, rotation_vector(turn @ turned.T)]) * weights
            if np.abs(error).max() < _CLOSE_ENOUGH:
                break
            mujoco.mj_jac(self._model, self._data, jacobian[:3], jacobian[3:], now, self._body)
            arm = jacobian[:, self._columns] * weights[:, None]
            step = arm.T @ np.linalg.solve(arm @ arm.T + _DAMPING * np.eye(6), error)
            step = step.clip(-_LARGEST_STEP, _LARGEST_STEP)
            self.joints = (self.joints + step).clip(self._low, self._high)
        return self.joints.copy()
