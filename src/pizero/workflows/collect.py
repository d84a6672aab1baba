"""Demonstrations of a simulator's scripted demonstrator, recorded as a LeRobot v3.0 dataset."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import count, islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pizero.data.datasets.writer.lerobot_writer import LeRobotWriter
from pizero.envs.env import make_env
from pizero.envs.tasks import demonstrated_tasks, require_demonstrator
from pizero.processes import Workers
from pizero.types import Env, SubtaskEnv, UserError, check_least
from pizero.workflows.progress import console, progress_bar


@dataclass(frozen=True)
class CollectConfig:
    """What is recorded.

    noise: standard deviation of Gaussian noise on the executed action; None takes the environment's own noise and
    pushes. The recorded action stays the demonstrator's, so the dataset shows how to come back (DART, arXiv
    1703.09327). A third of the episodes, drawn by the seed, is without noise.
    """

    env: str = "tabletop"
    episodes: int = 100
    """In all; the tasks take turns."""
    tasks: tuple[str, ...] = ()
    """None given: all tasks of the environment, or those that it names as `demonstrated_tasks`."""
    seed: int = 0
    noise: float | None = None
    image_size: int | None = None
    image_format: str = "h264"
    workers: int = 1
    """Processes that run the simulator."""

    def __post_init__(self) -> None:
        if self.noise is not None and not 0 <= self.noise < math.inf:
            raise UserError(f"noise must be a number of at least 0, got {self.noise}")
        check_least(0, seed=self.seed)
        check_least(1, episodes=self.episodes, workers=self.workers)


@dataclass(frozen=True)
class Demonstration:
    """One recorded episode: states [T, d], actions [T, d], images per camera [T, h, w, 3]; subtasks [T], of which
    there are none in most simulators.
    """

    prompt: str
    states: NDArray[np.float32]
    actions: NDArray[np.float32]
    images: dict[str, NDArray[np.uint8]]
    success: bool
    subtasks: Sequence[str] = ()


@dataclass(frozen=True)
class CollectResult:
    episodes: int
    frames: int
    attempts: int
    seconds: float

    @property
    def demonstrator_success_rate(self) -> float:
        return self.episodes / self.attempts


def collect(config: CollectConfig, root: Path, on_episode: Callable[[int], None] | None = None) -> CollectResult:
    """Records `config.episodes` successful episodes at `root`, of each task as many; failed attempts are thrown away
    and counted.

    Attempt k has the seed `config.seed + k` and is of task k, counted in turns, so the same configuration records the
    same dataset. Where the environment has `most_at_once` (LIBERO) tasks are recorded one after the other, and
    attempt k of each has the seed `config.seed + k`. UserError, before anything is recorded, for a named task that has
    no demonstrator.
    """
    started = time.perf_counter()
    env = make_env(config.env, image_size=config.image_size, tasks=config.tasks or None)
    try:
        names = demonstrated_tasks(env, config.tasks)
        require_demonstrator(env, names, config.seed)
        observation, _ = env.reset(seed=config.seed, options={"task": names[0]})
        cameras = {name: image.shape[:2] for name, image in observation["images"].items()}
        writer = LeRobotWriter(
            root, fps=env.fps, robot_type=config.env, state_names=env.state_names, action_names=env.action_names,
            cameras=cameras, image_format=config.image_format,  # type: ignore[arg-type]
        )  # fmt: skip
        saved = frames = 0
        tasks = len(names)
        missing = [(config.episodes + tasks - 1 - task) // tasks for task in range(tasks)]  # episodes, by task
        tried, failed = [0] * tasks, [0] * tasks
        with writer, closing(_attempts(config, env, missing)) as demonstrations:
            for task, demonstration in demonstrations:
                if not missing[task]:  # begun before the task's last episode was known to be a success
                    continue
                tried[task] += 1
                if demonstration.success:
                    _write(writer, demonstration)
                    saved, frames = saved + 1, frames + len(demonstration.states)
                    missing[task] -= 1
                    if on_episode is not None:
                        on_episode(saved)
                else:
                    failed[task] += 1
                if saved == config.episodes:
                    break
                if tried[task] >= 20 and failed[task] > 0.9 * tried[task]:
                    raise UserError(
                        f"{names[task]}: the demonstrator failed in {failed[task]} of {tried[task]} attempts; "
                        "lower the noise"
                    )
    finally:
        env.close()
    return CollectResult(saved, frames, sum(tried), time.perf_counter() - started)


def collect_once(config: CollectConfig, root: Path) -> float:
    """`collect` with a progress bar, unless the dataset is there already; returns the seconds it took."""
    if root.is_dir():
        console.print(f"using the demonstrations in {root}")
        return 0.0
    with progress_bar() as bars:
        bar = bars.add_task("demonstrations", total=config.episodes, note="")
        return collect(config, root, lambda done: bars.update(bar, completed=done)).seconds


def record_episode(env: Env, task: str, seed: int, noise: float | None = None) -> Demonstration:
    """One attempt of the scripted demonstrator, from reset to success or to the step limit."""
    rng = np.random.default_rng([seed, 1])
    observation, info = env.reset(seed=seed, options={"task": task})
    prompt, demonstrator = observation["prompt"], env.demonstrator()
    states: list[NDArray[np.float32]] = []
    actions: list[NDArray[np.float32]] = []
    subtasks: list[str] = []
    images: dict[str, list[NDArray[np.uint8]]] = {name: [] for name in observation["images"]}
    disturbances = _disturbances(env, rng, seed, noise) if rng.random() > 1 / 3 else repeat(0.0)
    low, high = env.action_space.low, env.action_space.high
    success = truncated = False
    while not (success or truncated):
        if isinstance(env, SubtaskEnv):
            subtasks.append(env.subtask)
        action = demonstrator.act()
        states.append(observation["state"])
        actions.append(action)
        for name, image in observation["images"].items():
            images[name].append(image)
        executed = action + next(disturbances)
        observation, _, _, truncated, info = env.step(np.clip(executed, low, high).astype(np.float32))
        success = bool(info["success"])
    stacked = {name: np.stack(frames) for name, frames in images.items()}
    return Demonstration(prompt, np.stack(states), np.stack(actions), stacked, success, subtasks)


def _disturbances(env: Env, rng: np.random.Generator, seed: int, noise: float | None) -> Iterator[NDArray[np.float32]]:
    """What is added to the executed actions, step by step: white noise, and the environment's pushes unless `noise` is
    given. A push drifts off for 0.3 seconds, dies away as fast, and the next one comes after two seconds in the mean.
    """
    shape, pushes = env.action_space.shape, np.random.default_rng([seed, 2])
    scale = env.demonstration_noise if noise is None else noise
    push = getattr(env, "demonstration_pushes", 0.0) if noise is None else 0.0
    keep = math.exp(-1 / (0.15 * env.fps))
    drift, pushed, left = np.zeros(shape), True, 0
    while True:
        if left == 0:
            pushed = not pushed
            left = 1 + int(0.3 * env.fps if pushed else pushes.exponential(2 * env.fps))
        left -= 1
        drift = keep * drift + pushed * push * math.sqrt(1 - keep**2) * pushes.standard_normal(shape)
        yield (scale * rng.standard_normal(shape) + drift).astype(np.float32)


def _attempts(config: CollectConfig, env: Env, missing: Sequence[int]) -> Generator[tuple[int, Demonstration]]:
    """Attempts 0, 1, 2, ... without end, in their order, each with its task's number, from this process or from
    several. A task of which none is `missing` is passed over. Where the environment has `most_at_once`, a task is
    finished before the next one.
    """
    tasks = demonstrated_tasks(env, config.tasks)
    one_by_one = hasattr(env, "most_at_once")
    if config.workers > 1:
        with Workers(config.workers, _start_worker, (config,)) as workers:
            yield from _task_by_task(config, workers, missing) if one_by_one else _in_turns(config, workers, missing)
        return
    for task, seed in _one_by_one(config, missing) if one_by_one else _turns(config, missing):
        yield task, record_episode(env, tasks[task], seed, config.noise)


def _turns(config: CollectConfig, missing: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Task and seed of attempt 0, 1, 2, ..."""
    turns = ((attempt % len(missing), config.seed + attempt) for attempt in count())
    return ((task, seed) for task, seed in turns if missing[task])


def _one_by_one(config: CollectConfig, missing: Sequence[int]) -> Iterator[tuple[int, int]]:
    for task in range(len(missing)):
        seeds = count(config.seed)
        while missing[task]:
            yield task, next(seeds)


def _in_turns(config: CollectConfig, workers: Workers, missing: Sequence[int]) -> Generator[tuple[int, Demonstration]]:
    wanted = _turns(config, missing)
    waiting = deque(workers.submit(_work, list(islice(wanted, 8))) for _ in range(config.workers * 2))
    while True:
        yield from waiting.popleft().result()
        waiting.append(workers.submit(_work, list(islice(wanted, 8))))


def _task_by_task(
    config: CollectConfig, workers: Workers, missing: Sequence[int]
) -> Generator[tuple[int, Demonstration]]:
    """No more attempts are under way than the task lacks, so they are those that one process makes."""
    for task in range(len(missing)):
        seeds, waiting = count(config.seed), deque[Any]()
        while missing[task]:
            while len(waiting) < min(missing[task], 2 * config.workers):
                waiting.append(workers.submit(_work, [(task, next(seeds))]))
            yield from waiting.popleft().result()


_worker: dict[str, Any] = {}


def _start_worker(config: CollectConfig) -> None:
    _worker["config"] = config
    _worker["env"] = make_env(config.env, image_size=config.image_size, tasks=config.tasks or None)


def _work(turns: Sequence[tuple[int, int]]) -> list[tuple[int, Demonstration]]:
    config, env = _worker["config"], _worker["env"]
    names = demonstrated_tasks(env, config.tasks)
    return [(task, record_episode(env, names[task], seed, config.noise)) for task, seed in turns]


def _write(writer: LeRobotWriter, demonstration: Demonstration) -> None:
    texts = demonstration.subtasks or [None] * len(demonstration.states)
    frames = zip(demonstration.states, demonstration.actions, texts, strict=True)
    for index, (state, action, text) in enumerate(frames):
        images = {name: frames[index] for name, frames in demonstration.images.items()}
        writer.add_frame(state, action, images, text)
    writer.save_episode(demonstration.prompt)
