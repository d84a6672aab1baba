"""Where LIBERO's objects are, as points on what is seen of them, and how a hand can take one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pizero.envs.libero.simulator import Array, Simulator
from pizero.envs.offscreen import import_mujoco
from pizero.envs.rotations import rotation

_POINTS_PER_MESH = 1500
_VISIBLE, _SOLID = (1,), (0, 1)  # groups of geoms
_WIDEST = 0.072  # metres between the open fingers, with room to spare
_FINGER_DEPTH = 0.035  # how far the fingers reach below an object's top
_RIM_DEPTH = 0.018
_REACH = 0.13  # of the open hand
_UP = np.array([0.0, 0.0, 1.0])
_STRETCHED = 0.64  # metres from shoulder to wrist; the arm hardly follows beyond, and ends at 0.70
_WRIST = (0.088, 0.21)  # metres from the hand that points down: back and up
_OTHER = math.radians(20)  # between the hand's angles of two tries
_DOWN = np.diag([1.0, -1.0, -1.0])


@dataclass(frozen=True)
class Grasp:
    """position: between the finger tips, metres. yaw: of the hand, which points down; its fingers close across."""

    position: Array
    yaw: float

    @property
    def turn(self) -> Array:
        """Rotation [3, 3] of the hand."""
        return rotation(self.yaw * _UP) @ _DOWN


class Geometry:
    """Reads the true state of a simulator."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator
        self._shapes: dict[tuple[str, tuple[int, ...]], list[tuple[int, Array]]] = {}

    def hand(self) -> tuple[Array, Array]:
        """Position [3] between the finger tips, and rotation [3, 3]: z points ahead, the fingers close along y."""
        data = self._simulator.data
        return data.site("gripper0_grip_site").xpos.copy(), data.body("robot0_right_hand").xmat.reshape(3, 3).copy()

    def pose(self, name: str) -> tuple[Array, Array]:
        """Position and rotation of an object."""
        body = self._simulator.data.body(self._simulator.world.obj_body_id[name])
        return body.xpos.copy(), body.xmat.reshape(3, 3).copy()

    def points(self, name: str, groups: tuple[int, ...] = _VISIBLE) -> Array:
        """Points [n, 3] on an object or fixture."""
        key = (name, groups)
        if key not in self._shapes:
            self._shapes[key] = self._shape(name, groups)
        data = self._simulator.data
        parts = [
            points @ data.geom_xmat[geom].reshape(3, 3).T + data.geom_xpos[geom] for geom, points in self._shapes[key]
        ]
        return np.concatenate(parts) if parts else np.zeros((0, 3))

    def others(self, name: str) -> Array:
        """Points [n, 3] of all that stands around an object within a hand's reach, without the table."""
        world = self._simulator.world
        names = [*world.objects_dict, *world.fixtures_dict]
        around = [
            other for other in names if other != name and other in world.obj_body_id and "table" not in other
        ]  # fmt: skip
        points = np.concatenate([np.zeros((0, 3)), *(self.points(other, _SOLID) for other in around)])
        own = self.points(name)
        return points[((points > own.min(0) - _REACH) & (points < own.max(0) + _REACH)).all(1)]

    def grasp(self, name: str, place: Array, failed: Sequence[Grasp] = ()) -> Grasp:
        """The best grasp from above: across a narrow object's middle, else at a wide one's rim.

        It is the one with the least turn and the fewest points of other objects where the open hand would be, and like
        none that `failed`. At a rim the arm should not be stretched out, neither here nor where the object is to stand,
        `place` [3].
        """
        candidates = self._across(name) or self._rim(name, place)
        candidates = [
            (cost, grasp) for cost, grasp in candidates if all(abs(grasp.yaw - old.yaw) > _OTHER for old in failed)
        ] or candidates
        others = self.others(name)
        costs = [cost + 0.3 * abs(grasp.yaw) + 0.02 * _in_the_way(others, grasp) for cost, grasp in candidates]
        return candidates[int(np.argmin(costs))][1]

    def _stretched(self, hand: Array) -> float:
        """By how many metres the arm is stretched too far where the hand comes from above to a position [3]."""
        x, y, z = hand + 0.06 * _UP - self._simulator.data.body("robot0_link1").xpos
        return max(math.hypot(math.hypot(x, y) - _WRIST[0], z + _WRIST[1]) - _STRETCHED, 0.0)

    def _across(self, name: str) -> list[tuple[float, Grasp]]:
        """Grasps across the whole object, each with its cost; none if it is too wide in every direction."""
        points = self.points(name)
        low, high = points.min(0), points.max(0)
        height = max(high[2] - _FINGER_DEPTH, low[2] + 0.012)
        found: list[tuple[float, Grasp]] = []
        for angle in np.radians(np.arange(0, 180, 5)):
            across, along = np.array([math.cos(angle), math.sin(angle)]), np.array([-math.sin(angle), math.cos(angle)])
            width, length = np.ptp(points[:, :2] @ across), np.ptp(points[:, :2] @ along)
            if width > _WIDEST:
                continue
            for aside in (0.0, -length / 4, length / 4):
                middle = (low + high)[:2] / 2 + aside * along
                for yaw in _both_ways(angle - math.pi / 2):
                    found.append((10 * width + 3 * abs(aside), Grasp(np.array([*middle, height]), yaw)))
        return found

    def _rim(self, name: str, place: Array) -> list[tuple[float, Grasp]]:
        """Grasps with one finger inside; the rim is a circle about the axis of the object, which may stand tilted."""
        at, turn = self.pose(name)
        points = self.points(name)
        own = (points - at) @ turn
        axis = int(np.abs(turn[2]).argmax())
        sign = np.sign(turn[2, axis])
        flat = [index for index in range(3) if index != axis]
        middle = (own.max(0) + own.min(0)) / 2
        depth = (own[:, axis] * sign).max() - own[:, axis] * sign
        wall = own[(depth > _RIM_DEPTH - 0.01) & (depth < _RIM_DEPTH + 0.004)]
        radius = float(np.quantile(np.linalg.norm(wall[:, flat] - middle[flat], axis=1), 0.6))
        middle[axis] = sign * ((own[:, axis] * sign).max() - _RIM_DEPTH)
        carried = place - np.array([*at[:2], points[:, 2].min()])
        found: list[tuple[float, Grasp]] = []
        for angle in np.radians(np.arange(0, 360, 15)):
            outward = np.zeros(3)
            outward[flat] = math.cos(angle), math.sin(angle)
            position, direction = at + turn @ (middle + radius * outward), turn @ outward
            cost = 20 * max(self._stretched(position), self._stretched(position + carried))
            for yaw in _both_ways(math.atan2(direction[1], direction[0]) - math.pi / 2):
                found.append((cost, Grasp(position, yaw)))
        return found

    def _shape(self, name: str, groups: tuple[int, ...]) -> list[tuple[int, Array]]:
        """By geom of the object's bodies: points [n, 3] in the geom's own frame."""
        mujoco, model = import_mujoco(), self._simulator.model
        bodies = {int(self._simulator.world.obj_body_id[name])}
        for body in range(model.nbody):  # parents come before their children
            if int(model.body_parentid[body]) in bodies:
                bodies.add(body)
        geoms = [
            geom
            for geom in range(model.ngeom)
            if int(model.geom_bodyid[geom]) in bodies and int(model.geom_group[geom]) in groups
        ]
        return [(geom, _surface(model, geom, mujoco.mjtGeom)) for geom in geoms]


def _surface(model: Any, geom: int, kinds: Any) -> Array:
    """Points [n, 3] of a geom: a mesh's vertices, else a grid in the box around it."""
    kind = int(model.geom_type[geom])
    if kind == kinds.mjGEOM_MESH:
        mesh = int(model.geom_dataid[geom])
        first, count = int(model.mesh_vertadr[mesh]), int(model.mesh_vertnum[mesh])
        return model.mesh_vert[first : first + count : max(1, count // _POINTS_PER_MESH)].astype(np.float64)
    size = model.geom_size[geom]
    if kind == kinds.mjGEOM_SPHERE:
        half = np.repeat(size[0], 3)
    elif kind in (kinds.mjGEOM_CYLINDER, kinds.mjGEOM_CAPSULE):
        half = np.array([size[0], size[0], size[1]])
    else:
        half = size
    ticks = np.linspace(-1.0, 1.0, 9)
    return np.stack(np.meshgrid(ticks, ticks, ticks), -1).reshape(-1, 3) * half


def _both_ways(yaw: float) -> tuple[float, float]:
    """The hand may be turned by half a circle: both angles of the two within a turn from straight ahead."""
    first = (yaw + math.pi / 2) % math.pi - math.pi / 2
    return first, first + math.pi if first < 0 else first - math.pi


def _in_the_way(points: Array, grasp: Grasp) -> int:
    """How many points lie where the open fingers and the hand would be."""
    off = (points - grasp.position) @ rotation(grasp.yaw * _UP)
    along, across, height = np.abs(off[:, 0]), np.abs(off[:, 1]), off[:, 2]
    fingers = (across > 0.02) & (across < 0.062) & (along < 0.018) & (height > -0.018)
    hand = (across < 0.115) & (along < 0.045) & (height > 0.03)
    return int(fingers.sum() + hand.sum())
