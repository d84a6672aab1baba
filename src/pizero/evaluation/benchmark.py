"""Success rates of a policy on the tasks of an environment, with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pizero.envs.env import make_env
from pizero.evaluation.rollout import Alter, EpisodeResult, EpisodeSpec, OnEpisode, history_of, rollout, rollout_in
from pizero.evaluation.simulators import process_simulators
from pizero.evaluation.subtasks import SubtaskSource, per_subtask
from pizero.evaluation.video import captioned, write_mp4
from pizero.types import Env, Policy, UserError, check_least

EVALUATION_SEED = 1_000_000
"""Far from the seeds of `collect`, so that no evaluated scene was a demonstration."""


def wilson_interval(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson score interval of a success rate, 95 % with the default z; (0, 1) without episodes."""
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes in {n} episodes")
    if n == 0:
        return 0.0, 1.0
    rate = successes / n
    center = rate + z * z / (2 * n)
    half = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    low, high = (center - half) / scale, (center + half) / scale
    return (0.0 if successes == 0 else low), (1.0 if successes == n else high)  # exact at the ends


def summarize(results: Sequence[EpisodeResult], tiers: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Counts and rates over all results and per task, ready for JSON; with `tiers` (task: its tier of difficulty) per
    tier too (a task without one is in none), and "mean_of_tiers", the mean of their success rates.

    Keys: success_rate (over the completed episodes, None without any), interval [low, high], successes, episodes
    (completed), errors, mean_steps, mean_steps_success, error_texts, per_task {task: the same without per_task}. Of
    simulators with subtasks also "subtasks": done, all, rate, interval, and per_subtask, of the first, second, ... one
    [done, episodes that have it]; of policies that write them "subtask_agreement", the share that was what was due. Of
    simulators with a score also "score": the mean over the completed episodes of each one's highest.
    """
    tasks = dict.fromkeys(result.task for result in results)
    per_task = {task: _summarize([result for result in results if result.task == task]) for task in tasks}
    summary = {**_summarize(results), "per_task": per_task}
    if tiers:
        per_tier = {
            tier: _summarize([result for result in results if tiers.get(result.task) == tier])
            for tier in dict.fromkeys(tiers.values())
            if any(tiers.get(task) == tier for task in tasks)
        }
        rates = [entry["success_rate"] for entry in per_tier.values() if entry["success_rate"] is not None]
        summary |= {"per_tier": per_tier, "mean_of_tiers": sum(rates) / len(rates) if rates else None}
    return summary


@dataclass(frozen=True)
class RolloutConfig:
    """episodes: of each of the tasks (none named: all), with the seeds seed, seed + 1, ... execution_horizon: actions
    played before the next chunk is asked for; None takes half of the policy's action horizon. num_envs: simulators in
    this process. processes: above 0, so many in processes of their own instead, which gives the same as so many here.
    num_videos: how many episodes are filmed, the first ones of the tasks in turn. subtasks: who says what is to be done
    now. UserError for numbers that cannot be.
    """

    env: str
    episodes: int = 50
    tasks: tuple[str, ...] = ()
    seed: int = EVALUATION_SEED
    execution_horizon: int | None = None
    num_envs: int = 16
    processes: int = 0
    image_size: int | None = None
    num_videos: int = 0
    subtasks: SubtaskSource = "own"

    def __post_init__(self) -> None:
        check_least(1, episodes=self.episodes, num_envs=self.num_envs)
        check_least(0, processes=self.processes, seed=self.seed, num_videos=self.num_videos)

    def horizon_for(self, policy: Policy) -> int:
        """The execution horizon with this policy; UserError where neither says one."""
        if self.execution_horizon is not None:
            return self.execution_horizon
        shape: tuple[int, int] | None = getattr(policy, "noise_shape", None)
        if shape is None:
            raise UserError("this policy does not say how long its action chunks are; choose an execution_horizon")
        return max(shape[0] // 2, 1)


def evaluate(
    policy: Policy,
    config: RolloutConfig,
    *,
    alter: Alter | None = None,
    videos: Path | None = None,
    on_start: Callable[[int], None] | None = None,
    on_episode: OnEpisode | None = None,
) -> dict[str, Any]:
    """Runs the episodes of the config; returns what `summarize` does.

    An episode that an exception of the environment ended is counted under "errors" and in no rate; callers treat
    errors > 0 as a failed run. videos: folder for the filmed episodes as <task>_<seed>.mp4, whose names are returned as
    "videos". on_start: gets the number of episodes in all.
    """
    execution_horizon = config.horizon_for(policy)
    options: dict[str, Any] = {
        "image_size": config.image_size, "render_in_step": False, "tasks": config.tasks or None
    }  # fmt: skip
    envs = [make_env(config.env, **options)]
    try:
        specs = episode_specs(envs[0], config.episodes, config.seed)
        num_envs = min(config.num_envs, getattr(envs[0], "most_at_once", config.num_envs))
        if on_start is not None:
            on_start(len(specs))
        films: list[str] = []

        def ended(result: EpisodeResult) -> None:
            if on_episode is not None:
                on_episode(result)
            if videos is not None and result.frames:
                films.append(_write_video(videos, result, envs[0].fps))
                result.frames.clear()  # fifty films are gigabytes

        how: dict[str, Any] = {
            "alter": alter, "on_episode": ended, "subtasks": config.subtasks,
            "record": [] if videos is None else first_of_each(specs)[: config.num_videos],
        }  # fmt: skip
        if config.processes:
            count = min(config.processes, len(specs))
            with process_simulators(count, config.env, history_of(policy), options) as simulators:
                results = rollout_in(simulators, policy, specs, execution_horizon, **how)
        else:
            envs += [make_env(config.env, **options) for _ in range(min(num_envs, len(specs)) - 1)]
            results = rollout(policy, envs, specs, execution_horizon, **how)
    finally:
        for env in envs:
            env.close()
    return summarize(results, tiers_of(envs[0])) | {"videos": films}


def episode_specs(env: Env, episodes: int, seed: int) -> list[EpisodeSpec]:
    """`episodes` of each task. Seed by seed; task by task where another task takes a simulator of its own
    (`most_at_once`).
    """
    if hasattr(env, "most_at_once"):
        return [EpisodeSpec(task, seed + number) for task in env.task_names for number in range(episodes)]
    return [EpisodeSpec(task, seed + number) for number in range(episodes) for task in env.task_names]


def first_of_each(specs: Sequence[EpisodeSpec]) -> list[int]:
    """Places of the episodes of `episode_specs`: the first one of each task, then the second ones, and so on."""
    return sorted(range(len(specs)), key=lambda place: specs[place].seed)


def tiers_of(env: Env) -> Mapping[str, str]:
    """The tier of difficulty of each task, where the environment has a mapping `tiers`."""
    return getattr(env, "tiers", {})


def _summarize(results: Sequence[EpisodeResult]) -> dict[str, Any]:
    completed = [result for result in results if result.error is None]
    successes = sum(result.success for result in completed)
    scores = [result.score for result in completed if result.score is not None]
    return {
        **_summarize_subtasks(completed),
        **({"score": sum(scores) / len(scores)} if scores else {}),
        "success_rate": successes / len(completed) if completed else None,
        "interval": list(wilson_interval(successes, len(completed))),
        "successes": successes,
        "episodes": len(completed),
        "errors": len(results) - len(completed),
        "mean_steps": _mean([result.steps for result in completed]),
        "mean_steps_success": _mean([result.steps for result in completed if result.success]),
        "error_texts": _error_texts(results),
    }


def _summarize_subtasks(results: Sequence[EpisodeResult]) -> dict[str, Any]:
    counts = [result.subtasks for result in results if result.subtasks is not None]
    agreed = [result.agreed for result in results if result.agreed is not None]
    summary: dict[str, Any] = {}
    if counts:
        done, total = (sum(numbers) for numbers in zip(*counts, strict=True))
        summary["subtasks"] = {
            "done": done, "all": total, "rate": done / total, "interval": list(wilson_interval(done, total)),
            "per_subtask": [list(pair) for pair in per_subtask(counts)],
        }  # fmt: skip
    if agreed:
        summary["subtask_agreement"] = sum(right for right, _ in agreed) / sum(asked for _, asked in agreed)
    return summary


def _error_texts(results: Sequence[EpisodeResult]) -> list[str]:
    """Each different error once, with the first episode that it ended."""
    ended: dict[str, list[EpisodeResult]] = {}
    for result in results:
        if result.error is not None:
            ended.setdefault(result.error, []).append(result)
    return [
        f"{text} ({first.task}, seed {first.seed}{f', and {len(others)} more' if others else ''})"
        for text, (first, *others) in sorted(ended.items())
    ]


def _mean(values: Sequence[int]) -> float | None:
    return sum(values) / len(values) if values else None


def _write_video(folder: Path, result: EpisodeResult, fps: float) -> str:
    """The name of the file."""
    task = "".join(c if c.isalnum() or c in "-." else "_" for c in result.task)
    name = f"{task}_{result.seed}.mp4"
    write_mp4(folder / name, captioned(result.frames, result.captions), fps)
    return name
