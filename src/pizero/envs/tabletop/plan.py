"""What a long task of the tabletop consists of: subtasks in stages, and which of them are done.

Places are thirds of the table along x. An object keeps its row, so that it never stands in another one's way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pizero.envs.tabletop.world import Thing, World

Place = Literal["left", "middle", "right"]
PLACES: dict[Place, float] = {"left": -0.6, "middle": 0.0, "right": 0.6}
"""x of their centres."""
REACH: dict[Place, float] = {"left": 0.25, "middle": 0.25, "right": 0.25}
LIFT_HEIGHT = 0.5
DISTURBED = 0.15
"""An object that is not due and moved further makes the episode a failure."""
BACK = 0.25
"""How far from where it stood an object may be put down."""
LAST = -1
"""As an object: that of the step done last."""


@dataclass(frozen=True)
class Step:
    """One subtask. thing: index of the object. place: where it is moved to."""

    verb: Literal["lift", "put down", "move"]
    thing: int
    place: Place = "middle"

    def words(self, things: Sequence[Thing]) -> str:
        name = things[self.thing].name
        if self.verb == "move":
            return f"move the {name} to the {self.place}"
        return f"lift the {name}" if self.verb == "lift" else f"put the {name} down"


class Plan:
    """Stages of steps; those of a stage may be done in any order, and all before the next stage's.

    done: in the order in which they were done. failed: an object was held or moved that was not due, so that the
    episode can no longer succeed.
    """

    def __init__(self, world: World, stages: Sequence[Sequence[Step]]) -> None:
        self.done: list[Step] = []
        self.failed = False
        self.total = sum(map(len, stages))
        self._world, self._later = world, [list(stage) for stage in stages]
        self._rows = [thing.y for thing in world.things]
        self._stands = [(thing.x, thing.y) for thing in world.things]  # where each was left
        self._known = [step for stage in stages for step in stage]
        self._pending = self._later.pop(0)

    @property
    def present(self) -> Step | None:
        """What is to be done now: with the object in the hand, else the first that is due; None after the last."""
        held = [step for step in self._pending if step.thing == self._world.held]
        return next(iter(held + self._pending), None)

    @property
    def subtask(self) -> str:
        """`present` in words, empty after the last."""
        return "" if self.present is None else self.present.words(self._world.things)

    @property
    def subtasks(self) -> tuple[str, ...]:
        """Every subtask that the episode can have, in words."""
        every = [step for step in self._known if step.thing != LAST]
        every += [replace(step, thing=other.thing) for step in self._known if step.thing == LAST for other in every]
        return tuple(dict.fromkeys(step.words(self._world.things) for step in every))

    def target(self, step: Step) -> tuple[float, float]:
        """Where its object shall come to stand."""
        return self._stands[step.thing] if step.verb == "put down" else (PLACES[step.place], self._rows[step.thing])

    @property
    def succeeded(self) -> bool:
        return not self.failed and len(self.done) == self.total

    def update(self) -> None:
        """Takes note of the world after a control step."""
        self.failed |= self._disturbed()
        if self.failed:
            return
        for step in [step for step in self._pending if self._is_done(step)]:
            self._pending.remove(step)
            self.done.append(step)
            thing = self._world.things[step.thing]
            self._stands[step.thing] = thing.x, thing.y
        if not self._pending and self._later:
            thing = self.done[-1].thing
            self._pending = [
                replace(step, thing=thing) if step.thing == LAST else step for step in self._later.pop(0)
            ]  # fmt: skip

    def _is_done(self, step: Step) -> bool:
        world, thing = self._world, self._world.things[step.thing]
        if step.verb == "lift":
            return world.held == step.thing and world.z > LIFT_HEIGHT
        if step.verb == "put down":
            return world.held != step.thing and self._moved(step.thing) < BACK
        return world.held != step.thing and abs(thing.x - PLACES[step.place]) < REACH[step.place]

    def _disturbed(self) -> bool:
        due = {step.thing for step in self._pending}
        held = self._world.held
        others = [index for index in range(len(self._world.things)) if index not in due]
        return (held in others) or any(self._moved(index) > DISTURBED for index in others)

    def _moved(self, index: int) -> float:
        thing, (x, y) = self._world.things[index], self._stands[index]
        return math.hypot(thing.x - x, thing.y - y)
