"""Rotations as matrices and as axis times angle, by MuJoCo's functions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pizero.envs.offscreen import import_mujoco

Array = NDArray[np.float64]


def rotation_vector(turn: Array) -> Array:
    """Axis times angle [3] of a rotation [3, 3]."""
    mujoco = import_mujoco()
    quaternion, vector = np.zeros(4), np.zeros(3)
    mujoco.mju_mat2Quat(quaternion, turn.ravel())
    mujoco.mju_quat2Vel(vector, quaternion, 1.0)
    return vector


def rotation(vector: Array) -> Array:
    """The inverse of `rotation_vector`."""
    mujoco = import_mujoco()
    angle = float(np.linalg.norm(vector))
    if angle < 1e-9:
        return np.eye(3)
    quaternion, turn = np.zeros(4), np.zeros(9)
    mujoco.mju_axisAngle2Quat(quaternion, vector / angle, angle)
    mujoco.mju_quat2Mat(turn, quaternion)
    return turn.reshape(3, 3)
