"""The built-in simulator: a gripper over a table with one to three coloured objects, in NumPy alone.

The prompt names an object and what to do with it. Physics: `tabletop_world`; pictures: `tabletop_render`.
"""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from pizero.envs.tabletop.render import COLOURS, draw_both, draw_ego, draw_top
from pizero.envs.tabletop.world import LOW, MAX_STEP, MAX_TURN, OBJECT_RADIUS, Thing, World
from pizero.envs.tasks import choose_tasks, episode_task
from pizero.types import RobotDict, UserError

PROMPTS = {
    "reach": "reach the {}",
    "push_left": "push the {} left",
    "push_right": "push the {} right",
    "lift": "lift the {}",
    "turn": "turn the {}",
}
SHAPES = ("block", "disc")
MAX_OBJECTS = 3
ROWS, COLUMNS, SCATTER = (-0.75, -0.25, 0.25, 0.75), (-0.28, 0.28), 0.1  # where objects stand, in table units
REACH_HEIGHT = 0.15
REACH_STEPS = 2  # staying is asked for, so that passing over the object is not success
REACH_OPENING = 0.8
PUSH_DISTANCE = 0.3
LIFT_HEIGHT = 0.5
TURN_ANGLE = math.radians(60)
DISTURBED = 0.1  # another object that moved further makes the episode a failure


class TabletopEnv(gymnasium.Env[RobotDict, NDArray[np.float32]]):
    """One gripper, one to three objects, five kinds of task (`task_names`).

    Observation: "state" float32 [7]: x, y, z, cos yaw, sin yaw, gripper opening, touch (1 while the tip touches or
    holds an object); "images" uint8 [image_size, image_size, 3]: "top" (the table), "ego" (on the hand); "prompt".
    Action [5] in [-1, 1]: the pose to go to, x, y, z and yaw / pi, and the gripper (above 0 closes). In one step the
    hand gets at most 0.25 table units along each axis and 0.5 rad nearer to it.
    An episode ends on success, with reward 1, or is truncated after `max_steps`.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}  # noqa: RUF012
    fps = 5.0
    max_steps = 25
    state_names: tuple[str, ...] = ("x", "y", "z", "cos_yaw", "sin_yaw", "opening", "touch")
    action_names: tuple[str, ...] = ("x", "y", "z", "yaw", "gripper")
    demonstration_noise = 0.05
    all_tasks: tuple[str, ...] = tuple(PROMPTS)

    def __init__(self, tasks: Sequence[str] | None = None, image_size: int = 64, render_in_step: bool = True) -> None:
        """tasks: kinds that `reset` draws from (None: all). Raises UserError for an unknown kind."""
        self.task_names: tuple[str, ...] = choose_tasks(tasks, self.all_tasks)
        self.render_mode = "rgb_array"
        self.image_size = image_size
        self.render_in_step = render_in_step
        image = spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        low = np.array([-1, -1, 0, -1, -1, 0, 0], np.float32)
        self.observation_space = spaces.Dict(
            {
                "state": spaces.Box(low, np.ones(7, np.float32), dtype=np.float32),
                "images": spaces.Dict({"top": image, "ego": image}),
                "prompt": spaces.Text(max_length=96, charset=string.ascii_lowercase + " ,"),
            }
        )
        self.action_space = spaces.Box(-1.0, 1.0, (5,), np.float32)
        self.world: World | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[RobotDict, dict[str, Any]]:
        """Starts an episode that `seed` determines.

        options: "task" (a kind) and "num_objects" (1 to 3); what is not given is drawn from the seed.
        """
        super().reset(seed=seed)
        self._begin(options or {})
        self._steps = 0
        return self.observe(), self._info(success=False)

    def _begin(self, options: dict[str, Any]) -> None:
        """Draws world, task and prompt."""
        num_objects = _checked_number(options)
        self.task = episode_task(self.np_random, self.task_names, options)
        drawn_number = int(self.np_random.integers(1, MAX_OBJECTS + 1))
        self.world = _draw_world(self.np_random, num_objects or drawn_number)
        self.target = 0  # objects are drawn alike, so the first is any of them
        self.prompt = PROMPTS[self.task].format(self.world.things[self.target].name)
        self._begin_now()

    def step(self, action: NDArray[np.float32]) -> tuple[RobotDict, float, bool, bool, dict[str, Any]]:
        """Applies an action [5] in [-1, 1] (clipped). Raises UserError for another shape or a value not finite."""
        world = self._world()
        x, y, z, turn, gripper = _checked_action(action)
        yaw = math.remainder(math.pi * turn - world.yaw, math.tau) / MAX_TURN
        moves = ((x - world.x) / MAX_STEP, (y - world.y) / MAX_STEP, (z - world.z) / MAX_STEP, yaw)
        world.step([*(min(max(move, -1.0), 1.0) for move in moves), gripper])
        self._steps += 1
        success = self._success(world)
        observation = self.observe() if self.render_in_step else {"state": self._state(), "prompt": self.prompt}
        truncated = self._steps >= self.max_steps and not success
        return observation, float(success), success, truncated, self._info(success)

    def observe(self) -> RobotDict:
        """The present observation, with images."""
        world, size = self._world(), self.image_size
        images = {"top": draw_top(world, size), "ego": draw_ego(world, size)}
        return {"state": self._state(), "images": images, "prompt": self.prompt}

    def render(self, size: int = 256) -> NDArray[np.uint8]:
        """Both cameras side by side for people to look at: [size, 2 * size + 8, 3]."""
        return draw_both(self._world(), size)

    def instruct(self, prompt: str) -> bool:
        """Makes `prompt` the task of the present scene, begun now; false, and nothing changes, where it is none of the
        scene's instructions.
        """
        for task in PROMPTS.keys() & set(self.task_names):
            for index, thing in enumerate(self._world().things):
                if PROMPTS[task].format(thing.name) == prompt:
                    self.task, self.target, self.prompt = task, index, prompt
                    self._begin_now()
                    return True
        return False

    def move_object(self, index: int, x: float, y: float) -> None:
        """A person puts object `index` at (x, y) on the table; the task begins anew. UserError for no such object."""
        world = self._world()
        if not 0 <= index < len(world.things):
            raise UserError(f"there is no object {index}: the scene has {len(world.things)}")
        world.put(index, x, y)
        self._begin_now()

    def _begin_now(self) -> None:
        """Success and disturbance are judged from the present moment on."""
        self._start = [(thing.x, thing.y, thing.yaw) for thing in self._world().things]
        self._stayed, self._steps, self._failed = 0, 0, False

    def demonstrator(self) -> TabletopDemonstrator:
        """The scripted demonstrator of the present episode."""
        return TabletopDemonstrator(self._world(), self.task, self.target)

    def _info(self, success: bool) -> dict[str, Any]:
        return {"success": success, "task": self.task}

    def _world(self) -> World:
        if self.world is None:
            raise UserError("the environment has no episode yet: call reset() first")
        return self.world

    def _state(self) -> NDArray[np.float32]:
        world = self._world()
        yaw = (math.cos(world.yaw), math.sin(world.yaw))
        return np.array([world.x, world.y, world.z, *yaw, world.opening, float(world.touching())], np.float32)

    def _success(self, world: World) -> bool:
        """Whether the task is done now; an episode that disturbed another object can no longer succeed."""
        moved = [math.hypot(t.x - x, t.y - y) for t, (x, y, _) in zip(world.things, self._start, strict=True)]
        others_moved = any(d > DISTURBED for i, d in enumerate(moved) if i != self.target)
        pushes = self.task.startswith("push")
        self._failed |= others_moved or (world.held is not None and (pushes or world.held != self.target))
        target, (x, _, yaw) = world.things[self.target], self._start[self.target]
        if self.task == "reach":
            there = world.z < REACH_HEIGHT and world.distance(self.target) < OBJECT_RADIUS
            here = there and world.opening >= REACH_OPENING and moved[self.target] < DISTURBED
            self._stayed = self._stayed + 1 if here else 0
            done = self._stayed >= REACH_STEPS
        elif pushes:
            done = (target.x - x) * _side(self.task) >= PUSH_DISTANCE
        elif self.task == "lift":
            done = world.held == self.target and world.z > LIFT_HEIGHT
        else:
            done = abs(target.yaw - yaw) >= TURN_ANGLE  # only a held object turns
        return done and not self._failed


class TabletopDemonstrator:
    """Does a task with one object. The action is a function of the world's present state alone."""

    TRAVEL_HEIGHT = 0.42  # clear of every object
    WORK_HEIGHT = 0.12
    LIFTED_HEIGHT = 0.6
    BEHIND = OBJECT_RADIUS + 0.14  # where a push starts, seen from the object's centre

    def __init__(self, world: World, task: str, target: int) -> None:
        self.world, self.task, self.target = world, task, target

    def act(self) -> NDArray[np.float32]:
        """The action [5] for the present state."""
        world, thing = self.world, self.world.things[self.target]
        if self.task.startswith("push"):
            return self._push(_side(self.task))
        if self.task == "reach":
            return self._go(thing.x, thing.y, height=0.03, close=False)
        if world.held == self.target:
            if self.task == "lift":
                return self._action(world.x, world.y, self.LIFTED_HEIGHT, 0.0, close=True)
            return self._action(world.x, world.y, world.z, world.yaw + 2 * MAX_TURN, close=True)
        around = world.z < 0.8 * LOW and world.distance(self.target) < 0.8 * OBJECT_RADIUS
        return self._go(thing.x, thing.y, height=self.WORK_HEIGHT, close=around)

    def _action(self, x: float, y: float, z: float, yaw: float, close: bool) -> NDArray[np.float32]:
        """The action that sends the hand to a pose; how far it gets in one step is the hand's business."""
        turn = math.remainder(yaw, math.tau) / math.pi
        return np.array([x, y, z, turn, 1.0 if close else -1.0], np.float32).clip(-1.0, 1.0)

    def _go(self, x: float, y: float, height: float, close: bool) -> NDArray[np.float32]:
        """Travels high to above (x, y), then down to `height`, the wrist straight."""
        far = math.hypot(x - self.world.x, y - self.world.y)
        away = min(max((far - 0.06) / 0.1, 0.0), 1.0)
        return self._action(x, y, height + away * (self.TRAVEL_HEIGHT - height), 0.0, close)

    def _push(self, side: float) -> NDArray[np.float32]:
        """From behind the object (`side` is the sign of the way it shall go), closed, along x."""
        world, thing = self.world, self.world.things[self.target]
        behind, aside = side * (thing.x - world.x), thing.y - world.y
        if world.z >= LOW:
            return self._go(thing.x - side * self.BEHIND, thing.y, height=self.WORK_HEIGHT, close=True)
        if behind < 0.12 or abs(aside) > 0.14:  # not behind it any more: up, and once more
            return self._action(world.x, world.y, self.TRAVEL_HEIGHT, 0.0, close=True)
        return self._action(thing.x, thing.y, self.WORK_HEIGHT, 0.0, close=True)


def _side(task: str) -> float:
    return -1.0 if task == "push_left" else 1.0


def _draw_world(rng: np.random.Generator, num_objects: int) -> World:
    """Objects of different colours, each near one of two places of a row of its own: free space to both sides,
    whichever the task names.
    """
    rows = rng.permutation(ROWS)[:num_objects]
    colours = rng.permutation(list(COLOURS))[:num_objects]
    things = [
        Thing(
            str(colour),
            str(rng.choice(SHAPES)),
            x=float(rng.choice(COLUMNS) + rng.uniform(-SCATTER, SCATTER)),
            y=float(row + rng.uniform(-SCATTER, SCATTER) / 2),  # rows must stay apart
            yaw=rng.uniform(-0.8, 0.8),
        )
        for colour, row in zip(colours, rows, strict=True)
    ]
    x, y = rng.uniform(-0.8, 0.8, 2).tolist()
    return World(things, x, y, rng.uniform(0.45, 0.9), yaw=rng.uniform(-1.0, 1.0), opening=rng.uniform(0.0, 1.0))


def _checked_number(options: dict[str, Any]) -> int | None:
    """Of objects, where one is given."""
    unknown = set(options) - {"task", "num_objects"}
    if unknown:
        raise UserError(f"unknown reset option {sorted(unknown)[0]!r}: the options are task and num_objects")
    number = options.get("num_objects")
    if number is not None and number not in range(1, MAX_OBJECTS + 1):
        raise UserError(f"num_objects is {number!r}, expected a number from 1 to {MAX_OBJECTS}")
    return number


def _checked_action(action: NDArray[np.float32]) -> list[float]:
    values = np.asarray(action, np.float64)
    if values.shape != (5,) or not np.isfinite(values).all():
        came = values.tolist() if values.shape == (5,) else f"of shape {list(values.shape)}"
        raise UserError(f"action is {came}, expected 5 finite numbers: x, y, z, yaw / pi, gripper")
    return values.clip(-1.0, 1.0).tolist()
