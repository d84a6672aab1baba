"""Success rates of a policy on the tasks of an environment, with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pizero.envs.env import make_env
from pizero.evaluation.rollout import Alter, EpisodeResult, EpisodeSpec, OnEpisode, history_of, rollout, rollout_in
from pizero.evaluation.simulators import process_simulators
from pizero.evaluation.video import write_mp4
from pizero.types import Env, Policy, UserError


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
    tier too, and "mean_of_tiers", the mean of their success rates.

    Keys: success_rate (over the completed episodes, None without any), interval [low, high], successes, episodes
    (completed), errors, mean_steps, mean_steps_success, error_texts, per_task {task: the same without per_task}.
    """
    tasks = dict.fromkeys(result.task for result in results)
    per_task = {task: _summarize([result for result in results if result.task == task]) for task in tasks}
    summary = {**_summarize(results), "per_task": per_task}
    if tiers:
        names = [tier for tier in dict.fromkeys(tiers.values()) if any(tiers[task] == tier for task in tasks)]
        per_tier = {tier: _summarize([result for result in results if tiers[result.task] == tier]) for tier in names}
        rates = [entry["success_rate"] for entry in per_tier.values() if entry["success_rate"] is not None]
        summary |= {"per_tier": per_tier, "mean_of_tiers": sum(rates) / len(rates) if rates else None}
    return summary


def evaluate(
    policy: Policy,
    env_name: str,
    *,
    tasks: Sequence[str] | None = None,
    episodes: int = 50,
    seed: int = 0,
    execution_horizon: int = 8,
    num_envs: int = 16,
    processes: int = 0,
    image_size: int | None = None,
    alter: Alter | None = None,
    videos: Path | None = None,
    num_videos: int = 4,
    on_start: Callable[[int], None] | None = None,
    on_episode: OnEpisode | None = None,
) -> dict[str, Any]:
    """`episodes` episodes of each task (None: all), with the seeds seed, seed + 1, ...; returns what `summarize` does.

    An episode that an exception of the environment ended is counted under "errors" and in no rate; callers treat
    errors > 0 as a failed run. num_envs: simulators in this process. processes: above 0, so many in processes of their
    own instead, which gives the same as so many here. videos: folder for the first `num_videos` episodes as
    <task>_<seed>.mp4. on_start: told the number of episodes in all.
    """
    for name, value, least in (("episodes", episodes, 1), ("num_envs", num_envs, 1), ("processes", processes, 0)):
        if value < least:
            raise UserError(f"{name} must be at least {least}, got {value}")
    options: dict[str, Any] = {"image_size": image_size, "render_in_step": False, "tasks": tasks}
    envs = [make_env(env_name, **options)]
    try:
        specs = episode_specs(envs[0], episodes, seed)
        num_envs = min(num_envs, getattr(envs[0], "most_at_once", num_envs))
        if on_start is not None:
            on_start(len(specs))
        how: dict[str, Any] = {
            "alter": alter, "on_episode": on_episode, "record_first": 0 if videos is None else num_videos
        }  # fmt: skip
        if processes:
            count = min(processes, len(specs))
            with process_simulators(count, env_name, history_of(policy), options) as simulators:
                results = rollout_in(simulators, policy, specs, execution_horizon, **how)
        else:
            envs += [make_env(env_name, **options) for _ in range(min(num_envs, len(specs)) - 1)]
            results = rollout(policy, envs, specs, execution_horizon, **how)
        if videos is not None:
            _write_videos(videos, results, envs[0])
    finally:
        for env in envs:
            env.close()
    return summarize(results, tiers_of(envs[0]))


def episode_specs(env: Env, episodes: int, seed: int) -> list[EpisodeSpec]:
    """`episodes` of each task. Seed by seed, so that the first videos show different tasks; task by task where another
    task takes a simulator of its own (`most_at_once`).
    """
    if hasattr(env, "most_at_once"):
        return [EpisodeSpec(task, seed + number) for task in env.task_names for number in range(episodes)]
    return [EpisodeSpec(task, seed + number) for number in range(episodes) for task in env.task_names]


def tiers_of(env: Env) -> Mapping[str, str]:
    """The tier of difficulty of each task, where the environment has a mapping `tiers`."""
    return getattr(env, "tiers", {})


def _summarize(results: Sequence[EpisodeResult]) -> dict[str, Any]:
    completed = [result for result in results if result.error is None]
    successes = sum(result.success for result in completed)
    return {
        "success_rate": successes / len(completed) if completed else None,
        "interval": list(wilson_interval(successes, len(completed))),
        "successes": successes,
        "episodes": len(completed),
        "errors": len(results) - len(completed),
        "mean_steps": _mean([result.steps for result in completed]),
        "mean_steps_success": _mean([result.steps for result in completed if result.success]),
        "error_texts": _error_texts(results),
    }


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


def _write_videos(folder: Path, results: Sequence[EpisodeResult], env: Env) -> None:
    for result in results:
        if result.frames:
            name = "".join(c if c.isalnum() or c in "-." else "_" for c in result.task)
            write_mp4(folder / f"{name}_{result.seed}.mp4", result.frames, env.fps)
