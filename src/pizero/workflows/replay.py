"""Recorded observations as a robot would give them, and what a policy answers to them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pizero.checkpoints.files.remote import local_folder
from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.doctor.open_loop import Replay
from pizero.data.pipeline import Pipeline
from pizero.data.robot_columns import robot_action_window, robot_state, robot_widths
from pizero.policy.policy import ModelPolicy
from pizero.types import RobotDict, UserError
from pizero.workflows.progress import tell_notes

BATCH = 8
"""Chunks that are asked for at a time."""


def open_episode(policy: ModelPolicy, root: Path, episode: int, advice: str) -> LeRobotDataset:
    """One episode of a dataset, by folder or hub id, as the policy's robot reads it.

    UserError for an episode that is not there, or, with the advice, for another robot's dataset.
    """
    robot, pipeline = policy.pipeline.embodiment, policy.pipeline
    cameras = list(robot.cameras.values())
    dataset = LeRobotDataset(local_folder(root, "dataset"), episodes=[episode], cameras=cameras, columns=robot.columns)
    tell_notes(dataset.notes)
    found, own = robot_widths(dataset, robot), (pipeline.robot_state_dim, pipeline.robot_action_dim)
    if found != own:
        raise UserError(
            f"{root} has {found[0]} state and {found[1]} action dimensions, the checkpoint's robot {own[0]} and "
            f"{own[1]}; {advice}"
        )
    return dataset


def recorded_observation(dataset: LeRobotDataset, pipeline: Pipeline, frame: int) -> RobotDict:
    """What the robot saw at a frame, with the history that the pipeline asks for."""
    embodiment, history = pipeline.embodiment, pipeline.num_history
    frames = dataset.history([frame], history)[0]  # [T]
    state = robot_state(dataset, embodiment, frames)
    images = {camera: dataset.images(camera, frames) for camera in embodiment.cameras.values()}
    if history == 1:  # has no axis of its own
        state, images = state[0], {camera: image[0] for camera, image in images.items()}
    prompts = dataset.prompts([frame], embodiment.prompt_key, embodiment.default_prompt)
    return {"state": state, "images": images, "prompt": prompts[0]}


def spread_over(positions: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """At most `count` of the positions, evenly from the first to the last."""
    return positions[np.linspace(0, len(positions) - 1, min(count, len(positions))).round().astype(np.int64)]


def replay(
    dataset: LeRobotDataset,
    policy: ModelPolicy,
    frames: NDArray[np.int64],
    on_progress: Callable[[int], None] = lambda done: None,
) -> Replay:
    """What the policy would have done at these frames, beside what was done."""
    chunks: list[NDArray[np.float32]] = []
    subtasks: list[str] = []
    for batch in np.array_split(frames, -(-len(frames) // BATCH)):
        observations = [recorded_observation(dataset, policy.pipeline, int(frame)) for frame in batch]
        answers = policy.infer_batch(observations)
        chunks += [answer["actions"] for answer in answers]
        subtasks += [answer["subtask"] for answer in answers if "subtask" in answer]
        on_progress(len(chunks))
    predicted = np.stack(chunks)
    recorded, padded = robot_action_window(dataset, policy.pipeline.embodiment, frames, predicted.shape[1])
    return Replay(frames, recorded, predicted, padded, tuple(subtasks))
