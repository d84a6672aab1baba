"""What precision, averaging and draws do to a small π0 in the built-in simulator (docs/results/training.md).

python benchmarks/training_studies.py precision FOLDER   float32, mixed, bfloat16; averaged and last weights; 3 seeds
python benchmarks/training_studies.py draws FOLDER       1, 2, 4, 8 draws per sample at about the same CPU time
python benchmarks/training_studies.py show FOLDER        the tables, and training_precision.svg and training_draws.svg

Each run takes some minutes of one core. A study may be stopped at any time: it goes on with what FOLDER holds.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import matplotlib.pyplot as plt
import numpy as np
import torch

from pizero.configs.presets import Preset, tabletop
from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.doctor.open_loop import summarize
from pizero.data.loader import split_episodes
from pizero.evaluation.benchmark import wilson_interval
from pizero.policy.policy import ModelPolicy, load_policy
from pizero.train.metrics import read_metrics
from pizero.workflows.collect import CollectConfig, collect_once
from pizero.workflows.evaluate import EvaluateConfig, evaluate_policy, write_json
from pizero.workflows.progress import console
from pizero.workflows.replay import replay, spread_over
from pizero.workflows.train import train_policy

DEMONSTRATIONS, EPISODES, CHUNKS = 5_000, 40, 256
"""EPISODES: of each of five tasks."""
WEIGHTS = ("averaged", "last")


@dataclass(frozen=True)
class Run:
    """train: fields of the tabletop preset's training that are changed. nearest: bfloat16 weights whose steps are
    rounded to the nearest, as PyTorch does by itself; pizero rounds at random.
    """

    label: str
    seed: int
    train: dict[str, Any] = field(default_factory=dict[str, Any])
    nearest: bool = False

    @property
    def name(self) -> str:
        return f"{self.label.replace(', ', '-').replace(' ', '-')}-{self.seed}"

    @property
    def preset(self) -> Preset:
        base = tabletop()
        return dataclasses.replace(base, train=dataclasses.replace(
            base.train, seed=self.seed, threads=1, keep=100, save_every=200, validate_every=200, **self.train,
        ))  # fmt: skip


# AdamW, for bfloat16 weights have no other optimizer; the final rate is a tenth of the peak, as in openpi's recipe
_ADAMW = {"optimizer": "adamw", "learning_rate": 1.5e-3, "final_learning_rate": 1.5e-4}
_KINDS = {
    "float32": ("float32", False), "mixed": ("mixed", False), "bfloat16": ("bfloat16", False),
    "bfloat16, nearest": ("bfloat16", True),
}  # fmt: skip
_DRAW_STEPS = {1: 2_400, 2: 2_400, 4: 1_600, 8: 1_600}
STUDIES: dict[str, list[Run]] = {
    "precision": [
        Run(label, seed, {**_ADAMW, "precision": precision}, nearest)
        for seed in range(3) for label, (precision, nearest) in _KINDS.items()
    ],
    "draws": [
        Run(f"draws {draws}", seed, {"draws": draws, "steps": steps})
        for seed in range(2) for draws, steps in _DRAW_STEPS.items()
    ],
}  # fmt: skip


def run_study(study: str, folder: Path) -> None:
    torch.set_num_threads(1)
    console.quiet = True
    dataset = folder / "dataset"
    collect_once(CollectConfig("tabletop", DEMONSTRATIONS, image_size=32, image_format="png", workers=2), dataset)
    for run in STUDIES[study]:
        target = folder / study / run.name
        results = _results(target)
        parts = 2 if study == "precision" else 4
        measured = [run.preset.train.steps * part // parts for part in range(1, parts + 1)]
        if all(f"{step} averaged" in results for step in measured):
            continue
        rounding = mock.patch("pizero.train.low_memory.round_at_random", lambda exact, _: exact.bfloat16())
        with rounding if run.nearest else nullcontext():
            train_policy(dataset, target, run.preset, resume=True)
        for step in measured:
            for weights in WEIGHTS if study == "precision" else WEIGHTS[:1]:
                if f"{step} {weights}" not in results:
                    results[f"{step} {weights}"] = measure(dataset, target, run.preset, step, weights)
                    write_json(target / "result.json", results)
                    print(run.name, step, weights, json.dumps(results[f"{step} {weights}"]), flush=True)


def measure(dataset: Path, folder: Path, preset: Preset, step: int, weights: str) -> dict[str, Any]:
    """Success in fresh scenes, error of replayed chunks of held-out episodes, validation loss of the averaged ones."""
    checkpoint = folder / "checkpoints" / f"{step:07d}"
    policy = load_policy(checkpoint)
    if weights == "last":
        state = torch.load(checkpoint / "training_state" / "state.pt", weights_only=True)
        policy.model.load_state_dict(state["weights"])  # type: ignore[attr-defined]
        policy = ModelPolicy(policy.model, policy.pipeline)
    rollouts = evaluate_policy(
        policy, EvaluateConfig("tabletop", EPISODES, image_size=32, execution_horizon=2, threads=1), None
    )
    assert not rollouts["errors"]
    data = LeRobotDataset(dataset)
    _, frames = split_episodes(data, preset.train.validation_fraction, preset.train.seed)
    errors = summarize(replay(data, policy, spread_over(frames, CHUNKS)))["relative_error"]
    return {
        "successes": rollouts["successes"], "episodes": rollouts["episodes"],
        "open_loop_error": float(np.mean([error for error in errors if error is not None])),
    }  # fmt: skip


def _results(folder: Path) -> dict[str, Any]:
    path = folder / "result.json"
    return json.loads(path.read_text()) if path.is_file() else {}


# -------------------------------------------------------------------- tables and pictures


def show(folder: Path) -> None:
    _precision_table(folder / "precision")
    _draws_table(folder / "draws")
    for study in STUDIES:
        figure, axes = plt.subplots(1, 2, figsize=(9, 3.2))
        labels = list(dict.fromkeys(run.label for run in STUDIES[study]))
        for number, label in enumerate(labels):
            _draw(axes, folder / study, [run for run in STUDIES[study] if run.label == label], f"C{number}")
        unit = "step" if study == "precision" else "CPU seconds"
        for axis, title in zip(axes, ("loss", "validation loss, averaged weights"), strict=True):
            axis.set_xlabel(unit)
            axis.set_ylabel(title)
            axis.set_yscale("log")
        axes[0].legend(fontsize=8)
        figure.tight_layout()
        figure.savefig(folder / f"training_{study}.svg")


def _precision_table(folder: Path) -> None:
    print("| | weights | success, 800 steps | 1,600 steps | seeds | open-loop error | validation loss |")
    print("|---|---|---|---|---|---|---|")
    for label in _KINDS:
        runs = [run for run in STUDIES["precision"] if run.label == label]
        for weights in WEIGHTS:
            half, end = ([_results(folder / run.name).get(f"{n} {weights}") for run in runs] for n in (800, 1_600))
            if all(half) and all(end):
                errors = [result["open_loop_error"] for result in end]
                loss = np.mean([_curve(folder / run.name, "validation_loss")[1][-1] for run in runs])
                last = f"{loss:.4f}" if weights == "averaged" else ""
                print(f"| {label} | {weights} | {_success(half)} | {_success(end)} | {_each(end)} | "
                      f"{np.mean(errors):.3f} ({min(errors):.3f} to {max(errors):.3f}) | {last} |")  # fmt: skip


def _draws_table(folder: Path) -> None:
    print("\n| draws | steps | samples/s | CPU s | success at 1/4, 2/4, 3/4 | at the end | seeds | validation loss |")
    print("|---|---|---|---|---|---|---|---|")
    for draws, steps in _DRAW_STEPS.items():
        runs = [run for run in STUDIES["draws"] if run.label == f"draws {draws}"]
        found = [[_results(folder / run.name).get(f"{steps * n // 4} averaged") for run in runs] for n in (1, 2, 3, 4)]
        if all(all(results) for results in found):
            seconds = np.mean([_curve(folder / run.name, "loss", time=True)[0][-1] for run in runs])
            loss = np.mean([_curve(folder / run.name, "validation_loss")[1][-1] for run in runs])
            early = ", ".join(f"{100 * _rate(results):.0f}" for results in found[:3])
            print(f"| {draws} | {steps:,} | {32 * steps / seconds:.0f} | {seconds:.0f} | {early} % | "
                  f"{_success(found[3])} | {_each(found[3])} | {loss:.4f} |")  # fmt: skip


def _rate(results: Sequence[Any]) -> float:
    return sum(result["successes"] for result in results) / sum(result["episodes"] for result in results)


def _success(results: Sequence[Any]) -> str:
    """Of all seeds together, with its interval."""
    low, high = wilson_interval(*(sum(result[key] for result in results) for key in ("successes", "episodes")))
    return f"{100 * _rate(results):.1f} % ({100 * low:.0f} to {100 * high:.0f})"


def _each(results: Sequence[Any]) -> str:
    return ", ".join(f"{100 * _rate([result]):.0f}" for result in results)


def _curve(folder: Path, name: str, time: bool = False) -> tuple[list[float], list[float]]:
    """A number of metrics.jsonl over the steps, or over the CPU seconds of the training's steps."""
    lines, seconds, at, values = read_metrics(folder / "metrics.jsonl"), 0.0, list[float](), list[float]()
    for line in lines:
        seconds += line.get("cpu_seconds", 0.0)
        if name in line:
            at.append(seconds if time else line["step"])
            values.append(line[name])
    return at, values


def _draw(axes: Any, folder: Path, runs: Sequence[Run], color: str) -> None:
    """The mean of the seeds, with their range."""
    time = runs[0].label.startswith("draws")
    for axis, name in zip(axes, ("loss", "validation_loss"), strict=True):
        curves = [_curve(folder / run.name, name, time) for run in runs if (folder / run.name).is_dir()]
        length = min((len(values) for _, values in curves), default=0)
        if not length:
            continue
        at = np.mean([at[:length] for at, _ in curves], axis=0)
        values = np.array([values[:length] for _, values in curves])
        if name == "loss":
            values = np.array([np.convolve(row, np.ones(5) / 5, "valid") for row in values])
            at = at[2:-2]
        axis.plot(at, values.mean(axis=0), color=color, label=runs[0].label, linewidth=1)
        axis.fill_between(at, values.min(axis=0), values.max(axis=0), color=color, alpha=0.15, linewidth=0)


if __name__ == "__main__":
    study, root = sys.argv[1], Path(sys.argv[2])
    show(root) if study == "show" else run_study(study, root)
