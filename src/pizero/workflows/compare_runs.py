"""One run of a comparison: a variant trained with one seed, evaluated, and its costs measured; on one CPU thread."""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pizero.baseline.policy import DiffusionPolicy
from pizero.checkpoints.load import load_policy
from pizero.configs.ladder import LadderConfig, Variant, variant_preset
from pizero.configs.presets import Preset
from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.policy.policy import ModelPolicy
from pizero.train.metrics import read_metrics
from pizero.train.utilization import peak_memory
from pizero.types import RobotDict, UserError, check_least
from pizero.workflows.compare_recording import (
    held_out_frames,
    in_spreads,
    played_error,
    recorded_source,
    sized_by,
)
from pizero.workflows.evaluate import EvaluateConfig, evaluate_policy, write_json
from pizero.workflows.replay import recorded_observation, replay
from pizero.workflows.threads import torch_threads
from pizero.workflows.train import train_policy
from pizero.workflows.training_data import DataOptions

LATENCY_CALLS = 10
OPEN_LOOP_FRAMES = 64
RECORDED_FRAMES = 256
"""Held-out frames whose actions are compared: beside episodes in a simulator, and where they are all there is."""
SPEED_STEPS = 20


@dataclass(frozen=True)
class RunConfig:
    """What the runs of a comparison share.

    tasks: none given takes the simulator's. demonstrations, episodes: of each task. dataset: a recording to learn from
    instead; nothing is played then, and the error on held-out episodes is the measure. skip_bad_episodes: of it, see
    `DataOptions`.
    """

    ladder: LadderConfig
    tasks: tuple[str, ...] = ()
    demonstrations: int = 50
    episodes: int = 10
    num_envs: int = 10
    dataset: str = ""
    skip_bad_episodes: bool = False

    def __post_init__(self) -> None:
        check_least(1, demonstrations=self.demonstrations, episodes=self.episodes, num_envs=self.num_envs)


def train_and_measure(
    config: RunConfig, variant: Variant, seed: int, dataset: Path, demonstrations: int, folder: Path
) -> None:
    """Trains a variant on the first demonstrations, or continues it, and measures it.

    result.json appears when all is done.
    """
    preset = variant_preset(variant, config.ladder, seed)
    if config.dataset:
        source = recorded_source(config.dataset, config.skip_bad_episodes)
        data, dataset = source.dataset, source.dataset.root
        first = DataOptions(skip_bad_episodes=config.skip_bad_episodes, frames="disk")  # once for all runs
        preset = sized_by(source, preset)
    else:
        first = DataOptions(episodes=range(demonstrations))  # the tasks take turns in the dataset
        data = LeRobotDataset(dataset, episodes=first.episodes)
    if config.ladder.seconds > 0:
        preset = _fit_to_time(preset, config.ladder.seconds, dataset, first, folder)
    trained = train_policy(dataset, folder, preset, resume=True, data=first)
    policy = load_policy(trained.checkpoint)
    rollouts = {} if config.dataset else _evaluate(config, variant.name, policy, preset.model.image_size)
    samples = preset.train.steps * preset.train.batch_size
    seconds = samples / _samples_per_second(folder, preset)
    frames = held_out_frames(data, preset, RECORDED_FRAMES if config.dataset else OPEN_LOOP_FRAMES)
    found, played = replay(data, policy, frames), slice(preset.execution_horizon)
    expected, inside = found.recorded[:, played], ~found.padded[:, played]
    error = played_error(found.predicted[:, played], expected, inside)
    result = {
        "variant": variant.name, "rung": variant.rung, "change": variant.change, "seed": seed,
        "demonstrations": demonstrations, "learning_rate": preset.train.learning_rate,
        "parameters": trained.parameters, "loss": trained.loss, "samples": samples, "train_seconds": round(seconds, 2),
        "samples_per_second": round(samples / seconds, 1), **rollouts,
        "open_loop_error": error.round(4).tolist(),
        "relative_error": round(in_spreads(error, expected, inside), 4),
        "latency": _latency(policy, recorded_observation(data, policy.pipeline, int(frames[0]))),
        "peak_mib": round((peak_memory(torch.device("cpu")) or 0) / 2**20),
    }  # fmt: skip
    write_json(folder / "result.json", result)


def evaluate_steps(config: RunConfig, run: Path, num_steps: int, path: Path) -> None:
    """Success and latency of a trained run with another number of inference steps.

    DDIM visits its few steps from the last one down ("trailing"), which suits few steps better than training's order.
    """
    trained = json.loads((run / "result.json").read_text())
    policy = load_policy(run, num_steps=num_steps)
    model = policy.model
    if isinstance(model, DiffusionPolicy) and model.config.objective == "diffusion":
        trailing = DiffusionPolicy(dataclasses.replace(model.config, step_spacing="trailing")).eval()
        trailing.load_state_dict(model.state_dict())
        policy = ModelPolicy(trailing, policy.pipeline, num_steps=num_steps)
    pipeline = policy.pipeline
    rollouts = _evaluate(config, trained["variant"], policy, pipeline.image_size[0])
    dataset = LeRobotDataset(run.parent / "dataset")
    observation = recorded_observation(dataset, pipeline, pipeline.num_history - 1)
    write_json(
        path,
        {key: trained[key] for key in ("variant", "rung", "change", "seed")}
        | {"num_steps": num_steps, **rollouts, "latency": _latency(policy, observation)},
    )


def _evaluate(config: RunConfig, name: str, policy: ModelPolicy, image_size: int) -> dict[str, Any]:
    results = evaluate_policy(
        policy,
        EvaluateConfig(
            env=config.ladder.env, tasks=config.tasks, episodes=config.episodes, num_envs=config.num_envs,
            image_size=image_size, execution_horizon=config.ladder.execution_horizon, threads=1,
        ),
        None,
    )  # fmt: skip
    if results["errors"]:
        raise UserError(f"{name}: {results['errors']} episodes ended by an error: {results['error_texts']}")
    per_task = {task: entry["successes"] for task, entry in results["per_task"].items()}
    return {"successes": results["successes"], "episodes": results["episodes"], "successes_by_task": per_task}


def _fit_to_time(preset: Preset, seconds: float, dataset: Path, data: DataOptions, folder: Path) -> Preset:
    """As many steps as fit into the CPU seconds, by a short training; measured once, so that a resumed run agrees."""
    path = folder / "steps.json"
    if not path.is_file():
        trial = dataclasses.replace(preset, train=dataclasses.replace(
            preset.train, steps=SPEED_STEPS, warmup_steps=1, log_every=SPEED_STEPS // 2, validation_fraction=0.0,
        ))  # fmt: skip
        train_policy(dataset, folder / "speed", trial, resume=True, data=data)
        rate = _samples_per_second(folder / "speed", trial)
        write_json(path, {"steps": max(round(seconds * rate / preset.train.batch_size), SPEED_STEPS)})
    steps = json.loads(path.read_text())["steps"]
    train = dataclasses.replace(
        preset.train, steps=steps, warmup_steps=min(100, steps // 10), validate_every=steps,
        save_every=max(steps // 3, 1),
    )  # fmt: skip
    return dataclasses.replace(preset, train=train)


def _samples_per_second(folder: Path, preset: Preset) -> float:
    """By CPU time of the one thread, which other work on the machine does not change; without the first interval."""
    lines = [line for line in read_metrics(folder / "metrics.jsonl") if "cpu_seconds" in line]
    steps = [line["step"] - (lines[i - 1]["step"] if i else 0) for i, line in enumerate(lines)]
    first = 1 if len(lines) > 1 else 0
    return preset.train.batch_size * sum(steps[first:]) / sum(line["cpu_seconds"] for line in lines[first:])


def _latency(policy: ModelPolicy, observation: RobotDict) -> float:
    """Milliseconds: median CPU time of single calls on one core."""
    times: list[float] = []
    with torch_threads(1):
        policy.infer(observation)
        for _ in range(LATENCY_CALLS):
            started = time.process_time()
            policy.infer(observation)
            times.append(time.process_time() - started)
    return round(1e3 * float(np.median(times)), 1)
