"""The ladder measured: every rung trained on the same demonstrations and evaluated on the same episodes.

Each run (rung, seed) is a process of its own, so that its memory is its own, and leaves its result at once; what is
there already is not run again.
"""

from __future__ import annotations

import dataclasses
import json
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.box import SIMPLE
from rich.table import Table

from pizero.configs.ladder import CHANGES, LadderConfig, rung_preset
from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.loader import split_episodes
from pizero.evaluation.benchmark import wilson_interval
from pizero.policy.policy import ModelPolicy, load_policy
from pizero.report.compare import compare_report
from pizero.train.metrics import read_metrics
from pizero.types import RobotDict, UserError
from pizero.workflows.collect import CollectConfig, collect_once
from pizero.workflows.evaluate import EvaluateConfig, evaluate_policy, write_json
from pizero.workflows.progress import console
from pizero.workflows.train import recorded_observation, train_policy

LATENCY_CALLS = 10
OPEN_LOOP_FRAMES = 64


@dataclass(frozen=True)
class CompareConfig:
    """rungs, seeds: what is run. demonstrations: in all. episodes: of each task, for the evaluation."""

    ladder: LadderConfig
    rungs: tuple[int, ...] = tuple(range(len(CHANGES)))
    seeds: tuple[int, ...] = (0,)
    tasks: tuple[str, ...] = ()
    demonstrations: int = 300
    episodes: int = 10
    num_envs: int = 4
    workers: int = 2


def compare(config: CompareConfig, folder: Path) -> dict[str, Any]:
    """Runs what is missing and writes compare.json and report.html; returns what compare.json holds.

    Its "rows", one per rung, hold rung, change, success (over all seeds), interval, episodes, success_by_seed,
    parameters, latency (milliseconds a call on one core), seconds (of training), samples, samples_per_second, peak_mib
    (memory of the whole process), open_loop_error (mean absolute error per action dimension, robot units).
    """
    started = time.perf_counter()
    if not config.rungs or not config.seeds:
        raise UserError("nothing to compare: give at least one rung and one seed")
    _check_settings(config, folder)
    dataset = folder / "dataset"
    collect_once(_collect_config(config), dataset)
    runs: dict[int, list[dict[str, Any]]] = {rung: [] for rung in config.rungs}
    results: dict[str, Any] = {}
    for seed in config.seeds:  # seed by seed, so that an interrupted comparison has whole ladders
        for rung in config.rungs:
            path = folder / f"rung{rung}_seed{seed}" / "result.json"
            if not path.is_file():
                console.print(f"[bold]rung {rung}, seed {seed}[/]: {CHANGES[rung]}")
                with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                    pool.submit(run_rung, config, rung, seed, dataset, path.parent).result()
            runs[rung].append(json.loads(path.read_text()))
            results = _summary(config, runs, time.perf_counter() - started)
            write_json(folder / "compare.json", results)
    compare_report(folder / "report.html", results)
    return results


def run_rung(config: CompareConfig, rung: int, seed: int, dataset: Path, folder: Path) -> None:
    """Trains and measures one rung; its result.json appears when all is done."""
    preset = rung_preset(rung, config.ladder, seed)
    trained = train_policy(dataset, folder, preset, resume=True)
    policy = load_policy(trained.checkpoint)
    rollouts = evaluate_policy(
        policy,
        EvaluateConfig(
            env=config.ladder.env, tasks=config.tasks, episodes=config.episodes, num_envs=config.num_envs,
            image_size=preset.model.image_size, execution_horizon=preset.execution_horizon,
        ),
        None,
    )  # fmt: skip
    if rollouts["errors"]:
        raise UserError(f"rung {rung}: {rollouts['errors']} episodes ended by an error: {rollouts['error_texts']}")
    metrics = [line for line in read_metrics(folder / "metrics.jsonl") if "samples_per_second" in line]
    seconds = sum(_steps_of(metrics, i) * preset.train.batch_size / line["samples_per_second"]
                  for i, line in enumerate(metrics))  # fmt: skip
    data = LeRobotDataset(dataset)
    observations, expected = _held_out(data, policy, preset.train.validation_fraction, seed)
    result = {
        "rung": rung, "seed": seed, "parameters": trained.parameters, "loss": trained.loss,
        "samples": preset.train.steps * preset.train.batch_size, "train_seconds": seconds,
        "samples_per_second": round(preset.train.steps * preset.train.batch_size / seconds, 1),
        "successes": rollouts["successes"], "episodes": rollouts["episodes"],
        "per_task": {task: entry["success_rate"] for task, entry in rollouts["per_task"].items()},
        "open_loop_error": _open_loop_error(policy, observations, expected, preset.execution_horizon),
        "latency": _latency(policy, observations[0]),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }  # fmt: skip
    write_json(folder / "result.json", result)


def _steps_of(metrics: list[dict[str, Any]], index: int) -> int:
    return metrics[index]["step"] - (metrics[index - 1]["step"] if index else 0)


def _held_out(
    data: LeRobotDataset, policy: ModelPolicy, fraction: float, seed: int
) -> tuple[list[RobotDict], np.ndarray]:
    """Frames of validation episodes as a robot would give them, and the recorded actions [N, H, d]."""
    _, frames = split_episodes(data, fraction, seed)
    chosen = np.random.default_rng(0).choice(frames, min(OPEN_LOOP_FRAMES, len(frames)), replace=False)
    observations = [recorded_observation(data, policy.pipeline, int(frame)) for frame in chosen]
    return observations, data.window(policy.pipeline.embodiment.action_key, chosen, policy.noise_shape[0])[0]


def _open_loop_error(
    policy: ModelPolicy, observations: list[RobotDict], expected: np.ndarray, steps: int
) -> list[float]:
    """Mean absolute error of the actions that would be played, per dimension, in the robot's units."""
    predicted = np.stack([answer["actions"] for answer in policy.infer_batch(observations)])
    error = np.abs(predicted[:, :steps] - expected[:, :steps, : predicted.shape[2]])
    return [round(float(value), 4) for value in error.mean(axis=(0, 1))]


def _latency(policy: ModelPolicy, observation: RobotDict) -> float:
    """Milliseconds: median of single calls on one core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        policy.infer(observation)
        times: list[float] = []
        for _ in range(LATENCY_CALLS):
            started = time.perf_counter()
            policy.infer(observation)
            times.append(time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)
    return round(1e3 * float(np.median(times)), 1)


def _summary(config: CompareConfig, runs: dict[int, list[dict[str, Any]]], seconds: float) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for rung, done in runs.items():
        if not done:
            continue
        successes, episodes = sum(run["successes"] for run in done), sum(run["episodes"] for run in done)
        rows.append(
            {
                "rung": rung, "change": CHANGES[rung], "success": successes / episodes,
                "interval": list(wilson_interval(successes, episodes)), "episodes": episodes,
                "success_by_seed": [run["successes"] / run["episodes"] for run in done],
                "parameters": done[0]["parameters"], "latency": _mean(done, "latency"),
                "seconds": round(float(np.mean([run["train_seconds"] for run in done])), 3),
                "samples": done[0]["samples"],
                "samples_per_second": _mean(done, "samples_per_second"), "peak_mib": _mean(done, "peak_mib"),
                "open_loop_error": np.mean([run["open_loop_error"] for run in done], axis=0).round(4).tolist(),
            }
        )  # fmt: skip
    return {"settings": dataclasses.asdict(config), "rows": rows, "seconds": round(seconds, 1)}


def _mean(runs: list[dict[str, Any]], key: str) -> float:
    return round(float(np.mean([run[key] for run in runs])), 1)


def _collect_config(config: CompareConfig) -> CollectConfig:
    env = config.ladder.env
    return CollectConfig(
        env, episodes=config.demonstrations, tasks=config.tasks, workers=config.workers,
        image_size=rung_preset(0, config.ladder, 0).model.image_size,
        image_format="png" if env == "tabletop" else "h264",
    )  # fmt: skip


def _check_settings(config: CompareConfig, folder: Path) -> None:
    """A folder holds one comparison: only rungs and seeds may be added."""
    path = folder / "settings.json"
    settings = json.loads(json.dumps(dataclasses.asdict(config)))
    for name in ("rungs", "seeds", "workers", "num_envs"):
        settings.pop(name)
    if path.is_file() and json.loads(path.read_text()) != settings:
        raise UserError(f"{folder} holds a comparison with other settings (settings.json); choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, settings)


def print_comparison(results: dict[str, Any], folder: Path) -> None:
    table = Table(title="from the diffusion policy to π0", box=SIMPLE, padding=(0, 1, 0, 0))
    for heading in ("", "change", "success", "95 %", "size", "ms", "train s", "MiB"):
        table.add_column(heading, justify="left" if heading == "change" else "right", no_wrap=heading != "change")
    for row in results["rows"]:
        low, high = row["interval"]
        table.add_row(
            str(row["rung"]), row["change"], f"{row['success']:.1%}", f"{low:.0%}-{high:.0%}",
            f"{row['parameters'] / 1e6:.2f}M", f"{row['latency']:.0f}", f"{row['seconds']:.0f}",
            f"{row['peak_mib']:.0f}",
        )  # fmt: skip
    console.print(table)
    console.print(f"{results['seconds']:.0f} s · {folder}: compare.json, report.html")
