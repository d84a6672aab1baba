"""What precision, averaging and draws do to a small π0 in the built-in simulator (docs/results/training_ablation.md,
flow_draws.md).

python benchmarks/training/studies.py FOLDER [STUDY ...] [--seconds S] [--steps N] [--jobs N] [--seeds N ...]
    precision: float32, mixed, bfloat16, and bfloat16 rounded to the nearest; averaged and last weights
    finetune: the same from a checkpoint, with a small learning rate; needs precision's float32 of seed 0
    draws: 1, 2, 4, 8 draws per sample for the same time; draws-larger: the same with a π0 of 6 M parameters and a
    longer prefix; draws-middle: of 89 M parameters, on a GPU

benchmarks/training/studies_report.py makes tables and pictures of what is in FOLDER.

About an hour on 2 cores for `precision` and `draws`. A run trains for about S seconds on one core (those of
draws-middle share three quarters of S on the GPU); N run at a time. The steps that fit are measured first, while all
run together, unless --steps gives them; a run is evaluated after it. A study may be stopped at any time: the same
command continues with what FOLDER holds.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from pizero.checkpoints.load import load_model
from pizero.configs.presets import Preset, tabletop
from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.doctor.open_loop import summarize
from pizero.data.embodiments import get_embodiment
from pizero.data.frames import FrameCache
from pizero.data.loader import split_episodes
from pizero.data.pipeline import Pipeline
from pizero.files import read_json
from pizero.model.config import GemmaConfig, SiglipConfig
from pizero.policy.policy import ModelPolicy
from pizero.train.metrics import read_metrics
from pizero.train.run_folder import checkpoint_folder
from pizero.workflows.collect import CollectConfig, collect_once
from pizero.workflows.evaluate import EvaluateConfig, evaluate_policy, write_json
from pizero.workflows.replay import replay, spread_over
from pizero.workflows.start import Initialization
from pizero.workflows.train import Runtime, train_policy
from pizero.workflows.training_data import DataOptions

DEMONSTRATIONS, EPISODES, CHUNKS = 2_000, 40, 256
"""EPISODES: of each of five tasks."""
WEIGHTS = ("averaged", "last")
QUARTERS = {"precision": (4, 2), "finetune": (4,), "draws": (4, 2, 1, 3), "draws-larger": (4, 2), "draws-middle": (4,)}
"""Where a training is measured, in quarters of its steps; the end first."""


@dataclass(frozen=True)
class Run:
    """train: fields of the tabletop preset's training that are changed. nearest: bfloat16 weights whose steps are
    rounded to the nearest, as PyTorch does by itself; pizero rounds at random.
    """

    study: str
    label: str
    seed: int
    train: dict[str, Any] = field(default_factory=dict[str, Any])
    nearest: bool = False

    @property
    def name(self) -> str:
        return f"{self.label.replace(', ', '-').replace(' ', '-')}-{self.seed}"

    @property
    def of_precision(self) -> bool:
        return self.study in ("precision", "finetune")

    @property
    def on_gpu(self) -> bool:
        return self.study == "draws-middle"

    def preset(self, steps: int, **changes: Any) -> Preset:
        base = tabletop()
        model = dataclasses.replace(base.model, **_NETWORKS.get(self.study, {}))
        saved = steps if self.on_gpu else max(steps // 4, 1)
        often = {"log_every": 20, "validate_every": max(steps // 12, 1), "save_every": saved}
        changes = {**often, **self.train, **changes}
        train = dataclasses.replace(base.train, seed=self.seed, threads=1, keep=100, steps=steps, **changes)
        return dataclasses.replace(base, model=model, train=train)

    def train_steps(self, root: Path, folder: Path, steps: int, **changes: Any) -> None:
        if not self.on_gpu:  # a GPU's process is not kept waiting
            os.setpriority(os.PRIO_PROCESS, 0, max(5, os.getpriority(os.PRIO_PROCESS, 0)))
        rounding = mock.patch("pizero.train.low_memory.round_at_random", lambda exact, _: exact.bfloat16())
        with rounding if self.nearest else nullcontext():
            train_policy(
                root / "dataset",
                folder,
                self.preset(steps, **changes),
                resume=True,
                initial=Initialization(_half_way(root) if self.study == "finetune" else None),
                data=DataOptions(frames="disk", workers=2 if self.on_gpu else 0),
                runtime=Runtime("cuda" if self.on_gpu else "cpu"),
            )


# AdamW, for bfloat16 weights have no other optimizer; the final rate is a tenth of the peak, as in openpi's recipe
_ADAMW = {"optimizer": "adamw", "learning_rate": 1.5e-3, "final_learning_rate": 1.5e-4}
_KINDS = {
    "float32": ("float32", False), "mixed": ("mixed", False), "bfloat16": ("bfloat16", False),
    "bfloat16, nearest": ("bfloat16", True),
}  # fmt: skip
_SMALL_RATE = {"learning_rate": 1e-4, "final_learning_rate": 1e-5, "warmup_steps": 20}
"""A step of 1e-4 is below what most of the weights can show in bfloat16."""
DRAWS = (1, 2, 4, 8)
MIDDLE: dict[str, Any] = {
    "vision": SiglipConfig(width=384, depth=12, mlp_dim=1536, num_heads=6, patch_size=4),
    "prefix": GemmaConfig(width=512, depth=14, mlp_dim=2048, num_heads=8, head_dim=64),
    "expert": GemmaConfig(width=256, depth=14, mlp_dim=1024, num_heads=8, head_dim=64),
    "action_horizon": 8,
}
"""89 M parameters; two images of 64 patches and a prompt of about 7 tokens before 9 tokens of state and actions."""
LARGER: dict[str, Any] = {
    "vision": SiglipConfig(width=128, depth=4, mlp_dim=512, num_heads=4, patch_size=4),
    "prefix": GemmaConfig(width=256, depth=4, mlp_dim=1024, num_heads=4, head_dim=64),
    "expert": GemmaConfig(width=128, depth=4, mlp_dim=512, num_heads=4, head_dim=64),
}
"""5.9 M parameters; the same prefix before 5 tokens."""
_NETWORKS = {"draws-larger": LARGER, "draws-middle": MIDDLE}
_MIDDLE_TRAIN = {
    "optimizer": "adamw", "learning_rate": 4e-4, "final_learning_rate": 4e-5, "precision": "mixed", "batch_size": 128,
}  # fmt: skip


def runs_of(study: str, seeds: Sequence[int]) -> list[Run]:
    if study in ("precision", "finetune"):
        rates = _SMALL_RATE if study == "finetune" else {}
        return [
            Run(study, label, seed, {**_ADAMW, **rates, "precision": precision}, nearest)
            for seed in seeds for label, (precision, nearest) in _KINDS.items()
        ]  # fmt: skip
    base = {
        "draws": {"precision": "float32"},
        "draws-larger": {"precision": "mixed", "batch_size": 16},
        "draws-middle": _MIDDLE_TRAIN,
    }[study]
    return [Run(study, f"{draws} draws", seed, {**base, "draws": draws}) for seed in seeds for draws in DRAWS]


STUDIES = {"precision": (0, 1, 2), "finetune": (0, 1, 2), "draws": (0, 1), "draws-larger": (0,), "draws-middle": (0,)}
"""With their seeds."""


# -------------------------------------------------------------------- running


def run_studies(
    root: Path, studies: Sequence[str], seeds: Sequence[int] | None, seconds: float, steps: int, jobs: int
) -> None:
    """GPU runs one after the other in a process of their own, CPU runs side by side. steps: 0 takes what fits."""
    os.environ.setdefault("PIZERO_CACHE", str(root / "cache"))
    demonstrations = CollectConfig("tabletop", DEMONSTRATIONS, image_size=32, image_format="png", workers=2)
    collect_once(demonstrations, root / "dataset")
    cameras = list(get_embodiment("tabletop").cameras.values())
    FrameCache(LeRobotDataset(root / "dataset"), cameras, (32, 32), store="disk")
    runs = [run for study in studies for run in runs_of(study, seeds or STUDIES[study])]
    gpu, cpu = [run for run in runs if run.on_gpu], [run for run in runs if not run.on_gpu]
    context = get_context("forkserver")
    context.set_forkserver_preload(["pizero.workflows.train", "pizero.workflows.evaluate", "pizero.workflows.replay"])
    with ProcessPoolExecutor(jobs + bool(gpu), context, torch.set_num_threads, (1,)) as pool:
        waiting = [pool.submit(_each, root, gpu, 0.75 * seconds / len(gpu), steps)] if gpu else []
        speeds = [1.0] * len(cpu) if steps else list(pool.map(_seconds_per_step, [root] * len(cpu), cpu))
        for run in cpu:
            alike = [speed for other, speed in zip(cpu, speeds, strict=True) if _same_steps(run, other)]
            waiting.append(pool.submit(_train_and_measure, root, run, steps or _steps(seconds, max(alike))))
        for task in waiting:
            task.result()


def _same_steps(run: Run, other: Run) -> bool:
    """All precisions take the same steps; numbers of draws the same time, with the same steps for all seeds."""
    return run.study == other.study and (run.of_precision or run.label == other.label)


def _half_way(root: Path) -> Path:
    folder = root / "precision" / "float32-0"
    steps = read_json(folder / "run.json")["train"]["steps"]
    return checkpoint_folder(folder, steps // 2)


def _settled_steps(root: Path, run: Run) -> int:
    """Those of a run in `root` that this one is to equal; 0 when there is none."""
    for other in runs_of(run.study, range(10)):
        path = root / run.study / other.name / "run.json"
        if path.is_file() and _same_steps(run, other):
            return read_json(path)["train"]["steps"]
    return 0


def _steps(seconds: float, per_step: float) -> int:
    return max(int(seconds / per_step) // 40, 1) * 40


def _each(root: Path, runs: Sequence[Run], seconds: float, steps: int) -> None:
    for run in runs:
        _train_and_measure(root, run, steps or _steps(seconds, _seconds_per_step(root, run)))


def _seconds_per_step(root: Path, run: Run, warm: int = 8, counted: int = 12) -> float:
    """Of the run's training, beside whatever runs now."""
    if _settled_steps(root, run):
        return 1.0
    with tempfile.TemporaryDirectory() as folder, _told(run, root / run.study / run.name):
        path = Path(folder) / "run"
        run.train_steps(root, path, warm + counted, log_every=warm, validate_every=1_000)
        lines = [line for line in read_metrics(path / "metrics.jsonl") if "samples_per_second" in line]
        speed = run.preset(1).train.batch_size / lines[1]["samples_per_second"]
        print(f"{run.study} {run.name}: {1_000 * speed:.0f} ms a step", flush=True)
        return speed
    return 1.0


def _train_and_measure(root: Path, run: Run, steps: int) -> None:
    folder, started = root / run.study / run.name, time.perf_counter()
    with _told(run, folder):
        steps = _settled_steps(root, run) or steps
        run.train_steps(root, folder, steps)
        print(f"{run.study} {run.name}: {steps} steps in {time.perf_counter() - started:.0f} s", flush=True)
        _measure_all(root, run, folder, steps)


@contextmanager
def _told(run: Run, folder: Path) -> Iterator[None]:
    """A failure is told and kept beside the run: the others go on."""
    try:
        yield
    except Exception:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "error.txt").write_text(traceback.format_exc())
        print(f"{run.study} {run.name} failed:\n{traceback.format_exc()}", flush=True)


def _measure_all(root: Path, run: Run, folder: Path, steps: int) -> None:
    results = read_results(folder)
    for quarter in QUARTERS[run.study]:
        for weights in WEIGHTS if run.of_precision else WEIGHTS[:1]:
            key = f"{quarter}/4 {weights}"
            if key not in results:
                results[key] = measure(root / "dataset", folder, run, steps, steps * quarter // 4, weights)
                write_json(folder / "result.json", results)
                print(run.study, run.name, key, json.dumps(results[key]), flush=True)


def measure(dataset: Path, folder: Path, run: Run, steps: int, step: int, weights: str) -> dict[str, Any]:
    """Success in fresh scenes, and the error of replayed chunks of held-out episodes."""
    checkpoint, device = checkpoint_folder(folder, step), "cuda" if run.on_gpu else "cpu"
    model = load_model(checkpoint, device)
    if weights == "last":
        state = torch.load(checkpoint / "training_state" / "state.pt", map_location=device, weights_only=True)
        model.load_state_dict(state["weights"])
    # all episodes at once, so few calls, each of another size: not worth a CUDA graph
    policy = ModelPolicy(model.eval(), Pipeline.load(checkpoint), fast=not run.on_gpu)
    config = EvaluateConfig("tabletop", EPISODES, image_size=32, execution_horizon=2, num_envs=200, threads=1)
    rollouts = evaluate_policy(policy, config, None)
    assert not rollouts["errors"]
    result = {"step": step, "successes": rollouts["successes"], "episodes": rollouts["episodes"]}
    if not run.of_precision:
        return result
    data, train = LeRobotDataset(dataset), run.preset(steps).train
    _, frames = split_episodes(data, train.validation_fraction, train.seed)
    errors = summarize(replay(data, policy, spread_over(frames, CHUNKS)))["relative_error"]
    return {**result, "open_loop_error": round(float(np.mean([error for error in errors if error is not None])), 4)}


def read_results(folder: Path) -> dict[str, Any]:
    path = folder / "result.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("studies", nargs="*", metavar="STUDY", default=["precision", "draws"])
    parser.add_argument("--seconds", type=float, default=150)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--seeds", type=int, nargs="*")
    args = parser.parse_args()
    run_studies(args.folder, args.studies, args.seeds, args.seconds, args.steps, args.jobs)


if __name__ == "__main__":
    main()
