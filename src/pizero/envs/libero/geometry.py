"""Where LIBERO's objects are, as points on what is seen of them, and how a hand can take one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pizero.envs.libero.simulator import Array, Simulator
from pizero.envs.offscreen import import_mujoco
from pizero.envs.rotations import rotation

_POINTS_PER_MESH = 1500
_VISIBLE, _SOLID, _COLLIDING = (1,), (0, 1), (0,)  # groups of geoms
_FREE, _SLIDING = 0, 2  # MuJoCo's kinds of joints
_WIDEST = 0.072  # metres between the open fingers, with room to spare
_FINGER_DEPTH = 0.035  # how far the fingers reach below an object's top
_RIM_DEPTH = 0.018
_HANDLE, _HANDLE_DEPTH = 0.03, 0.03  # how far from its outer end a handle is taken, and below its top
_REACH = 0.13  # of the open hand to its sides
_REACHED = np.array([_REACH, _REACH, 0.3])  # and up, with the wrist
_MARGIN = 0.02  # metres kept free
_LEAN = math.radians(35)
UP = np.array([0.0, 0.0, 1.0])
_STRETCHED = 0.64  # metres from shoulder to wrist; the arm hardly follows beyond, and ends at 0.70
_WRIST = (0.088, 0.21)  # metres from the hand that points down: back and up
_OTHER = math.radians(20)  # between the hand's angles of two tries
_DOWN = np.diag([1.0, -1.0, -1.0])


@dataclass(frozen=True)
class Grasp:
    """position: between the finger tips, metres. yaw: of the hand, which points down; its fingers close across.

    lean: radians by which the hand is off the vertical, about the axis ahead of it.
    """

    position: Array
    yaw: float
    lean: float = 0.0

    @property
    def frame(self) -> Array:
        """Rotation [3, 3]: x along the hand's thin side, y across, in which the fingers close, z to the arm."""
        return rotation(self.yaw * UP) @ rotation(np.array([self.lean, 0.0, 0.0]))

    @property
    def turn(self) -> Array:
        """Rotation [3, 3] of the hand."""
        return self.frame @ _DOWN


class Geometry:
    """Reads the true state of a simulator."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator
        self._shapes: dict[tuple[int, tuple[int, ...]], list[tuple[int, Array]]] = {}

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
        return self._points(int(self._simulator.world.obj_body_id[name]), groups)

    def is_drawer(self, name: str) -> bool:
        """Whether something, such as the inside of a drawer, moves along a line with its joint."""
        joint = self._joint(name)
        return joint is not None and int(self._simulator.model.jnt_type[joint]) == _SLIDING

    def moving_points(self, name: str) -> Array:
        """Points [n, 3] on what the joint of a drawer or knob moves."""
        joint = self._joint(name)
        assert joint is not None, f"{name} has no joint"
        return self._points(int(self._simulator.model.jnt_bodyid[joint]), _COLLIDING)

    def opens_towards(self, drawer: str) -> Array:
        """The direction [3] in which a drawer has the longer way, that is, out."""
        joint = self._joint(drawer)
        low, high = self._simulator.model.jnt_range[joint]
        return self._simulator.data.xaxis[joint] * (1.0 if high > -low else -1.0)

    def _joint(self, name: str) -> int | None:
        """The number of the joint of a drawer's inside or a knob; None for what has none or lies free."""
        world, model = self._simulator.world, self._simulator.model
        thing = world.object_sites_dict[name] if name in world.object_sites_dict else world.get_object(name)
        joints = [int(model.joint(joint).id) for joint in thing.joints or ()]
        return next((joint for joint in joints if int(model.jnt_type[joint]) != _FREE), None)

    def _points(self, body: int, groups: tuple[int, ...]) -> Array:
        """Points [n, 3] on a body and those that hang on it."""
        key = (body, groups)
        if key not in self._shapes:
            self._shapes[key] = self._shape(body, groups)
        data = self._simulator.data
        parts = [
            points @ data.geom_xmat[geom].reshape(3, 3).T + data.geom_xpos[geom] for geom, points in self._shapes[key]
        ]
        return np.concatenate(parts) if parts else np.zeros((0, 3))

    def others(self, name: str, move: Array | float = 0.0) -> Array:
        """Points [n, 3] of all that stands within a hand's reach of an object, without the table.

        move: where the object would be, from where it is [3]; the points are then as seen from there.
        """
        world = self._simulator.world
        names = [*world.objects_dict, *world.fixtures_dict]
        around = [other for other in names if other != name and other in world.obj_body_id and "table" not in other]
        points = np.concatenate([np.zeros((0, 3)), *(self.points(other, _SOLID) for other in around)]) - move
        own = self.points(name)
        return points[((points > own.min(0) - _REACH) & (points < own.max(0) + _REACHED)).all(1)]

    def grasp(self, name: str, place: Array, failed: Sequence[Grasp] = ()) -> Grasp:
        """The best grasp from above: across a narrow object's middle, else at a wide one's rim.

        It is the one with the least turn and the least of other objects where the open hand would be, and like none
        that `failed`. At a rim this counts also where the object is to stand, `place` [3], and the arm should be
        stretched out in neither place; the hand leans where it has no room. A wide and solid object is taken by its
        handle.
        """
        here = others = self.others(name)
        candidates = grasps_across(self.points(name), _FINGER_DEPTH)
        if not candidates and not self._hollow(name):
            handle, rest = self._handle(name)
            others = np.concatenate([others, rest])
            candidates = grasps_across(handle, _HANDLE_DEPTH)
        at_rim = not candidates
        if at_rim:
            move = place - [*self.pose(name)[0][:2], self.points(name)[:, 2].min()]
            candidates = self._rim(name, move)
            others = np.concatenate([others, self.others(name, move)])
        candidates = [
            (cost, grasp) for cost, grasp in candidates if all(abs(grasp.yaw - old.yaw) > _OTHER for old in failed)
        ] or candidates

        def cost(candidate: tuple[float, Grasp]) -> float:
            own, grasp = candidate
            return own + 0.3 * abs(grasp.yaw) + 0.5 * bool(grasp.lean) + 0.05 * _in_the_way(others, grasp)

        best = min(candidates, key=cost)
        if at_rim and _in_the_way(here, best[1]):
            leaning = [(own, replace(grasp, lean=lean)) for own, grasp in candidates for lean in (-_LEAN, _LEAN)]
            best = min([best, *leaning], key=cost)
        return best[1]

    def clear_above(self, name: str, grasp: Grasp) -> float:
        """Height in metres above what a hand would meet on its way down to a grasp of an object."""
        others = self.others(name)
        hit = others[_hit(others, grasp), 2]
        return float(hit.max()) + _MARGIN if len(hit) else -math.inf

    def way_out(self, name: str) -> Array:
        """The shortest way [3], level, from under what hangs over an object; zeros when it may be lifted."""
        own = self.points(name)
        low, high = own.min(0), own.max(0)
        others = self.others(name)
        over = others[(others[:, 2] > high[2]) & ((others > low) & (others < high))[:, :2].all(1)]
        if not len(over):
            return np.zeros(3)
        moves = np.array([
            [over[:, 0].min() - high[0], 0, 0], [over[:, 0].max() - low[0], 0, 0],
            [0, over[:, 1].min() - high[1], 0], [0, over[:, 1].max() - low[1], 0],
        ])  # fmt: skip
        shortest = moves[np.abs(moves).sum(1).argmin()]
        return shortest + _MARGIN * np.sign(shortest)

    def _stretched(self, hand: Array) -> float:
        """By how many metres the arm is stretched too far where the hand comes from above to a position [3]."""
        x, y, z = hand + 0.06 * UP - self._simulator.data.body("robot0_link1").xpos
        return max(math.hypot(math.hypot(x, y) - _WRIST[0], z + _WRIST[1]) - _STRETCHED, 0.0)

    def _handle(self, name: str) -> tuple[Array, Array]:
        """Points [n, 3] of an object around the one that is furthest from its middle, and its other points."""
        points = self.points(name, _COLLIDING)
        flat = points[:, :2]
        furthest = flat[np.linalg.norm(flat - self.pose(name)[0][:2], axis=1).argmax()]
        near = np.linalg.norm(flat - furthest, axis=1) < _HANDLE
        return points[near], points[~near]

    def _hollow(self, name: str) -> bool:
        """Whether the middle of an object is lower than its rim, by more than a quarter of its height."""
        points = self.points(name, _COLLIDING)
        low, high = points[:, 2].min(), points[:, 2].max()
        middle = np.linalg.norm(points[:, :2] - self.pose(name)[0][:2], axis=1) < _RIM_DEPTH
        return not (points[middle, 2] > high - (high - low) / 4).any()

    def _rim(self, name: str, move: Array) -> list[tuple[float, Grasp]]:
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
        found: list[tuple[float, Grasp]] = []
        for angle in np.radians(np.arange(0, 360, 15)):
            outward = np.zeros(3)
            outward[flat] = math.cos(angle), math.sin(angle)
            position, direction = at + turn @ (middle + radius * outward), turn @ outward
            cost = 20 * max(self._stretched(position), self._stretched(position + move))
            for yaw in _both_ways(math.atan2(direction[1], direction[0]) - math.pi / 2):
                found.append((cost, Grasp(position, yaw)))
        return found

    def _shape(self, body: int, groups: tuple[int, ...]) -> list[tuple[int, Array]]:
        """By geom of a body and those that hang on it: points [n, 3] in the geom's own frame."""
        mujoco, model = import_mujoco(), self._simulator.model
        bodies = {body}
        for other in range(model.nbody):  # parents come before their children
            if int(model.body_parentid[other]) in bodies:
                bodies.add(other)
        geoms = [
            geom
            for geom in range(model.ngeom)
            if int(model.geom_bodyid[geom]) in bodies and int(model.geom_group[geom]) in groups
        ]
        return [(geom, _surface(model, geom, mujoco.mjtGeom)) for geom in geoms]


def grasps_across(points: Array, depth: float) -> list[tuple[float, Grasp]]:
    """Grasps across all points [n, 3], each with its cost; none if they lie too wide in every direction.

    depth: how far below the highest point, metres.
    """
    low, high = points.min(0), points.max(0)
    height = max(high[2] - depth, low[2] + 0.012)
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
    """How many cubes of a centimetre hold points where the open fingers and the hand would be."""
    return len(np.unique(np.floor(points[_hit(points, grasp)] / 0.01).astype(int), axis=0))


def _hit(points: Array, grasp: Grasp) -> NDArray[np.bool_]:
    """Which points [n, 3] lie where the open fingers and the hand would be, or come through from above."""
    off = (points - grasp.position) @ grasp.frame
    along, across, height = np.abs(off[:, 0]), np.abs(off[:, 1]), off[:, 2]
    fingers = (across > 0.02) & (across < 0.062) & (along < 0.018) & (height > -0.018)
    hand = (across < 0.115) & (along < 0.045) & (height > 0.03)
    return fingers | hand
