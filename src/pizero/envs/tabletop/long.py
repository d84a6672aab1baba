"""Long tasks on the tabletop: three to five subtasks in order, of which the picture alone does not say which is due.

task             what the same picture asks for at two moments of an episode
lift_in_order    before and after an object was lifted the table looks the same: lift it, or turn to the next
swap             with one object in the middle and the other at its side: whether that one has been moved yet
clear_and_lift   the hand around the object at the right: let go of it, or lift it
sort_and_return  the last object in the hand, half way: on to its side, or back to the middle

So a policy that sees one moment needs a plan, or words that say what is due.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pizero.envs.tabletop.env import ROWS, SHAPES, TabletopDemonstrator, TabletopEnv
from pizero.envs.tabletop.plan import LAST, PLACES, Place, Plan, Step
from pizero.envs.tabletop.render import COLOURS
from pizero.envs.tabletop.world import CONTACT, LOW, Thing, World
from pizero.envs.tasks import episode_task
from pizero.types import UserError

TASKS = ("lift_in_order", "swap", "clear_and_lift", "sort_and_return")
LEFT_COLOURS = ("red", "yellow")
"""Sorted to the left; the others to the right."""
NEAR = 0.1
"""To what is to be grasped, or to where the held object is to stand."""
SCATTER = 0.08  # around the place where an object stands, in table units


class TabletopLongEnv(TabletopEnv):
    """The tabletop with tasks of three to five subtasks; observations, actions and robot are `TabletopEnv`'s.

    `subtask` says in words what is to be done now, `subtasks` all that the episode can ask for; `info["subtasks"]` is
    (subtasks done, subtasks). To hold or move an object that is not due makes the episode a failure.
    """

    max_steps = 200
    all_tasks = TASKS

    @property
    def subtask(self) -> str:
        return self.plan.subtask

    @property
    def subtasks(self) -> tuple[str, ...]:
        return self.plan.subtasks

    def demonstrator(self) -> TabletopLongDemonstrator:
        return TabletopLongDemonstrator(self._world(), self.plan)

    def _begin(self, options: dict[str, Any]) -> None:
        if unknown := set(options) - {"task"}:
            raise UserError(f"unknown reset option {sorted(unknown)[0]!r}: the option is task")
        self.task = episode_task(self.np_random, self.task_names, options)
        self.world, self.prompt, stages = _draw(self.np_random, self.task)
        self.plan = Plan(self.world, stages)

    def _success(self, world: World) -> bool:
        self.plan.update()
        return self.plan.succeeded

    def _info(self, success: bool) -> dict[str, Any]:
        return {**super()._info(success), "subtasks": (len(self.plan.done), self.plan.total)}


class TabletopLongDemonstrator(TabletopDemonstrator):
    """Does what the plan says is due. The action is a function of that subtask and of the world's present state."""

    def __init__(self, world: World, plan: Plan) -> None:
        super().__init__(world, "", 0)
        self.plan = plan

    @property
    def subtask(self) -> str:
        """What it is doing, in words."""
        return self.plan.subtask

    def act(self) -> NDArray[np.float32]:
        world, step = self.world, self.plan.present
        if step is None:
            return self._action(world.x, world.y, self.TRAVEL_HEIGHT, 0.0, close=False)
        if world.held is None:
            return self._grasp(step.thing)
        if step.verb == "lift":
            return self._action(world.x, world.y, self.LIFTED_HEIGHT, 0.0, close=True)
        return self._put(world.things[world.held], *self.plan.target(step))

    def _put(self, held: Thing, x: float, y: float) -> NDArray[np.float32]:
        """Carries the held object to above (x, y), lowers it and lets go."""
        world, far = self.world, math.hypot(x - held.x, y - held.y)
        close = far > NEAR or world.z > 0.8 * LOW
        return self._go(x + world.x - held.x, y + world.y - held.y, height=self.WORK_HEIGHT, close=close)

    def _grasp(self, index: int) -> NDArray[np.float32]:
        world, thing = self.world, self.world.things[index]
        others = (world.distance(other) for other in range(len(world.things)) if other != index)
        if world.z < 1.1 * LOW and min(others, default=1.0) < 1.1 * CONTACT:  # up first: it would take that one along
            return self._action(world.x, world.y, self.TRAVEL_HEIGHT, 0.0, close=False)
        around = world.z < 0.8 * LOW and world.distance(index) < NEAR
        return self._go(thing.x, thing.y, height=self.WORK_HEIGHT, close=around)


def _draw(rng: np.random.Generator, task: str) -> tuple[World, str, list[list[Step]]]:
    """The scene, the instruction and the stages of a task."""
    if task == "swap":
        return _draw_swap(rng)
    count = int(rng.integers(2, 4 if task != "sort_and_return" else 5))
    rows = sorted(rng.permutation(ROWS)[: max(count, 3)].tolist(), reverse=True)
    if task == "lift_in_order":
        world = _world(rng, [(_somewhere(rng), row) for row in rows])
        order: list[int] = rng.permutation(len(rows))[:count].tolist()
        names = [world.things[index].name for index in order]
        stages = [[Step(verb, index)] for index in order for verb in ("lift", "put down")]
        return world, ", then ".join(f"lift the {name}" for name in names), stages[:-1]
    if task == "clear_and_lift":
        left: list[int] = sorted(rng.permutation(len(rows))[:count].tolist())
        world = _world(rng, [("left" if index in left else "right", row) for index, row in enumerate(rows)])
        target = int(rng.choice(left))
        stages = [[Step("move", index, "right") for index in left], [Step("lift", target)]]
        return world, f"clear the left side, then lift the {world.things[target].name}", stages
    world = _world(rng, [("middle", row) for row in rows[:count]])
    sides: list[Place] = ["left" if thing.colour in LEFT_COLOURS else "right" for thing in world.things]
    stages = [[Step("move", index, side) for index, side in enumerate(sides)], [Step("move", LAST, "middle")]]
    return world, "sort by colour, then put the last one back", stages


def _draw_swap(rng: np.random.Generator) -> tuple[World, str, list[list[Step]]]:
    """Two objects of one row, and maybe one of another row. The first one named goes to the middle first."""
    row, other = rng.permutation(ROWS)[:2].tolist()
    sides: list[Place] = ["left", "right"] if rng.random() < 0.5 else ["right", "left"]
    places: list[tuple[Place, float]] = [(side, row) for side in sides]
    world = _world(rng, [*places, *([(_somewhere(rng), other)] if rng.random() < 0.5 else [])])
    first, second = (thing.name for thing in world.things[:2])
    steps = [Step("move", 0, "middle"), Step("move", 1, sides[0]), Step("move", 0, sides[1])]
    return world, f"swap the {first} and the {second}", [[step] for step in steps]


def _somewhere(rng: np.random.Generator) -> Place:
    return list(PLACES)[rng.integers(len(PLACES))]


def _world(rng: np.random.Generator, places: list[tuple[Place, float]]) -> World:
    """Objects of different colours near these places and rows; the hand somewhere above."""
    colours = rng.permutation(list(COLOURS))[: len(places)]
    things = [
        Thing(
            str(colour),
            str(rng.choice(SHAPES)),
            x=PLACES[place] + float(rng.uniform(-SCATTER, SCATTER)),
            y=row + float(rng.uniform(-SCATTER, SCATTER)) / 2,
            yaw=float(rng.uniform(-0.8, 0.8)),
        )
        for colour, (place, row) in zip(colours, places, strict=True)
    ]
    x, y = rng.uniform(-0.8, 0.8, 2).tolist()
    height, yaw, opening = rng.uniform(0.45, 0.9), rng.uniform(-1.0, 1.0), rng.uniform(0.0, 1.0)
    return World(things, x, y, height, yaw=yaw, opening=opening)
