"""A suite of tasks from nothing to a row of a table: demonstrations, training from scratch, evaluation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pizero.configs.presets import Preset, get_preset
from pizero.envs.env import check_env, make_env
from pizero.envs.tasks import demonstrated_tasks
from pizero.train.metrics import read_metrics
from pizero.types import UserError
from pizero.workflows.collect import CollectConfig
from pizero.workflows.demo import preset_demo
from pizero.workflows.evaluate import EvaluateConfig, write_json

SUITES = {
    "tabletop": "tabletop", "tabletop-long": "tabletop", "metaworld": "metaworld", "metaworld-mt10": "metaworld-mt10",
    "metaworld-mt50": "metaworld-mt50", "pusht": "pusht", "aloha": "aloha-sim", "so101": "so101-sim",
    "libero-spatial": "libero-sim", "libero-object": "libero-sim", "libero-goal": "libero-sim",
    "libero-10": "libero-sim",
}  # fmt: skip
"""Simulator: the preset that trains on its demonstrations from scratch. Others take a preset by name."""

HEADER = (
    "suite", "demonstrations", "episodes", "success", "training, CPU hours", "parameters", "samples", "command"
)  # fmt: skip


@dataclass(frozen=True)
class BenchmarkConfig:
    """demonstrations, episodes: of each task. tasks: some of the suite's; none given: all that its demonstrator does.
    preset: None takes the suite's own. steps: instead of the preset's. workers: processes that record.
    """

    suite: str
    tasks: tuple[str, ...] = ()
    preset: str | None = None
    demonstrations: int = 50
    episodes: int = 50
    steps: int | None = None
    workers: int = 1
    command: str = ""


def benchmark(config: BenchmarkConfig, folder: Path) -> dict[str, Any]:
    """Does what is not yet done in `folder`; leaves there what `run_demo` leaves, and benchmark.json, the row.

    Returns `run_demo`'s results with that "row". The demonstrator and random actions play ten episodes of each task.
    UserError, before anything is recorded, for a suite that is unknown, not installed or without a preset.
    """
    preset = _preset(config)
    tasks, undemonstrated = _tasks(config)
    count = len(tasks)
    results = preset_demo(
        config.command, preset, folder,
        CollectConfig(
            config.suite, tasks=tasks, episodes=config.demonstrations * count, image_format="png",
            workers=config.workers,
        ),
        EvaluateConfig(config.suite, tasks=tasks, episodes=config.episodes, num_videos=count),
        baseline_episodes=min(config.episodes, 10), baselines=("demonstrator", "random"),
    )  # fmt: skip
    hours = sum(line.get("cpu_seconds", 0.0) for line in read_metrics(folder / "train" / "metrics.jsonl")) / 3600
    row = _row(config, count, results, hours, preset.train.steps * preset.train.batch_size)
    row["undemonstrated"] = list(undemonstrated)
    write_json(folder / "benchmark.json", row)
    return results | {"row": row}


def table_row(row: dict[str, Any]) -> str:
    """The row as a line of a Markdown table with the columns `HEADER`."""
    low, high = row["interval"]
    success = f"{100 * row['success_rate']:.1f} % ({100 * low:.0f} to {100 * high:.0f})"
    if "tiers" in row:
        tiers = ", ".join(f"{name} {100 * rate:.0f}" for name, rate in row["tiers"].items() if rate is not None)
        success += f"; {tiers}; mean of the tiers {100 * row['mean_of_tiers']:.1f}"
    if "score" in row:
        success += f"; score {row['score']:.2f}"
    suite, without = row["suite"], len(row["undemonstrated"])
    if without:
        suite += f", {len(row['tasks'])} of {len(row['tasks']) + without} tasks"
    cells = (
        suite, f"{row['demonstrations']:,}", f"{row['episodes']:,}", success, f"{row['train_cpu_hours']:.2f}",
        f"{row['parameters']:,}", f"{row['samples']:,}", f"`{row['command']}`",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _preset(config: BenchmarkConfig) -> Preset:
    name = config.preset or SUITES.get(config.suite)
    if name is None:
        check_env(config.suite)
        raise UserError(
            f"simulator {config.suite!r} has no preset of its own; choose one by --preset, or one of the suites "
            f"{', '.join(SUITES)}"
        )
    preset = get_preset(name)
    return preset if config.steps is None else replace(preset, train=replace(preset.train, steps=config.steps))


def _tasks(config: BenchmarkConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(the tasks of the benchmark, those of the suite that its demonstrator does not do). Tasks given by name are all
    taken.
    """
    env = make_env(config.suite, tasks=config.tasks or None, render_in_step=False)
    every, done = env.task_names, tuple(demonstrated_tasks(env, config.tasks))
    env.close()
    return done, tuple(task for task in every if task not in done)


def _row(config: BenchmarkConfig, tasks: int, results: dict[str, Any], hours: float, samples: int) -> dict[str, Any]:
    row = {
        "suite": config.suite,
        "tasks": list(results["per_task"]),
        "demonstrations": config.demonstrations * tasks,
        "episodes": results["episodes"],
        "success_rate": results["success_rate"],
        "interval": results["interval"],
        "train_cpu_hours": round(hours, 6),
        "parameters": results["model"]["parameters"],
        "samples": samples,
        "command": config.command,
        "per_task": {task: entry["success_rate"] for task, entry in results["per_task"].items()},
    }
    if "per_tier" in results:
        row["tiers"] = {tier: entry["success_rate"] for tier, entry in results["per_tier"].items()}
        row["mean_of_tiers"] = results["mean_of_tiers"]
    if "score" in results:
        row["score"] = results["score"]
    return row
