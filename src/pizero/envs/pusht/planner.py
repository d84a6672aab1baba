"""Plans pushes of the T block: every straight push from around it is simulated, two in a row for the best ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pizero.envs.pusht.shape import (
    Array,
    contacts,
    corners,
    coverage,
    distance_to_block,
    error,
    errors,
    rotated,
)
from pizero.envs.pusht.way import EDGE, Way, on_board

RADIUS = 15.0
"""Of the disc, pixels."""
APPROACH = 8.0
"""Gap between disc and block where a push starts."""
SOLVED = 0.956
"""Coverage that a plan must reach, a little more than success needs."""
_SKEWS = (0.0, -0.5, 0.5)  # radians between push and face normal
_STRIDE = 2  # pixels of disc movement between looks at the block
_REACH = 280  # pixels of the longest push
_BEAM = 8
_WALLS = [(5, 5), (506, 5), (506, 506), (5, 506)]
_PUSH_COST, _TRAVEL_COST = 1.0, 0.01  # in pixels of error; per pixel of way


@dataclass(frozen=True)
class Push:
    """The disc goes straight from `start` [2] to `end` [2]; the block is then at `pose` [3]."""

    start: Array
    end: Array
    pose: Array
    value: float

    @property
    def direction(self) -> Array:
        return (self.end - self.start) / max(float(np.linalg.norm(self.end - self.start)), 1e-9)


class Planner:
    """Simulates pushes in a physics space of its own."""

    def __init__(self, simulator_class: Any) -> None:
        """simulator_class: gym-pusht's environment, which knows how block, disc and walls are made."""
        import pymunk

        self._space: Any = pymunk.Space()
        self._space.damping = 0.0  # the block stays where nobody pushes it
        for a, b in zip(_WALLS, _WALLS[1:] + _WALLS[:1], strict=True):
            self._space.add(simulator_class.add_segment(self._space, a, b, 2))
        self._agent: Any = simulator_class.add_circle(self._space, (400, 400), RADIUS)
        self._block: Any = simulator_class.add_tee(self._space, (256, 256), 0)[0]

    def plan(self, pose: Array, agent: Array) -> Push | None:
        """The push to do next from a block pose [3] and a disc position [2]; None where the disc can get to none."""
        first = self._pushes(pose, agent, _SKEWS)
        if not first:
            return None
        best, value = first[0], first[0].value
        if _solved(best.pose):
            return best
        for push in _diverse(first):
            then = self._pushes(push.pose, push.end, (0.0,))
            if not then:
                continue
            travel = push.value - error(push.pose)
            total = then[0].value + travel
            if total < value:
                best, value = push, total
        return best

    def _pushes(self, pose: Array, agent: Array, skews: tuple[float, ...]) -> list[Push]:
        """Every push around the block that the disc can get to, each with its best length, best first."""
        points, normals = contacts()
        directions = np.concatenate([-rotated(normals, pose[2] + skew) for skew in skews])
        starts = np.tile(rotated(points, pose[2]) + pose[:2], (len(skews), 1)) - directions * (RADIUS + APPROACH)
        clear = distance_to_block(rotated(starts - pose[:2], -pose[2])) > RADIUS + 1
        clear &= on_board(starts)
        starts, directions = starts[clear], directions[clear]
        travels = Way(pose).lengths(agent, starts)
        found = [
            self._best_length(pose, start, direction, float(travel))
            for start, direction, travel in zip(starts, directions, travels, strict=True)
            if np.isfinite(travel)
        ]
        return sorted(found, key=lambda push: push.value)

    def _best_length(self, pose: Array, start: Array, direction: Array, travel: float) -> Push:
        poses = self.simulate(pose, start, direction)
        costs = errors(poses)
        near = np.flatnonzero(costs < 4.0)
        if len(near):
            costs[near[coverage(poses[near]) > SOLVED]] = 0.0
        index = int(costs.argmin())
        length = _STRIDE * (index + 1)
        value = float(costs[index]) + _PUSH_COST + _TRAVEL_COST * (travel + length)
        return Push(start, start + direction * length, poses[index], value)

    def simulate(self, pose: Array, start: Array, direction: Array, length: float = _REACH) -> Array:
        """Block poses [n, 3] after every `_STRIDE` pixels of a straight push, as far as the board goes."""
        space, agent, block = self._space, self._agent, self._block
        block.angle = float(pose[2])
        block.position = float(pose[0]), float(pose[1])
        block.velocity, block.angular_velocity = (0.0, 0.0), 0.0
        agent.position = float(start[0]), float(start[1])
        agent.velocity = float(100 * direction[0]), float(100 * direction[1])
        poses: list[tuple[float, float, float]] = []
        count = max(int(min(length, _room(start, direction)) / _STRIDE), 1)
        for _ in range(count):
            for _ in range(_STRIDE):
                space.step(0.01)
            x, y = block.position
            poses.append((x, y, block.angle))
        return np.array(poses).reshape(-1, 3)


def _room(start: Array, direction: Array) -> float:
    """Pixels from `start` to the edge of the board."""
    with np.errstate(divide="ignore"):
        to_edge = np.where(direction > 0, 512.0 - EDGE - start, start - EDGE) / np.abs(direction)
    return float(to_edge.min())


def _diverse(pushes: list[Push]) -> list[Push]:
    """The best ones whose results differ."""
    chosen: list[Push] = []
    for push in pushes:
        if all(np.abs(corners(push.pose) - corners(other.pose)).max() > 6.0 for other in chosen):
            chosen.append(push)
        if len(chosen) == _BEAM:
            break
    return chosen


def _solved(pose: Array) -> bool:
    return bool(coverage(pose[None])[0] > SOLVED)
