"""A suite of tasks from nothing to a row of a table: demonstrations, training from scratch, evaluation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pizero.configs.presets import get_preset
from pizero.envs.env import make_env
from pizero.train.metrics import read_metrics
from pizero.types import UserError
from pizero.workflows.collect import CollectConfig
from pizero.workflows.demo import preset_demo
from pizero.workflows.evaluate import EvaluateConfig, write_json

SUITES = ("metaworld-mt10", "metaworld-mt50")
"""Simulators with a preset of the same name."""

HEADER = (
    "suite", "demonstrations", "episodes", "success", "training, CPU hours", "parameters", "samples", "command"
)  # fmt: skip


@dataclass(frozen=True)
class BenchmarkConfig:
    """demonstrations, episodes: of each task. tasks: some of the suite's; none given: all. steps: instead of the
    preset's. workers: processes that record.
    """

    suite: str
    tasks: tuple[str, ...] = ()
    demonstrations: int = 50
    episodes: int = 50
    steps: int | None = None
    workers: int = 1
    command: str = ""


def benchmark(config: BenchmarkConfig, folder: Path) -> dict[str, Any]:
    """Does what is not yet done in `folder`; leaves there what `run_demo` leaves, and benchmark.json, the row.

    Returns `run_demo`'s results with that "row". The demonstrator and random actions play ten episodes of each task.
    """
    if config.suite not in SUITES:
        raise UserError(f"unknown suite {config.suite!r}; expected one of {', '.join(SUITES)}")
    preset = get_preset(config.suite)
    if config.steps is not None:
        preset = replace(preset, train=replace(preset.train, steps=config.steps))
    env = make_env(config.suite, tasks=config.tasks or None, render_in_step=False)
    count = len(env.task_names)
    env.close()
    results = preset_demo(
        config.command, preset, folder,
        CollectConfig(
            config.suite, tasks=config.tasks, episodes=config.demonstrations * count, workers=config.workers
        ),
        EvaluateConfig(config.suite, tasks=config.tasks, episodes=config.episodes, num_videos=count),
        baseline_episodes=min(config.episodes, 10), baselines=("demonstrator", "random"),
    )  # fmt: skip
    hours = sum(line.get("cpu_seconds", 0.0) for line in read_metrics(folder / "train" / "metrics.jsonl")) / 3600
    row = _row(config, count, results, hours, preset.train.steps * preset.train.batch_size)
    write_json(folder / "benchmark.json", row)
    return results | {"row": row}


def table_row(row: dict[str, Any]) -> str:
    """The row as a line of a Markdown table with the columns `HEADER`."""
    low, high = row["interval"]
    success = f"{100 * row['success_rate']:.1f} % ({100 * low:.0f} to {100 * high:.0f})"
    if "tiers" in row:
        tiers = ", ".join(f"{name} {100 * rate:.0f}" for name, rate in row["tiers"].items())
        success += f"; {tiers}; mean of the tiers {100 * row['mean_of_tiers']:.1f}"
    cells = (
        row["suite"], f"{row['demonstrations']:,}", f"{row['episodes']:,}", success, f"{row['train_cpu_hours']:.2f}",
        f"{row['parameters']:,}", f"{row['samples']:,}", f"`{row['command']}`",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


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
    return row
