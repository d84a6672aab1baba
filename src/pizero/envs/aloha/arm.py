"""Inverse kinematics of one ALOHA arm: joint angles for a pose of the point between its finger tips."""

from __future__ import annotations

import numpy as np

from pizero.envs.aloha.scene import JOINTS, START_JOINTS, Array, Scene
from pizero.envs.offscreen import import_mujoco
from pizero.envs.rotations import rotation_vector

TIPS = np.array([0.135, 0.0, 0.0])  # from the gripper's frame to between the finger tips, metres
_TURN_WEIGHT = 0.3  # a radian counts as so many metres
_DAMPING = 1e-4
_ITERATIONS = 20
_LARGEST_STEP = 0.2  # rad
_CLOSE_ENOUGH = 3e-4


class Arm:
    """Damped least squares, from the last solution on, so that consecutive poses give a smooth motion."""

    def __init__(self, scene: Scene, side: str) -> None:
        mujoco = import_mujoco()
        self._model = scene.model
        self._data = mujoco.MjData(scene.model)  # for the arm alone; where the objects lie does not matter
        self._body = scene.model.body(f"vx300s_{side}/gripper_link").id
        joints = [scene.model.joint(f"vx300s_{side}/{name}") for name in JOINTS]
        self._columns = np.array([joint.qposadr[0] for joint in joints])
        self._low, self._high = np.array([joint.range for joint in joints]).T
        self.joints = START_JOINTS.copy()

    def pose(self) -> tuple[Array, Array]:
        """Position [3] between the finger tips and rotation [3, 3] of the gripper (x ahead) for `joints`."""
        mujoco = import_mujoco()
        self._data.qpos[self._columns] = self.joints
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_comPos(self._model, self._data)
        turn = self._data.xmat[self._body].reshape(3, 3).copy()
        return self._data.xpos[self._body] + turn @ TIPS, turn

    def solve(self, position: Array, turn: Array) -> Array:
        """Joint angles [6] for a pose of the world, as near to it as the arm comes."""
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
