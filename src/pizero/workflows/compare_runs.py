"""One run of a comparison: a variant trained with one seed, evaluated, and its costs measured; on one CPU thread."""

from __future__ import annotations

import dataclasses
import json
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pizero.baseline.policy import DiffusionPolicy
from pizero.checkpoints.load import load_policy
from pizero.configs.ladder import LadderConfig, Variant, variant_preset
from pizero.configs.presets import Preset
from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.loader import split_episodes
from pizero.data.norm_stats import NEAR_CONSTANT
from pizero.data.robot_columns import robot_action_window
from pizero.policy.policy import ModelPolicy
from pizero.train.metrics import read_metrics
from pizero.types import RobotDict, UserError
from pizero.workflows.evaluate import EvaluateConfig, evaluate_policy, write_json
from pizero.workflows.replay import recorded_observation
from pizero.workflows.threads import torch_threads
from pizero.workflows.train import train_policy
from pizero.workflows.training_data import DataOptions

LATENCY_CALLS = 10
OPEN_LOOP_FRAMES = 64
SPEED_STEPS = 20
HELD_OUT_SEED = 0


@dataclass(frozen=True)
class RunConfig:
    """What the runs of a comparison share.

    tasks: none given takes the simulator's. demonstrations, episodes: of each task.
    """

    ladder: LadderConfig
    tasks: tuple[str, ...] = ()
    demonstrations: int = 50
    episodes: int = 10
    num_envs: int = 10


def train_and_measure(
    config: RunConfig, variant: Variant, seed: int, dataset: Path, demonstrations: int, folder: Path
) -> None:
    """Trains a variant on the first demonstrations, or goes on with it, and measures it.

    result.json appears when all is done.
    """
    preset = variant_preset(variant, config.ladder, seed)
    first = DataOptions(episodes=range(demonstrations))  # the tasks take turns in the dataset
    if config.ladder.seconds > 0:
        preset = _fit_to_time(preset, config.ladder.seconds, dataset, first, folder)
    trained = train_policy(dataset, folder, preset, resume=True, data=first)
    policy = load_policy(trained.checkpoint)
    rollouts = _evaluate(config, variant.name, policy, preset.model.image_size)
    samples = preset.train.steps * preset.train.batch_size
    seconds = samples / _samples_per_second(folder, preset)
    data = LeRobotDataset(dataset, episodes=first.episodes)
    observations, expected = _held_out(data, policy, preset)
    error = _open_loop_error(policy, observations, expected, preset.execution_horizon)
    result = {
        "variant": variant.name, "rung": variant.rung, "change": variant.change, "seed": seed,
        "demonstrations": demonstrations, "learning_rate": preset.train.learning_rate,
        "parameters": trained.parameters, "loss": trained.loss, "samples": samples, "train_seconds": round(seconds, 2),
        "samples_per_second": round(samples / seconds, 1), **rollouts,
        "open_loop_error": error.round(4).tolist(),
        "relative_error": round(_in_spreads(error, expected), 4),
        "latency": _latency(policy, observations[0]),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
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


def _held_out(data: LeRobotDataset, policy: ModelPolicy, preset: Preset) -> tuple[list[RobotDict], NDArray[np.float32]]:
    """Frames of validation episodes as a robot would give them, and the recorded actions [N, H, d]."""
    _, frames = split_episodes(data, preset.train.validation_fraction, preset.train.seed)
    chosen = np.random.default_rng(HELD_OUT_SEED).choice(frames, min(OPEN_LOOP_FRAMES, len(frames)), replace=False)
    observations = [recorded_observation(data, policy.pipeline, int(frame)) for frame in chosen]
    steps = preset.execution_horizon
    return observations, robot_action_window(data, policy.pipeline.embodiment, chosen, steps)[0]


def _open_loop_error(
    policy: ModelPolicy, observations: list[RobotDict], expected: NDArray[np.float32], steps: int
) -> NDArray[np.float32]:
    """Mean absolute error of the actions that would be played, per dimension [d], in the robot's units."""
    predicted = np.stack([answer["actions"] for answer in policy.infer_batch(observations)])
    return np.abs(predicted[:, :steps] - expected[..., : predicted.shape[2]]).mean(axis=(0, 1))


def _in_spreads(error: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """The mean error over the dimensions that move, in standard deviations of the recorded actions [N, H, d]."""
    spread = expected.std(axis=(0, 1))
    moves = spread > NEAR_CONSTANT
    return float((error[moves] / spread[moves]).mean())


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
