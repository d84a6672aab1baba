"""What keeps a robot smooth and successful when the policy is late: success and jerk under injected delays.

    python benchmarks/inference/real_time.py train runs/real-time      demonstrations, six small policies: an hour
    python benchmarks/inference/real_time.py measure runs/real-time    rollouts: tabletop.json and metaworld.json
    python benchmarks/inference/real_time.py show runs/real-time       tables and real_time.svg

Feeds docs/results/real_time.md. Times are those of 2 cores. After an interruption `train` and `measure` continue where
they stopped. The built-in simulator runs at 25 control steps a second instead of 5, so that ten steps of delay are 0.4
seconds and not a whole episode; Meta-World at its own 80.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from numpy.typing import NDArray

from pizero.checkpoints.load import load_policy
from pizero.configs.presets import Preset, get_preset
from pizero.envs.env import ENVS, make_env
from pizero.envs.tabletop.env import TabletopEnv
from pizero.envs.tabletop.world import MAX_STEP, MAX_TURN
from pizero.evaluation.benchmark import EVALUATION_SEED, wilson_interval
from pizero.policy.chunk_executor import ChunkExecutor
from pizero.policy.policy import ModelPolicy
from pizero.policy.real_time import RealTime
from pizero.types import Env, RobotDict
from pizero.workflows.collect import CollectConfig, collect_once
from pizero.workflows.evaluate import write_json
from pizero.workflows.start import Initialization
from pizero.workflows.train import train_policy

HORIZON, EXECUTION_HORIZON, MAX_DELAY = 24, 8, 10
DELAYS = (0, 4, 7, 10)
EPISODES = {"tabletop": 100, "metaworld": 40}
SLOTS = 10
"""Episodes side by side; they change nothing but the speed."""
FINER = 5
"""Control steps for one of the simulator's own."""


class FineTabletop(TabletopEnv):
    """The built-in simulator at 25 Hz: the hand gets a fifth as far in a control step."""

    fps = FINER * TabletopEnv.fps
    max_steps = FINER * TabletopEnv.max_steps
    demonstration_noise = TabletopEnv.demonstration_noise / FINER**0.5  # the same random walk per second

    def step(self, action: NDArray[np.float32]) -> tuple[RobotDict, float, bool, bool, dict[str, Any]]:
        world = self._world()
        nearer = np.array(action, np.float64)
        here = np.array([world.x, world.y, world.z])
        nearer[:3] = here + np.clip(nearer[:3] - here, -MAX_STEP / FINER, MAX_STEP / FINER)
        turn = math.remainder(math.pi * nearer[3] - world.yaw, math.tau)
        yaw = world.yaw + min(max(turn, -MAX_TURN / FINER), MAX_TURN / FINER)
        nearer[3] = math.remainder(yaw, math.tau) / math.pi
        return super().step(nearer.astype(np.float32))


ENVS["fine_tabletop"] = lambda **options: FineTabletop(**options)

COLLECT = {
    "tabletop": CollectConfig("fine_tabletop", episodes=1_500, noise=0.05, image_size=32, image_format="png"),
    "metaworld": CollectConfig("metaworld", tasks=("door-open-v3",), episodes=80, image_size=64),
}


TRAININGS = {"base": (1_500, 0, 1.0), "plain": (400, 0, 0.3), "trained": (400, MAX_DELAY, 0.3)}
"""Steps, longest delay, part of the preset's learning rate. Both policies that are compared go on from the base: a
small model that sees delays from the start copies the settled actions and hardly learns to look.
"""


def preset_of(name: str, kind: str) -> Preset:
    """The preset of the name with chunks of 24 actions, for one CPU thread."""
    preset = get_preset(name)
    steps, max_delay, rate = TRAININGS[kind]
    changes: dict[str, Any] = {"early_frames": 1.0} if name == "tabletop" else {}
    train = dataclasses.replace(
        preset.train, steps=steps, learning_rate=rate * preset.train.learning_rate, max_delay=max_delay, threads=1,
        save_every=100, validate_every=500, **changes,
    )  # fmt: skip
    return dataclasses.replace(preset, model=dataclasses.replace(preset.model, action_horizon=HORIZON), train=train)


def train(folder: Path, *names: str) -> None:
    for name in names or COLLECT:
        data = folder / f"{name}-data"
        collect_once(COLLECT[name], data)
        for kind in TRAININGS:
            start = None if kind == "base" else folder / f"{name}-base"
            train_policy(
                data, folder / f"{name}-{kind}", preset_of(name, kind), resume=True, initial=Initialization(start)
            )


@dataclasses.dataclass(frozen=True)
class Method:
    """A policy (the folder's last word), how it continues a chunk, and how chunks are played."""

    policy: str
    real_time: RealTime
    executor: dict[str, Any]


ASYNC = {"asynchronous": True}
METHODS = {
    "synchronous": Method("plain", RealTime(), {}),
    "asynchronous": Method("plain", RealTime(), ASYNC),
    "ensembling": Method("plain", RealTime(), {**ASYNC, "ensemble": 0.01}),
    "guided, identity": Method("plain", RealTime("guided", "identity"), {**ASYNC, "real_time": True}),
    "guided": Method("plain", RealTime("guided"), {**ASYNC, "real_time": True}),
    "trained": Method("trained", RealTime("trained"), {**ASYNC, "real_time": True}),
}
HOLD = {"tabletop": None, "metaworld": [0.0, 0.0, 0.0, math.nan]}
"""Poses are held by asking for the last one again, a motion by not moving."""


class Episode:
    """One episode under way, with a policy whose answers come `delay` control steps late."""

    def __init__(self, name: str, env: Env, task: str, seed: int, executor: ChunkExecutor, delay: int) -> None:
        self.name, self.env, self.executor, self.delay, self.seed = name, env, executor, delay, seed
        env.reset(seed=seed, options={"task": task})
        self.noise, self.chunks, self.steps = np.random.default_rng([seed, 2]), 0, 0
        self.due, self.chunk = -1, np.zeros((0, 0), np.float32)
        self.place = np.zeros(3)
        self.velocities: list[NDArray[np.float64]] = []
        self.boundaries: list[int] = []
        self.success = self.done = False

    def question(self, noise_shape: tuple[int, int]) -> RobotDict | None:
        """What the policy is asked at this control step, if anything; a chunk that is due is taken first."""
        if self.due == self.steps:
            self._load()
        if not self.executor.needs_chunk:
            return None
        noise = np.random.default_rng([self.seed, self.chunks]).standard_normal(noise_shape, np.float32)
        self.chunks += 1
        return {**self.executor.question(self.env.observe()), "noise": noise}

    def answer(self, chunk: NDArray[np.float32]) -> None:
        self.chunk, self.due = chunk, self.steps + (self.delay if self.steps else 0)
        if self.due == self.steps:
            self._load()

    def step(self) -> None:
        before = self.executor.held
        action = self.executor.next_action()
        if self.steps and (before > 0) != (self.executor.held > 0):
            self.boundaries.append(self.steps)
        self.velocities.append(self._velocity(action))
        noise = self.env.demonstration_noise * self.noise.standard_normal(action.shape)
        low, high = self.env.action_space.low, self.env.action_space.high
        _, _, ended, truncated, info = self.env.step(np.clip(action + noise, low, high).astype(np.float32))
        self.steps += 1
        self.success = bool(info["success"])
        self.done = self.success or ended or truncated

    def jerks(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Sizes of the commanded velocity's second differences: with a boundary inside their three steps, without."""
        sizes = np.linalg.norm(np.diff(self.velocities, 2, axis=0), axis=1) if self.steps > 2 else np.zeros(0)
        near = np.zeros(len(sizes), bool)
        for boundary in self.boundaries:  # the difference number i spans the steps i to i + 2
            near[max(boundary - 2, 0) : boundary] = True
        return sizes[near], sizes[~near]

    def _load(self) -> None:
        self.executor.load(self.chunk)
        if self.steps:
            self.boundaries.append(self.steps)

    def _velocity(self, action: NDArray[np.float32]) -> NDArray[np.float64]:
        """The commanded motion of the hand in one control step [3], as a part of the fastest one.

        Meta-World's actions are motions, the built-in simulator's are places to go to.
        """
        if self.name == "metaworld":
            return np.clip(action[:3], -1, 1).astype(np.float64)
        last, self.place = self.place, action[:3].astype(np.float64)
        return (self.place - last) / (MAX_STEP / FINER) if self.steps else np.zeros(3)


def run_cell(name: str, policy: ModelPolicy, method: Method, delay: int, count: int) -> dict[str, Any]:
    """Success rate and jerk of `count` episodes."""
    config = COLLECT[name]
    envs: list[Env] = [
        make_env(config.env, image_size=config.image_size, render_in_step=False, tasks=config.tasks or None)
        for _ in range(SLOTS)
    ]
    tasks = envs[0].task_names
    waiting = iter((tasks[number % len(tasks)], EVALUATION_SEED + number) for number in range(count))
    running: list[Episode | None] = [None] * SLOTS
    finished: list[Episode] = []
    while True:
        for slot, env in enumerate(envs):
            episode = running[slot]
            if episode is not None and episode.done:
                finished.append(episode)
                running[slot] = None
            if running[slot] is None and (following := next(waiting, None)) is not None:
                executor = ChunkExecutor(EXECUTION_HORIZON, first_delay=delay, hold=HOLD[name], **method.executor)
                running[slot] = Episode(name, env, *following, executor, delay)
        active = [episode for episode in running if episode is not None]
        if not active:
            return summary(finished)
        questions = [(episode, question) for episode in active if (question := episode.question(policy.noise_shape))]
        answers = policy.infer_batch([question for _, question in questions])
        for (episode, _), reply in zip(questions, answers, strict=True):
            episode.answer(reply["actions"])
        for episode in active:
            episode.step()


def summary(episodes: list[Episode]) -> dict[str, Any]:
    successes = sum(episode.success for episode in episodes)
    at, elsewhere = (np.concatenate(part) for part in zip(*(episode.jerks() for episode in episodes), strict=True))
    return {
        "successes": successes,
        "episodes": len(episodes),
        "interval": list(wilson_interval(successes, len(episodes))),
        "mean_steps": float(np.mean([episode.steps for episode in episodes])),
        "jerk_at_boundaries": float(at.mean()) if at.size else None,
        "jerk_elsewhere": float(elsewhere.mean()),
    }


def measure(folder: Path, *names: str) -> None:
    """Every cell of the named simulators, or of all, that their file of results does not hold yet."""
    torch.set_num_threads(1)
    for name in names or COLLECT:
        _measure(folder, name)


def _measure(folder: Path, name: str) -> None:
    path = folder / f"{name}.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    for delay, label in [(d, m) for d in DELAYS for m in METHODS]:
        key = f"{label} | {delay}"
        if key not in results:
            method = METHODS[label]
            policy = load_policy(folder / f"{name}-{method.policy}", real_time=method.real_time)
            results[key] = run_cell(name, policy, method, delay, EPISODES[name])
            write_json(path, results)
            print(key, json.dumps(results[key]), flush=True)


def show(folder: Path) -> None:
    """The tables as Markdown, and real_time.svg: success and jerk over the delay."""
    figure, axes = plt.subplots(len(COLLECT), 2, figsize=(9, 3.2 * len(COLLECT)), squeeze=False)
    for row, name in enumerate(COLLECT):
        results = json.loads((folder / f"{name}.json").read_text())
        delays = sorted(DELAYS)
        print(f"\n{name}\n\n| | " + " | ".join(f"delay {d}" for d in delays) + " |\n|" + "---|" * (len(delays) + 1))
        for label in METHODS:
            cells = [results.get(f"{label} | {delay}") for delay in delays]
            print(f"| {label} | " + " | ".join(map(_text, cells)) + " |")
            _draw(axes[row], label, [(d, cell) for d, cell in zip(delays, cells, strict=True) if cell])
        axes[row][0].set_ylabel(f"{name}: success")
        axes[row][0].set_ylim(0, 1.02)
        axes[row][1].set_ylabel("jerk at chunk boundaries")
        axes[row][1].set_yscale("log")
        for axis in axes[row]:
            axis.set_xlabel("delay, control steps")
    axes[0][1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(folder / "real_time.svg")


def _text(cell: dict[str, Any] | None) -> str:
    """Success with its interval, steps, jerk at the boundaries and elsewhere."""
    if cell is None:
        return "–"
    low, high = (round(100 * bound) for bound in cell["interval"])
    rate = round(100 * cell["successes"] / cell["episodes"])
    jerks = f"{cell['jerk_at_boundaries']:.2f} / {cell['jerk_elsewhere']:.2f}"
    return f"{rate} % ({low} to {high}) · {cell['mean_steps']:.0f} · {jerks}"


def _draw(axes: Any, label: str, cells: list[tuple[int, dict[str, Any]]]) -> None:
    delays = [delay + 0.12 * (list(METHODS).index(label) - 2.5) for delay, _ in cells]
    rates = np.array([cell["successes"] / cell["episodes"] for _, cell in cells])
    intervals = np.array([cell["interval"] for _, cell in cells]).T
    bars = axes[0].errorbar(delays, rates, np.abs(intervals - rates), label=label, capsize=2, marker="o", markersize=3)
    axes[1].plot(delays, [cell["jerk_at_boundaries"] for _, cell in cells], "o-", color=bars[0].get_color(),
                 label=label, markersize=3)  # fmt: skip


if __name__ == "__main__":
    {"train": train, "measure": measure, "show": show}[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
