"""The demonstrator of PushT: goes around the block, pushes it as planned, plans again."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pizero.envs.pusht.planner import Planner, Push
from pizero.envs.pusht.shape import Array, corners
from pizero.envs.pusht.way import Way

_TRAVEL_AHEAD, _PUSH_AHEAD = 60.0, 40.0  # pixels between disc and action; it makes half of them in a step
_ARRIVED = 4.0
_DISTURBED = 1.5  # pixels that the block may move while the disc goes around it
_ASIDE = 6.0  # pixels beside the line of a push


class TruePoses(Protocol):
    """What the demonstrator reads of the environment: gym-pusht's own, disc position [2], block pose [3]."""

    simulator: Any

    def agent(self) -> Array: ...
    def block(self) -> Array: ...


class PushTDemonstrator:
    """Reads the true poses. The action is a point ahead of the disc on its way."""

    def __init__(self, env: TruePoses) -> None:
        self._env = env
        self._planner = Planner(type(env.simulator))
        self._push: Push | None = None
        self._pushing = False

    def act(self) -> NDArray[np.float32]:
        """The action [2] for the present state, pixels."""
        agent, pose = self._env.agent(), self._env.block()
        if self._push is None or self._lost(agent, pose) or self._finished(agent, self._push):
            self._push = self._planner.plan(pose, agent)
            self._planned_at, self._way, self._pushing = pose, Way(pose), False
        push = self._push
        if push is None:  # wedged between block and wall
            return _ahead(agent, 2 * agent - pose[:2], _TRAVEL_AHEAD).astype(np.float32).clip(0.0, 512.0)
        if not self._pushing and np.linalg.norm(agent - push.start) < _ARRIVED:
            self._pushing = True
        if self._pushing:
            target = self._along(agent, push)
        else:
            target = _ahead(agent, self._way.next_point(agent, push.start), _TRAVEL_AHEAD)
        self._before = agent
        return target.astype(np.float32).clip(0.0, 512.0)

    def _along(self, agent: Array, push: Push) -> Array:
        """A point ahead on the line of the push, never beyond its end."""
        done = float((agent - push.start) @ push.direction)
        length = float(np.linalg.norm(push.end - push.start))
        return push.start + push.direction * min(done + _PUSH_AHEAD, length)

    def _lost(self, agent: Array, pose: Array) -> bool:
        """Whether something came in between: the block moved on the way to it, or the disc left the push's line."""
        assert self._push is not None
        if not self._pushing:
            return bool(np.abs(corners(pose) - corners(self._planned_at)).max() > _DISTURBED)
        off = agent - self._push.start
        return abs(float(off[0] * self._push.direction[1] - off[1] * self._push.direction[0])) > _ASIDE

    def _finished(self, agent: Array, push: Push) -> bool:
        """Whether the push is at its end, and the disc at rest."""
        left = float((push.end - agent) @ push.direction)
        return self._pushing and left < 1.0 and float(np.linalg.norm(agent - self._before)) < 1.0


def _ahead(agent: Array, point: Array, most: float) -> Array:
    """The point, or the one at most `most` pixels from the disc towards it."""
    way = point - agent
    length = float(np.linalg.norm(way))
    return point if length <= most else agent + way * (most / length)
