"""The demonstrator of LIBERO, by the goal file alone: things are put somewhere, drawers and knobs moved."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
from numpy.typing import NDArray

from pizero.envs.libero import fixtures
from pizero.envs.libero.geometry import UP, Geometry, Grasp
from pizero.envs.libero.hand import CLOSED, OPEN, SLOW, Actions, Hand
from pizero.envs.libero.simulator import Array, Simulator
from pizero.types import UserError

_LIFTED = 0.03  # metres
_TRIES = 3
_BETWEEN = 0.01  # metres between things that stand on one region
_ORDER = ("turnon", "open", "on", "in", "close")
"""What can be demonstrated, and when: what has to be open is closed last."""
_MOVES = {"turnon": fixtures.turn_knob, "open": fixtures.open_drawer, "close": fixtures.close_drawer}


class LiberoDemonstrator:
    """Reads the true state; each action goes from where the hand is towards its next way point."""

    def __init__(self, simulator: Simulator) -> None:
        """Raises UserError for a task with a goal of another kind."""
        self._simulator, self._geometry = simulator, Geometry(simulator)
        self._hand = Hand(self._geometry)
        self._goals: list[list[str]] = simulator.world.parsed_problem["goal_state"]
        for relation, name, *_ in self._goals:
            if relation not in _ORDER or (relation in ("open", "close") and not self._geometry.is_drawer(name)):
                raise UserError(f"no demonstrator for {simulator.task.name}: it cannot {relation} {name}")
        self._actions = self._episode(sorted(self._goals, key=lambda goal: _ORDER.index(goal[0])))

    def act(self) -> NDArray[np.float32]:
        """The action [7] for the present state."""
        return next(self._actions).astype(np.float32)

    def _episode(self, goals: list[list[str]]) -> Actions:
        while True:  # what has slipped away is tried again
            for goal in goals:
                if not self._reached(goal):
                    yield from self._reach(goal)
            yield from self._hand.hold(OPEN, 5)

    def _reached(self, goal: list[str]) -> bool:
        return bool(self._simulator.world._eval_predicate(goal))

    def _reach(self, goal: list[str]) -> Actions:
        relation, name, *where = goal
        if where:
            opened = ["open", where[0]]
            if self._geometry.is_drawer(where[0]) and not self._reached(opened):
                yield from self._reach(opened)
            yield from self._put(relation == "in", name, where[0])
        else:
            yield from _MOVES[relation](self._hand, self._geometry, name, lambda: self._reached(goal))

    def _put(self, inside: bool, name: str, where: str) -> Actions:
        """Takes an object and puts it on or in a place."""
        geometry = self._geometry
        place, support, _ = self._place(name, where)
        failed: list[Grasp] = []
        while True:
            before = geometry.pose(name)[0][2]
            grasp = yield from self._take(name, np.array([*place, support]), failed)
            if geometry.pose(name)[0][2] > before + _LIFTED:
                break
            failed.append(grasp)
            if len(failed) > _TRIES:
                return

        place, support, top = self._place(name, where)  # a drawer may have moved
        hand = self._hand.position
        below = hand[2] - geometry.points(name)[:, 2].min()  # how far the object hangs below the hand
        height = max(top + below + 0.06, hand[2] + 0.08)
        yield from self._hand.go(np.array([*hand[:2], height]), grasp.turn, CLOSED, 0.02)
        over = hand[:2]
        for _ in range(2):  # it may swing, so aim with where it is
            hand = self._hand.position
            over = place + hand[:2] - geometry.pose(name)[0][:2]
            yield from self._hand.go(np.array([*over, height]), grasp.turn, CLOSED, 0.008)
        hand = self._hand.position
        below = hand[2] - geometry.points(name)[:, 2].min()
        lowest = max(support + below - 0.02, top + below - 0.12) if inside else support + below + 0.002
        yield from self._hand.go(np.array([*over, lowest]), grasp.turn, CLOSED, 0.008, most=40, speed=SLOW)
        yield from self._hand.hold(OPEN, 6)
        hand = self._hand.position
        out = max(hand[2] + 0.10, top + 0.04) if inside else hand[2] + 0.10
        yield from self._hand.go(np.array([*hand[:2], out]), grasp.turn, OPEN, 0.02, most=30)

    def _take(self, name: str, place: Array, failed: list[Grasp]) -> Generator[Array, None, Grasp]:
        """Closes the hand around an object that is to stand at `place` and lifts it a little; returns the grasp."""
        geometry = self._geometry
        grasp = geometry.grasp(name, place, failed)
        above = np.array([*grasp.position[:2], max(grasp.position[2] + 0.10, geometry.clear_above(name, grasp))])
        reached = yield from self._hand.go(above, grasp.turn, OPEN, 0.015)
        if reached:
            grasp = geometry.grasp(name, place, failed)  # once more from near: it may have moved
            yield from self._hand.go(grasp.position + 0.06 * UP, grasp.turn, OPEN, 0.015, most=40)
            yield from self._hand.go(grasp.position, grasp.turn, OPEN, 0.006, most=40, speed=SLOW)
            yield from self._hand.hold(CLOSED, 10)
        out = geometry.way_out(name)
        if out.any():
            yield from self._hand.go(self._hand.position + 0.01 * UP, grasp.turn, CLOSED, 0.006, most=10)
            yield from self._hand.go(self._hand.position + out, grasp.turn, CLOSED, 0.01, most=30)
        yield from self._hand.go(self._hand.position + 0.08 * UP, grasp.turn, CLOSED, 0.02, most=20)
        return grasp

    def _place(self, name: str, where: str) -> tuple[Array, float, float]:
        """Where an object is to stand on an object or region: x, y [2], the height there, and of what is flown over."""
        world = self._simulator.world
        if where not in world.object_sites_dict:
            points = self._geometry.points(where)
            return self._geometry.pose(where)[0][:2], float(points[:, 2].min()) + 0.012, float(points[:, 2].max())
        site = world.sim.data.get_site_xpos(where)
        parent = world.object_sites_dict[where].parent_name
        if self._geometry.is_drawer(where):
            top = float(self._geometry.moving_points(where)[:, 2].max())
        else:
            top = float(self._geometry.points(parent)[:, 2].max()) if parent in world.obj_body_id else float(site[2])
        beside = [goal[1] for goal in self._goals if goal[0] == "on" and goal[2:] == [where]]
        aside = (beside.index(name) - (len(beside) - 1) / 2) if name in beside else 0.0
        width = float(np.ptp(self._geometry.points(name)[:, 0])) + _BETWEEN
        return site[:2] + np.array([aside * width, 0.0]), float(site[2]), top
