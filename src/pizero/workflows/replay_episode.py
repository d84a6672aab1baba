"""`pizero replay`: what a policy would do along a recorded episode, before the robot moves."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from pizero.checkpoints.load import load_policy
from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.norm_stats import NEAR_CONSTANT
from pizero.data.robot_columns import action_names, robot_actions
from pizero.policy.policy import ModelPolicy
from pizero.report.replay import SHOWN_FRAMES, Course, replay_report
from pizero.types import UserError
from pizero.workflows.evaluate import write_json
from pizero.workflows.progress import console, progress_bar
from pizero.workflows.replay import open_episode, replay, spread_over


@dataclasses.dataclass(frozen=True)
class ReplayConfig:
    """execution_horizon: frames after which the next chunk is asked for; None takes half of a chunk. embodiment: where
    the checkpoint does not record its robot.
    """

    episode: int
    execution_horizon: int | None = None
    embodiment: str | None = None
    device: str = "cpu"


def replay_episode(checkpoint: str, root: Path, config: ReplayConfig, output: Path) -> dict[str, Any]:
    """Writes episode_N.json and episode_N.html into `output`; returns what the JSON holds: dimensions [{name, error,
    worst, worst_second, relative, constant}], in robot units and in standard deviations of the recorded actions;
    subtasks: what the policy wrote at each replan, where it writes.

    UserError for an episode that the dataset does not have, or whose robot is another than the checkpoint's.
    """
    policy = load_policy(checkpoint, embodiment=config.embodiment, device=config.device)
    robot = policy.pipeline.embodiment
    advice = "give the dataset that it was trained on, or its robot with --embodiment"
    dataset = open_episode(policy, root, config.episode, advice)
    course = _course(policy, dataset, config.execution_horizon)
    prompt = dataset.prompts([0], robot.prompt_key, robot.default_prompt)[0]
    results = {
        "checkpoint": checkpoint, "dataset": root.name, "episode": config.episode, "prompt": prompt,
        "execution_horizon": int(course.starts[1]) if len(course.starts) > 1 else len(course.recorded),
        "replans": course.starts.tolist(), "dimensions": _errors(course),
    }  # fmt: skip
    if course.subtasks:
        results["subtasks"] = list(course.subtasks)
    write_json(output / f"episode_{config.episode}.json", results)
    page = output / f"episode_{config.episode}.html"
    replay_report(page, results, course)
    for dim in results["dimensions"]:
        console.print(f"{dim['name']}: mean absolute error {dim['error']:.4g}, greatest {dim['worst']:.4g}")
    console.print(f"page: {page}")
    return results


def _course(policy: ModelPolicy, dataset: LeRobotDataset, execution_horizon: int | None) -> Course:
    """The chunks along the whole dataset, which is one episode."""
    robot, length = policy.pipeline.embodiment, dataset.num_frames
    horizon = policy.horizon
    every = max(horizon // 2, 1) if execution_horizon is None else execution_horizon
    if not 1 <= every <= horizon:
        raise UserError(f"execution_horizon must be 1 to {horizon}, the length of the checkpoint's chunks, got {every}")
    starts = np.arange(0, length, every)
    with progress_bar() as bars:
        bar = bars.add_task("replaying", total=len(starts), note="")
        found = replay(dataset, policy, starts, lambda done: bars.update(bar, completed=done))
    played = np.concatenate(list(found.predicted[:, :every]))[:length]
    shown = spread_over(np.arange(length), SHOWN_FRAMES)
    names = action_names(dataset, robot) or [f"action {dim}" for dim in range(played.shape[1])]
    return Course(
        dataset.fps, robot_actions(dataset, robot), played, found.predicted, starts, names,
        {camera: dataset.images(camera, shown) for camera in robot.cameras.values()}, (shown / dataset.fps).tolist(),
        found.subtasks,
    )  # fmt: skip


def _errors(course: Course) -> list[dict[str, Any]]:
    error = np.abs(course.played - course.recorded).astype(np.float64)
    spread = course.recorded.astype(np.float64).std(axis=0)
    constant = np.abs(course.recorded - np.median(course.recorded, axis=0)).mean(axis=0)
    rows: list[dict[str, Any]] = []
    for dim, name in enumerate(course.names):
        moves = spread[dim] >= NEAR_CONSTANT
        rows.append({
            "name": name, "error": float(error[:, dim].mean()), "worst": float(error[:, dim].max()),
            "worst_second": float(error[:, dim].argmax() / course.fps),
            "relative": float(error[:, dim].mean() / spread[dim]) if moves else None,
            "constant": float(constant[dim] / spread[dim]) if moves else None,
        })  # fmt: skip
    return rows
