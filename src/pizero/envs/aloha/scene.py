"""The physics of gym-aloha's two scenes: starts, control, reward and state, from its model files alone."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pizero.envs.offscreen import import_mujoco
from pizero.types import UserError

Array = NDArray[np.float64]

SIDES = ("left", "right")
JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")
START_JOINTS = np.array([0.0, -0.96, 1.16, 0.0, -0.3, 0.0])
_START_FINGER = 0.02239
_CLOSED, _OPEN = 0.01844, 0.058  # position of a finger in metres, which the gripper's 0 and 1 stand for
_SUBSTEPS = 10  # of 2 ms
_ON_TABLE = 0.05  # height of the objects' middles at the start, metres; they fall from there
_BOUNDS = {
    "transfer_cube": {"cube": ((0.0, 0.4), (0.2, 0.6))},
    "insertion": {"peg": ((0.1, 0.4), (0.2, 0.6)), "socket": ((-0.2, 0.4), (-0.1, 0.6))},
}
"""By task and object, in the order of the simulator's state: the corners (x, y) of where it may start, metres."""
_SOCKET = ("socket-1", "socket-2", "socket-3", "socket-4")
SUCCESS = 4.0


class Scene:
    """One task's world. Joint angles in radians, positions in metres; a gripper is 0 closed and 1 open."""

    def __init__(self, task: str) -> None:
        self.task = task
        self.model: Any = load_model(task)
        self.data: Any = import_mujoco().MjData(self.model)

    def reset(self, seed: int) -> None:
        """The start that gym-aloha has for this seed."""
        mujoco = import_mujoco()
        rng = np.random.RandomState(seed)
        mujoco.mj_resetData(self.model, self.data)
        arms = np.concatenate([START_JOINTS, (_START_FINGER, -_START_FINGER)] * 2)
        poses = [
            (*rng.uniform((*low, _ON_TABLE), (*high, _ON_TABLE)), 1.0, 0.0, 0.0, 0.0)
            for low, high in _BOUNDS[self.task].values()
        ]
        self.data.qpos[:] = np.concatenate([arms, *poses])
        self.data.ctrl[:] = arms
        mujoco.mj_forward(self.model, self.data)

    def step(self, action: Array) -> None:
        """Goes towards targets [14] for 0.02 s."""
        mujoco = import_mujoco()
        for start, arm in zip((0, 8), np.split(action, 2), strict=True):
            finger = _CLOSED + arm[6] * (_OPEN - _CLOSED)
            self.data.ctrl[start : start + 8] = (*arm[:6], finger, -finger)
        mujoco.mj_step(self.model, self.data, _SUBSTEPS)
        mujoco.mj_step1(self.model, self.data)  # contacts and positions are then those of the new state

    def state(self) -> Array:
        """Joint angles and gripper [14], left arm first."""
        arms = self.data.qpos[:16].reshape(2, 8)
        return np.concatenate([(*arm[:6], (arm[6] - _CLOSED) / (_OPEN - _CLOSED)) for arm in arms])

    def object_pose(self, name: str) -> tuple[Array, Array]:
        """Position [3] and rotation [3, 3] of an object."""
        body = self.data.body({"cube": "box"}.get(name, name))
        return body.xpos.copy(), body.xmat.reshape(3, 3).copy()

    def reward(self) -> float:
        """gym-aloha's, 0 to 4, by what touches what; 4 is success.

        transfer_cube: the right finger touches the cube (1) and it is lifted (2); the left one touches it (3) and it is
        lifted (4). insertion: both are touched (1) and lifted (2), the peg touches the socket in the air (3), and the
        pin inside it (4).
        """
        touching = self._contacts()
        left, right, on_table = (
            {name for name in self._objects if frozenset((name, other)) in touching}
            for other in ("vx300s_left/10_left_gripper_finger", "vx300s_right/10_right_gripper_finger", "table")
        )
        if self.task == "transfer_cube":
            if left:
                return 3.0 if on_table else 4.0
            return 0.0 if not right else 1.0 if on_table else 2.0
        if frozenset(("red_peg", "pin")) in touching:
            return 4.0
        if not on_table and any(frozenset(("red_peg", side)) in touching for side in _SOCKET):
            return 3.0
        both = bool(left.intersection(_SOCKET)) and "red_peg" in right
        return 0.0 if not both else 1.0 if on_table else 2.0

    @property
    def _objects(self) -> tuple[str, ...]:
        return ("red_box",) if self.task == "transfer_cube" else ("red_peg", *_SOCKET)

    def _contacts(self) -> set[frozenset[str]]:
        """Pairs of geoms that touch."""
        pairs = self.data.contact.geom[: self.data.ncon]
        names = _geom_names(self.task)
        return {frozenset((names[first], names[second])) for first, second in pairs}


@functools.cache
def load_model(task: str) -> Any:
    """The compiled model of a task, shared by all scenes, which do not change it. UserError without gym-aloha."""
    return import_mujoco().MjModel.from_xml_path(str(assets() / f"bimanual_viperx_{task}.xml"))


def action_range() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Least and greatest targets, [14] each."""
    limits = load_model("transfer_cube").actuator_ctrlrange.reshape(2, 8, 2)[:, :7].astype(np.float32)
    limits[:, 6] = (0.0, 1.0)
    low, high = limits.reshape(14, 2).T
    return low, high


def assets() -> Path:
    """gym-aloha's folder of model files, found without importing it, as it would import dm_control."""
    found = importlib.util.find_spec("gym_aloha")
    if found is None or found.origin is None or importlib.util.find_spec("mujoco") is None:
        raise UserError("gym-aloha is not installed; install the aloha extra: pip install 'pizero[aloha]'")
    return Path(found.origin).parent / "assets"


@functools.cache
def _geom_names(task: str) -> tuple[str, ...]:
    model = load_model(task)
    return tuple(model.geom(index).name for index in range(model.ngeom))
