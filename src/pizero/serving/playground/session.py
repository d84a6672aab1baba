"""One page of the playground: a scene, one policy or two beside each other in it, and what the page changes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pizero.baseline.policy import DiffusionPolicy
from pizero.data.embodiments import tabletop
from pizero.envs.scene import TABLETOP, with_units
from pizero.envs.tabletop.env import PROMPTS, TabletopEnv
from pizero.envs.tabletop.long import TabletopLongEnv
from pizero.envs.tabletop.render import draw_ego, draw_top
from pizero.policy.chunk_executor import ChunkExecutor
from pizero.policy.course import Course, sample_course
from pizero.policy.policy import ModelPolicy
from pizero.policy.sampling import episode_noise
from pizero.types import UserError

PICTURE, HAND_PICTURE = 320, 160
"""Pixels of the pictures on the page."""
SCENES: dict[str, type[TabletopEnv]] = {"tabletop": TabletopEnv, "tabletop-long": TabletopLongEnv}
MOST_STEPS = 20


@dataclass(frozen=True)
class Player:
    """A policy of the playground by its name. plans: whether it may write what it does now; one that may not acts
    without.
    """

    name: str
    policy: ModelPolicy
    plans: bool = True


@dataclass(frozen=True)
class Settings:
    """What the sliders say. num_steps: of every policy, 0 for each one's own. delay: control steps between a question
    and its answer. noise: seed of the noise.
    """

    execution_horizon: int
    num_steps: int = 0
    delay: int = 0
    noise: int = 0


@dataclass
class Lane:
    """One player in a scene of its own. late: control steps until the answer that is under way arrives; the first one
    is waited for. new: whether the page has not seen the course yet.
    """

    player: Player
    env: TabletopEnv
    executor: ChunkExecutor
    course: Course | None = None
    answer: NDArray[np.float32] | None = None
    late: int = 0
    chunks: int = 0
    steps: int = 0
    solved_after: int | None = None
    first: bool = True
    new: bool = False


def check_player(player: Player) -> None:
    """UserError unless the policy moves the tabletop's robot, with the present observation alone."""
    robot, own, pipeline = player.policy.pipeline.embodiment, tabletop(), player.policy.pipeline
    widths = (pipeline.robot_state_dim, pipeline.robot_action_dim)
    same = sorted(robot.cameras.values()) == sorted(own.cameras.values())
    if not same or widths != (own.state_dim, own.action_dim) or player.policy.num_history != 1:
        raise UserError(
            f"{player.name}: the playground's scene is the built-in simulator's, and this policy is for the robot "
            f"{robot.name!r}; watch it with pizero replay or pizero evaluate"
        )


class Session:
    """Not for several threads at once. Every command may be followed by `step`."""

    def __init__(self, players: Sequence[Player]) -> None:
        for player in players:
            check_player(player)
        self._players = list(players)
        self.horizon = min(
            player.policy.noise_shape[0] - player.policy.model.config.past_actions for player in self._players
        )
        self.settings = Settings(max(self.horizon // 2, 1))
        self.note = ""
        """What went wrong with the last command or chunk, for the page."""
        self.begin("tabletop", None, 0)

    def begin(self, scene: str, task: str | None, seed: int) -> None:
        """A scene of a seed, the same for all players. task: None draws it from the seed."""
        if scene not in SCENES or (task is not None and task not in SCENES[scene].all_tasks):
            raise UserError(f"there is no task {task} in {scene}")
        self.scene, self.task, self.seed, self.resting, self.own_words = scene, task, seed, False, False
        self.lanes: list[Lane] = []
        size = max(max(player.policy.pipeline.image_size) for player in self._players)
        for player in self._players:
            env = SCENES[scene](image_size=size, render_in_step=False)
            env.reset(seed=seed, options=None if task is None else {"task": task})
            self.lanes.append(Lane(player, env, self._executor()))
        self.prompt = self.lanes[0].env.prompt

    def instruct(self, text: str) -> None:
        """Other words; where they are an instruction of the scene, its outcome is judged."""
        judged = [lane.env.instruct(text) or text == lane.env.prompt for lane in self.lanes]
        self.prompt, self.own_words = text, not all(judged)
        for lane in self.lanes:
            self._renew(lane)
            lane.steps, lane.solved_after = 0, None

    def change(self, **values: int) -> None:
        """Fields of the settings; the next chunk follows them."""
        changed = replace(self.settings, **values)
        limits = {
            "num_steps": (0, MOST_STEPS), "execution_horizon": (1, self.horizon), "delay": (0, self.horizon - 1),
            "noise": (0, 10_000),
        }  # fmt: skip
        for name, (low, high) in limits.items():
            if not low <= getattr(changed, name) <= high:
                raise UserError(f"{name} must be {low} to {high}, got {getattr(changed, name)}")
        self.settings = changed
        for lane in self.lanes:
            self._renew(lane)

    def move(self, number: int, x: float, y: float) -> None:
        """Puts an object somewhere else on the table, for every player."""
        for lane in self.lanes:
            lane.env.move_object(number, x, y)
            lane.steps, lane.solved_after = 0, None
        self.resting = False

    def step(self) -> None:
        """One control step of every player, unless all have solved their task."""
        if self.resting:
            return
        for lane in self.lanes:
            self._step(lane)
        self.resting = not self.own_words and all(lane.solved_after is not None for lane in self.lanes)

    def suggestions(self) -> list[str]:
        """Instructions of the scene."""
        env = self.lanes[0].env
        if isinstance(env, TabletopLongEnv) or env.world is None:
            return [env.prompt]
        return [text.format(thing.name) for thing in env.world.things for text in PROMPTS.values()]

    def _executor(self) -> ChunkExecutor:
        return ChunkExecutor(self.settings.execution_horizon, asynchronous=self.settings.delay > 0)

    def _renew(self, lane: Lane) -> None:
        """What was asked for holds no more; the next control step asks."""
        lane.executor, lane.answer, lane.first = self._executor(), None, True
        self.resting = False

    def _step(self, lane: Lane) -> None:
        executor = lane.executor
        if executor.needs_chunk:
            lane.course = self._ask(lane)
            lane.answer, lane.late = lane.course.chunk, 0 if lane.first else self.settings.delay
            lane.first, lane.new, lane.chunks = False, True, lane.chunks + 1
        if lane.answer is not None and lane.late <= 0:
            with warnings.catch_warnings(action="ignore"):  # that it is late is what the slider is for
                executor.load(lane.answer)
            lane.answer = None
        lane.late -= 1
        _, _, success, _, _ = lane.env.step(executor.next_action())
        lane.steps += 1
        if success and lane.solved_after is None:
            lane.solved_after = lane.steps

    def _ask(self, lane: Lane) -> Course:
        observation = {**lane.env.observe(), "prompt": self.prompt}
        if not lane.player.plans:
            observation["subtask"] = ""
        question = lane.executor.question(observation)
        noise = episode_noise(self.settings.noise, lane.chunks, lane.player.policy.noise_shape)
        policy, wanted = lane.player.policy, self.settings.num_steps
        return sample_course(policy, question, noise, possible_steps(policy, wanted) if wanted else None)


def possible_steps(policy: ModelPolicy, wanted: int) -> int:
    """The most steps up to `wanted` that the model can take: of DDIM a divisor of those of its training."""
    model = policy.model
    if isinstance(model, DiffusionPolicy) and model.schedule is not None:
        return next(steps for steps in range(wanted, 0, -1) if model.config.diffusion_steps % steps == 0)
    return wanted


def lane_state(lane: Lane, judged: bool) -> dict[str, Any]:
    """What the page shows of a player; its course where the chunk is new, as positions in the picture."""
    world = lane.env.world
    assert world is not None
    state: dict[str, Any] = {
        "name": lane.player.name, "steps": lane.steps, "chunks": lane.chunks, "held": lane.executor.held,
        "solved_after": lane.solved_after if judged else None,
        "objects": [{"name": thing.name, "x": thing.x, "y": thing.y} for thing in world.things],
        "ahead": lane.executor.remaining,
    }  # fmt: skip
    if lane.course is not None:
        state |= {
            "ms": round(lane.course.milliseconds, 1), "subtask": lane.course.subtask,
            "num_steps": len(lane.course.actions) - 1,
        }  # fmt: skip
        if lane.new:
            state["course"] = np.round(lane.course.actions, 3).tolist()
            lane.new = False
    return state


def lane_pictures(lane: Lane) -> dict[str, NDArray[np.uint8]]:
    assert lane.env.world is not None
    return {"top": draw_top(lane.env.world, PICTURE), "ego": draw_ego(lane.env.world, HAND_PICTURE)}


def about(session: Session) -> dict[str, Any]:
    """What the page asks once: ranges, scenes, where positions lie in the picture."""
    return {
        "horizon": session.horizon, "most_steps": MOST_STEPS,
        "scenes": {name: list(kind.all_tasks) for name, kind in SCENES.items()},
        "view": [TABLETOP.left, TABLETOP.right, TABLETOP.top, TABLETOP.bottom],
        "action_names": with_units("tabletop", TabletopEnv.action_names), "fps": TabletopEnv.fps,
    }  # fmt: skip
