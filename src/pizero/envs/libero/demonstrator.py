"""The demonstrator of LIBERO's pick-and-place goals: one after the other, from the goal file alone."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
from numpy.typing import NDArray

from pizero.envs.libero.geometry import Geometry, Grasp
from pizero.envs.libero.simulator import Array, Simulator
from pizero.envs.rotations import rotation_vector
from pizero.types import UserError

_OPEN, _CLOSED = -1.0, 1.0
_FULL_STEP, _FULL_TURN = 0.05, 0.5  # metres and radians that an action of 1 asks for
_SLOW = 0.6
_LIFTED = 0.03  # metres
_TRIES = 3
_UP = np.array([0.0, 0.0, 1.0])

Actions = Generator[Array]


class LiberoDemonstrator:
    """Reads the true state; each action goes from where the hand is towards its next way point."""

    def __init__(self, simulator: Simulator) -> None:
        """Raises UserError for a task with a goal of another kind than On and In."""
        self._simulator, self._geometry = simulator, Geometry(simulator)
        goals = simulator.world.parsed_problem["goal_state"]
        if any(goal[0] not in ("on", "in") for goal in goals):
            raise UserError(
                f"no demonstrator for {simulator.task.name}: its goal is more than to put objects somewhere"
            )
        self._actions = self._episode(goals)

    def act(self) -> NDArray[np.float32]:
        """The action [7] for the present state."""
        return next(self._actions).astype(np.float32)

    def _episode(self, goals: list[list[str]]) -> Actions:
        while True:  # what has slipped away is tried again
            for relation, name, where in goals:
                if not self._simulator.world._eval_predicate([relation, name, where]):
                    yield from self._put(relation == "in", name, where)
            yield from self._hold(_OPEN, 5)

    def _put(self, inside: bool, name: str, where: str) -> Actions:
        """Takes an object and puts it on or in a place."""
        geometry = self._geometry
        place, support, top = self._place(where)
        failed: list[Grasp] = []
        while True:
            before = geometry.pose(name)[0][2]
            grasp = yield from self._take(name, np.array([*place, support]), failed)
            if geometry.pose(name)[0][2] > before + _LIFTED or len(failed) == _TRIES:
                break
            failed.append(grasp)

        hand, _ = geometry.hand()
        below = hand[2] - geometry.points(name)[:, 2].min()  # how far the object hangs below the hand
        height = max(top + below + 0.06, hand[2] + 0.08)
        yield from self._go(np.array([*hand[:2], height]), grasp.turn, _CLOSED, 0.02)
        over = hand[:2]
        for _ in range(2):  # it may swing, so aim with where it is
            hand, _ = geometry.hand()
            over = place + hand[:2] - geometry.pose(name)[0][:2]
            yield from self._go(np.array([*over, height]), grasp.turn, _CLOSED, 0.008)
        hand, _ = geometry.hand()
        below = hand[2] - geometry.points(name)[:, 2].min()
        lowest = max(support + below - 0.02, top + below - 0.12) if inside else support + below + 0.002
        yield from self._go(np.array([*over, lowest]), grasp.turn, _CLOSED, 0.008, most=40, speed=_SLOW)
        yield from self._hold(_OPEN, 6)
        hand, _ = geometry.hand()
        yield from self._go(hand + 0.10 * _UP, grasp.turn, _OPEN, 0.02, most=30)

    def _take(self, name: str, place: Array, failed: list[Grasp]) -> Generator[Array, None, Grasp]:
        """Closes the hand around an object that is to stand at `place` and lifts it a little; returns the grasp."""
        geometry = self._geometry
        grasp = geometry.grasp(name, place, failed)
        reached = yield from self._go(grasp.position + 0.10 * _UP, grasp.turn, _OPEN, 0.015)
        if reached:
            grasp = geometry.grasp(name, place, failed)  # once more from near: it may have moved
            yield from self._go(grasp.position + 0.06 * _UP, grasp.turn, _OPEN, 0.015, most=40)
            yield from self._go(grasp.position, grasp.turn, _OPEN, 0.006, most=40, speed=_SLOW)
            yield from self._hold(_CLOSED, 10)
        hand, _ = geometry.hand()
        yield from self._go(hand + 0.08 * _UP, grasp.turn, _CLOSED, 0.02, most=20)
        return grasp

    def _place(self, where: str) -> tuple[Array, float, float]:
        """Of an object or region: x, y [2], the height where things stand there, and of what is to be flown over."""
        world = self._simulator.world
        if where not in world.object_sites_dict:
            points = self._geometry.points(where)
            return self._geometry.pose(where)[0][:2], float(points[:, 2].min()) + 0.012, float(points[:, 2].max())
        site = world.sim.data.get_site_xpos(where)
        parent = world.object_sites_dict[where].parent_name
        top = float(self._geometry.points(parent)[:, 2].max()) if parent in world.obj_body_id else float(site[2])
        return site[:2].copy(), float(site[2]), top

    def _go(
        self, position: Array, turn: Array, gripper: float, near: float, *, most: int = 80, speed: float = 1.0
    ) -> Generator[Array, None, bool]:
        """Until the hand is as near (metres) and turned, or after `most` steps; returns whether it is."""
        for _ in range(most):
            hand, turned = self._geometry.hand()
            move, rotate = position - hand, rotation_vector(turn @ turned.T)
            if np.linalg.norm(move) < near and np.linalg.norm(rotate) < 0.08:
                return True
            step = move / _FULL_STEP
            step *= speed / max(speed, float(np.abs(step).max()))
            yield np.array([*step, *(rotate / _FULL_TURN).clip(-1.0, 1.0), gripper])
        return False

    def _hold(self, gripper: float, steps: int) -> Actions:
        """Stays where the hand is, and opens or closes."""
        for _ in range(steps):
            yield np.array([0.0] * 6 + [gripper])
