"""The scripted demonstrator of the SO-101's tasks: stages of the hand, aimed at where cube and plate are."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from pizero.envs.arm import Arm
from pizero.envs.offscreen import import_mujoco
from pizero.envs.rotations import rotation
from pizero.envs.so101.scene import HAND, JOINTS, TIPS, Array, Scene, from_radians
from pizero.envs.stages import Hand, Pose, Stage

_OPEN, _CLOSED = 0.65, 0.1  # of the gripper's opening; the cube holds the jaws at 0.33
_ABOVE = 0.075  # metres above the table, the point between the jaws
_GRASP = 0.026
_CLEAR = np.array([-0.008, 0.0])  # metres from the fixed jaw to the cube on the way down
_HIGH = 0.13
_SCATTER = 0.015  # metres beside the way, drawn by the episode; the next stage corrects it
_TILT = math.radians(30.0)  # of the hand away from straight down, where the wrist could not bend as far


class SO101Demonstrator:
    """Grasps the cube from above and lifts it, or puts it on the plate; then it holds until the episode ends."""

    def __init__(self, scene: Scene, task: str, rng: np.random.Generator) -> None:
        """rng: draws how far the hand passes beside the straight way."""
        self._scene, self._beside = scene, rng.uniform(-_SCATTER, _SCATTER, (2, 2))
        state = np.radians(scene.state()[:5])
        self._hand = Hand(Arm(scene.model, HAND, TIPS, JOINTS, state), self._stages(task), scene.state()[5] / 100)
        self._bias = import_mujoco().MjData(scene.model)

    def act(self) -> NDArray[np.float32]:
        """The action [6] for the present state."""
        command = self._hand.act()
        targets = from_radians(np.array([*self._against_gravity(command[:5]), 0.0]))
        return np.array([*targets[:5], 100 * command[5]], np.float32)

    def _stages(self, task: str) -> list[Stage]:
        scene = self._scene
        grasp = [
            Stage(15, _OPEN, lambda: _pose(scene.cube()[:2] + _CLEAR + self._beside[0], _ABOVE, _TILT)),
            Stage(6, _OPEN, lambda: _pose(scene.cube()[:2] + _CLEAR, 0.06, _TILT / 2)),
            Stage(8, _OPEN, lambda: _pose(scene.cube()[:2] + _CLEAR, _GRASP)),
            Stage(7, _CLOSED),
        ]
        if task == "lift_cube":
            return [*grasp, Stage(15, _CLOSED, lambda: _pose(scene.cube()[:2], _HIGH, 1.5 * _TILT))]
        return [
            *grasp,
            Stage(10, _CLOSED, lambda: _pose(scene.cube()[:2], 0.095, _TILT)),
            Stage(15, _CLOSED, lambda: _pose(scene.plate()[:2] + self._beside[1], 0.095, _TILT)),
            Stage(10, _CLOSED, lambda: _pose(self._for_cube_at(scene.plate()), _GRASP + 0.004)),
            Stage(6, _OPEN),
            Stage(10, _OPEN, lambda: _pose(scene.plate()[:2], _ABOVE, _TILT)),
        ]

    def _for_cube_at(self, place: Array) -> Array:
        """Where the tips have to be [2] for the held cube to be there."""
        return (place + self._scene.tips() - self._scene.cube())[:2]

    def _against_gravity(self, joints: Array) -> Array:
        """Targets with which the servos, which are springs, hold the arm at these angles (rad)."""
        mujoco, model = import_mujoco(), self._scene.model
        found = [model.joint(name) for name in JOINTS]
        self._bias.qpos[[joint.qposadr[0] for joint in found]] = joints
        mujoco.mj_forward(model, self._bias)
        stiffness = model.actuator_gainprm[[model.actuator(name).id for name in JOINTS], 0]
        return joints + self._bias.qfrc_bias[[joint.dofadr[0] for joint in found]] / stiffness


def _pose(place: Array, height: float, tilt: float = 0.0) -> Pose:
    """The jaws at a place [2], one ahead of the other along x; tilted outwards, away from the arm's base."""
    across = np.array([-place[1], place[0], 0.0]) / np.linalg.norm(place)
    return np.array([*place, height]), rotation(-tilt * across)
