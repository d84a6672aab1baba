"""The whole job in one call: demonstrations -> dataset -> training -> evaluated policy -> report, in two simulators."""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from pizero.checkpoints.load import load_policy, read_checkpoint
from pizero.configs.presets import Pi0Name, Preset, metaworld, tabletop
from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.envs.env import make_env
from pizero.envs.metaworld.tasks import DEFAULT_TASKS
from pizero.envs.scene import with_units
from pizero.evaluation.rollout import EpisodeSpec, rollout
from pizero.evaluation.video import write_mp4
from pizero.files import read_json
from pizero.model.config import Pi0Config
from pizero.policy.course import sample_course
from pizero.policy.policy import ModelPolicy
from pizero.policy.sampling import episode_noise
from pizero.processes import usual_threads
from pizero.report.evaluation import BASELINES, check_completed
from pizero.report.quickstart import FilmedEpisode, SampledChunk, quickstart_report
from pizero.train.metrics import read_metrics
from pizero.types import UserError
from pizero.workflows.collect import CollectConfig, collect_once
from pizero.workflows.evaluate import (
    ACTORS,
    EvaluateConfig,
    blank_images,
    evaluate_actor,
    evaluate_policy,
    films,
    swap_instructions,
    write_json,
)  # fmt: skip
from pizero.workflows.progress import console
from pizero.workflows.run_settings import changed_settings, changed_text
from pizero.workflows.sizes import as_started
from pizero.workflows.train import TrainResult, train_policy

RECORDED = "demonstrations.json"
"""In the folder: how its dataset was recorded."""


@dataclass(frozen=True)
class DemoConfig:
    """command: as the user types it, for the report. baseline_episodes: of each task, for the comparisons."""

    command: str
    collect: CollectConfig
    evaluate: EvaluateConfig
    baseline_episodes: int
    baselines: tuple[str, ...] = tuple(BASELINES)


def quickstart(folder: Path, model: Pi0Name = "pi0") -> dict[str, Any]:
    """The built-in simulator: 5,000 demonstrations, 200 episodes of evaluation, 40 of each of five kinds of task."""
    return preset_demo(
        "pizero quickstart", tabletop(model), folder,
        CollectConfig("tabletop", episodes=5_000, image_format="png", workers=2),
        EvaluateConfig("tabletop", episodes=40, num_videos=10), baseline_episodes=20,
    )  # fmt: skip


def metaworld_demo(folder: Path, model: Pi0Name = "pi0") -> dict[str, Any]:
    """Six Meta-World tasks: 50 demonstrations and 50 episodes of evaluation for each."""
    return preset_demo(
        "make demo-metaworld", metaworld(model), folder,
        CollectConfig("metaworld", episodes=300, tasks=DEFAULT_TASKS, workers=2),
        EvaluateConfig("metaworld", episodes=50, tasks=DEFAULT_TASKS, num_envs=4, num_videos=6), baseline_episodes=10,
    )  # fmt: skip


def preset_demo(
    command: str, preset: Preset, folder: Path, collect: CollectConfig, evaluate: EvaluateConfig, **options: Any
) -> dict[str, Any]:
    """`run_demo` with the image size and the execution horizon of the preset. options: further ones of `DemoConfig`."""
    size = preset.model.image_size
    collect = replace(collect, image_size=size)
    evaluate = replace(evaluate, image_size=size, execution_horizon=preset.execution_horizon)
    return run_demo(DemoConfig(command, collect, evaluate, **options), preset, folder)


def run_demo(config: DemoConfig, preset: Preset, folder: Path) -> dict[str, Any]:
    """Leaves dataset, run, videos, results.json and report.html in `folder`; what is there already is used again."""
    started = time.perf_counter()
    dataset = folder / "dataset"
    _check_demonstrations(config.collect, folder)
    seconds = {"collect": collect_once(config.collect, dataset)}
    before = time.perf_counter()
    trained = train_policy(dataset, folder / "train", preset, resume=True)
    seconds["train"] = time.perf_counter() - before
    before = time.perf_counter()
    policy = load_policy(trained.checkpoint, num_steps=config.evaluate.num_steps)
    if preset.from_data:
        preset = as_started(preset, read_checkpoint(trained.checkpoint).config)
        config = replace(config, evaluate=replace(config.evaluate, execution_horizon=preset.execution_horizon))
    results = evaluate_policy(policy, config.evaluate, folder)
    results["baselines"] = _baselines(policy, config, LeRobotDataset(dataset).tasks)
    seconds["evaluate"] = time.perf_counter() - before
    results.update(_facts(config, preset, trained), seconds=round(time.perf_counter() - started, 1))
    results["seconds_by_part"] = {name: round(value, 1) for name, value in seconds.items()}
    write_json(folder / "results.json", results)
    _report(config, preset, policy, folder, results)
    return results


def _check_demonstrations(config: CollectConfig, folder: Path) -> None:
    """UserError where the folder's dataset was recorded with other settings: the results would name demonstrations that
    the policy never saw.
    """
    path, asked = folder / RECORDED, json.loads(json.dumps(dataclasses.asdict(config)))
    del asked["workers"]
    if (folder / "dataset").is_dir():
        recorded = read_json(path if path.is_file() else folder / "dataset" / "meta" / "info.json")
        own = recorded if path.is_file() else {"episodes": recorded.get("total_episodes")}
        if changed := changed_settings(own, asked):
            raise UserError(
                f"{folder / 'dataset'} was recorded with other settings: {changed_text(changed)}; give the old ones to "
                "continue, or another folder"
            )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, asked)


def _baselines(policy: ModelPolicy, config: DemoConfig, prompts: list[str]) -> dict[str, Any]:
    """Of `config.baselines`: the scripted demonstrator, random actions, and the same policy with a wrong instruction or
    without sight.
    """
    few = EvaluateConfig(**{**vars(config.evaluate), "episodes": config.baseline_episodes, "num_videos": 0})
    rows: dict[str, Any] = {}
    for name in config.baselines:
        if name in ACTORS:
            rows[name] = evaluate_actor(name, few)
        else:
            alter = blank_images if name == "blank images" else swap_instructions(prompts)
            rows[name] = evaluate_policy(policy, few, None, label=name, alter=alter)
    return rows


def _facts(config: DemoConfig, preset: Preset, trained: TrainResult) -> dict[str, Any]:
    return {
        "command": config.command,
        "seed": preset.train.seed,
        "model": {"parameters": trained.parameters, "config": preset.model.to_json()},
        "train": {"loss": trained.loss, "samples_per_second": round(trained.samples_per_second, 1)},
        "settings": {
            "demonstrations": config.collect.episodes,
            "steps": preset.train.steps,
            "batch size": preset.train.batch_size,
            "draws per sample": preset.train.draws,
            "learning rate": preset.train.learning_rate,
            "action horizon": preset.model.action_horizon,
            "execution horizon": preset.execution_horizon,
            "threads": preset.train.threads or usual_threads(),
        },
    }


def _report(config: DemoConfig, preset: Preset, policy: ModelPolicy, folder: Path, results: dict[str, Any]) -> None:
    assert isinstance(preset.model, Pi0Config)  # no demo trains another model
    env = make_env(config.evaluate.env, image_size=config.evaluate.image_size, tasks=config.evaluate.tasks or None)
    try:
        env.reset(seed=config.evaluate.seed, options={"task": env.task_names[0]})
        course = sample_course(policy, env.observe(), episode_noise(0, 0, policy.noise_shape))
        names = with_units(policy.pipeline.embodiment.name, env.action_names)
        specs = [EpisodeSpec(env.task_names[0], config.evaluate.seed)]
        played = rollout(policy, [env], specs, preset.execution_horizon, record=[0])
        frames = np.stack(played[0].frames)
        write_mp4(folder / "episode.mp4", played[0].frames, env.fps)
    finally:
        env.close()
    quickstart_report(
        folder / "report.html", results=results, metrics=read_metrics(folder / "train" / "metrics.jsonl"),
        config=preset.model, episode=FilmedEpisode(folder / "episode.mp4", frames, env.fps),
        films=films(folder, results), chunk=SampledChunk(course.actions, names),
    )  # fmt: skip


def print_results(results: dict[str, Any], folder: Path, name: str = "policy") -> None:
    """The success table, per task and beside the comparisons, and where everything is."""
    table = Table(title="success")
    for heading in ("", "rate", "95 % interval", "episodes"):
        table.add_column(heading, justify="left" if not heading else "right")
    rows = {name: results, **{f"  {task}": entry for task, entry in results["per_task"].items()}}
    rows |= {f"tier {tier}": entry for tier, entry in results.get("per_tier", {}).items()}
    rows |= results.get("baselines", {})
    check_completed({"the evaluation": results})
    for row, entry in rows.items():
        (low, high), rate = entry["interval"], entry["success_rate"]
        shown = "–" if rate is None else f"{rate:.1%}"
        table.add_row(row, shown, f"{low:.0%} to {high:.0%}", str(entry["episodes"]))
    console.print(table)
    if results.get("mean_of_tiers") is not None:
        console.print(f"mean of the tiers: {results['mean_of_tiers']:.1%}")
    if "score" in results:
        console.print(f"score, the mean of each episode's highest: {results['score']:.2f}")
    if "subtasks" in results:
        found = results["subtasks"]
        low, high = found["interval"]
        text = f"subtasks done: {found['done']} of {found['all']}, {found['rate']:.1%} ({low:.0%} to {high:.0%})"
        agreed = results.get("subtask_agreement")
        console.print(text + ("" if agreed is None else f"; the policy wrote what was due {agreed:.1%} of the time"))
    if results["errors"]:
        console.print(
            f"{results['errors']} episodes ended by an error: {'; '.join(results['error_texts'])}", style="red"
        )
    found = [name for name in ("results.json", "report.html", "videos") if (folder / name).exists()]
    console.print(f"{results['seconds']:.0f} s · {folder}: {', '.join(found)}")
