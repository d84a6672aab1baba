"""Rollouts of a checkpoint in a simulator: success rates, videos, results.json."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pizero.envs.env import check_env, make_env
from pizero.envs.tasks import demonstrated_tasks, require_demonstrator
from pizero.evaluation.benchmark import RolloutConfig, episode_specs, evaluate, summarize, tiers_of
from pizero.evaluation.rollout import Alter, EpisodeSpec, run_demonstrator, run_random
from pizero.exported.policy import ExportedPolicy
from pizero.files import check_writable, write_bytes
from pizero.policy.policy import ModelPolicy
from pizero.processes import usual_threads
from pizero.report.evaluation import evaluation_report
from pizero.types import Env, RobotDict, UserError, check_whole
from pizero.workflows.policies import open_policy
from pizero.workflows.progress import console, progress_bar
from pizero.workflows.threads import torch_threads


@dataclass(frozen=True)
class EvaluateConfig(RolloutConfig):
    """num_steps: of sampling; None takes the model's own number. threads: of the CPU; 0 takes all cores. subtask_every:
    chunks for which a subtask holds that the policy wrote.
    """

    num_steps: int | None = None
    threads: int = 0
    subtask_every: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("subtask_every", self.subtask_every)


ACTORS = {"demonstrator": run_demonstrator, "random": run_random}
"""Who acts without a checkpoint: the environment's scripted demonstrator, and uniform actions of the whole range."""


def evaluate_policy(
    policy: ModelPolicy | ExportedPolicy,
    config: EvaluateConfig,
    folder: Path | None,
    *,
    label: str = "evaluating",
    alter: Alter | None = None,
) -> dict[str, Any]:
    """Runs the rollouts with a progress bar; `folder` gets the videos and results.json. Adds seconds and settings."""
    config = dataclasses.replace(config, execution_horizon=config.horizon_for(policy))
    started, done, successes = time.perf_counter(), 0, 0
    with torch_threads(config.threads or usual_threads()), progress_bar() as bars:
        bar = bars.add_task(label, total=None, note="")

        def count(result: Any) -> None:
            nonlocal done, successes
            done, successes = done + 1, successes + result.success
            bars.update(bar, completed=done, note=f"success {successes}/{done}")

        results = evaluate(
            policy, config, alter=alter, videos=None if folder is None or not config.num_videos else folder / "videos",
            on_start=lambda total: bars.update(bar, total=total), on_episode=count,
        )  # fmt: skip
    results["seconds"] = round(time.perf_counter() - started, 1)
    results["settings"] = dataclasses.asdict(config)
    if folder is not None:
        write_json(folder / "results.json", results)
    return results


def evaluate_checkpoint(checkpoint: str | Path, config: EvaluateConfig, folder: Path, **options: Any) -> dict[str, Any]:
    """`evaluate_policy` of a checkpoint or of a run's newest one, whose stored example, if any, is run first; or
    `evaluate_actor` for a name of `ACTORS`. Leaves results.json and report.html in `folder`.

    options: as for `load_policy`.
    """
    check_env(config.env)
    check_writable(folder)  # known before hours of episodes
    if checkpoint in ACTORS:
        results = evaluate_actor(str(checkpoint), config)
    else:
        results = _evaluate_checkpoint(checkpoint, config, folder, options)
    results["settings"] = {"policy": str(checkpoint), **results["settings"]}
    write_json(folder / "results.json", results)
    evaluation_report(folder / "report.html", results, films(folder, results))
    return results


def films(folder: Path, results: Mapping[str, Any]) -> list[Path]:
    """The episodes that an evaluation with these results recorded in its folder."""
    return [folder / "videos" / name for name in sorted(results.get("videos", ()))]


def evaluate_actor(name: str, config: EvaluateConfig) -> dict[str, Any]:
    """What `evaluate_policy` returns, of one of `ACTORS`."""
    started = time.perf_counter()
    env = make_env(config.env, image_size=config.image_size, render_in_step=False, tasks=config.tasks or None)
    try:
        specs = _actor_episodes(name, env, config)
        with progress_bar() as bars:
            bar = bars.add_task(name, total=len(specs), note="")
            results = summarize(ACTORS[name](env, specs, on_episode=lambda _: bars.advance(bar)), tiers_of(env))
    finally:
        env.close()
    used = ("env", "episodes", "tasks", "seed", "image_size")
    settings = {name: getattr(config, name) for name in used}
    return results | {"seconds": round(time.perf_counter() - started, 1), "settings": settings}


def _actor_episodes(name: str, env: Env, config: EvaluateConfig) -> Sequence[EpisodeSpec]:
    """The demonstrator's are of the tasks that it does, unless tasks are named; the others are printed."""
    specs = episode_specs(env, config.episodes, config.seed)
    if name != "demonstrator":
        return specs
    tasks = demonstrated_tasks(env, config.tasks)
    require_demonstrator(env, tasks, config.seed)
    without = [task for task in env.task_names if task not in tasks]
    if without:
        console.print(f"without {', '.join(without)}: the demonstrator does not do them")
    return [spec for spec in specs if spec.task in tasks]


def _evaluate_checkpoint(
    checkpoint: str | Path, config: EvaluateConfig, folder: Path, options: dict[str, Any]
) -> dict[str, Any]:
    policy = open_policy(checkpoint, num_steps=config.num_steps, **options)
    policy.subtask_every = config.subtask_every
    return evaluate_policy(policy, dataclasses.replace(config, num_steps=policy.num_steps), folder)


def swap_instructions(prompts: Sequence[str]) -> Alter:
    """Gives each episode another instruction, drawn by its seed: what a policy does that listens to the wrong one."""
    unique = sorted(set(prompts))
    if len(unique) < 2:
        raise UserError("swapping instructions needs at least two different ones")

    def alter(observation: RobotDict, spec: EpisodeSpec) -> RobotDict:
        others = [prompt for prompt in unique if prompt != observation["prompt"]]
        return {**observation, "prompt": others[np.random.default_rng(spec.seed).integers(len(others))]}

    return alter


def blank_images(observation: RobotDict, spec: EpisodeSpec) -> RobotDict:
    """Grey images: what a policy does without sight."""
    return {**observation, "images": {name: np.full_like(image, 128) for name, image in observation["images"].items()}}


def write_json(path: Path, values: Any) -> None:
    write_bytes(path, (json.dumps(values, indent=1) + "\n").encode())
