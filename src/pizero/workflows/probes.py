"""A policy asked again with one thing changed: cameras exchanged, pictures turned, other statistics. What then fits the
recording better is what the policy was trained with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.doctor.against import FAR, misfit
from pizero.data.doctor.verdict import Explanation, Yardstick, mean_error
from pizero.data.norm_stats import NormStats
from pizero.data.pipeline import Pipeline
from pizero.data.robot_columns import robot_action_window, robot_state
from pizero.policy.policy import ModelPolicy
from pizero.types import RobotDict, UserError
from pizero.workflows.norm_stats import dataset_norm_stats
from pizero.workflows.replay import recorded_observation

CHUNKS = 12
"""That are asked for with each change."""

Change = tuple[str, str, Pipeline, Callable[[RobotDict], RobotDict]]
"""Aspect, what the policy was then trained with, the pipeline and the observation with the change."""


def probe(
    policy: ModelPolicy, dataset: LeRobotDataset, frames: NDArray[np.int64], on_progress: Callable[[int], None]
) -> list[Explanation]:
    """Of the changes that fit clearly better, the best of each aspect. frames: where chunks start."""
    observations = [recorded_observation(dataset, policy.pipeline, int(frame)) for frame in frames]
    horizon = policy.horizon
    recorded, padded = robot_action_window(dataset, policy.pipeline.embodiment, frames, horizon)

    def error(pipeline: Pipeline, change: Callable[[RobotDict], RobotDict]) -> float:
        asked = ModelPolicy(policy.model, pipeline, num_steps=policy.num_steps)
        answers = asked.infer_batch([change(observation) for observation in observations])
        predicted = np.stack([answer["actions"] for answer in answers])
        return mean_error(recorded, predicted, padded, range(recorded.shape[2]))

    before = error(policy.pipeline, lambda observation: observation)
    states = robot_state(dataset, policy.pipeline.embodiment, frames)
    least = Yardstick.of(policy.pipeline.embodiment, states, recorded.shape[2])
    bound = least.error(recorded, padded, range(recorded.shape[2]))
    best: dict[str, Explanation] = {}
    changes = list(_changes(policy.pipeline, dataset, policy.noise_shape[0]))
    for done, (aspect, text, pipeline, change) in enumerate(changes, 1):
        try:
            found = Explanation(aspect, text, before, error(pipeline, change), bound)
        except (UserError, RuntimeError):  # the model cannot be asked so
            continue
        finally:
            on_progress(done * len(frames))
        if found.is_clear and (aspect not in best or found.after < best[aspect].after):
            best[aspect] = found
    return list(best.values())


def _changes(pipeline: Pipeline, dataset: LeRobotDataset, horizon: int) -> Iterator[Change]:
    cameras = list(pipeline.embodiment.cameras.values())
    for first, second in combinations(cameras, 2):
        yield "cameras", f"it was trained with {first} and {second} exchanged", pipeline, _swapped(first, second)
    turns: dict[str, Callable[[Any], Any]] = {
        "it was trained with images turned by 180 degrees": lambda image: image[..., ::-1, ::-1, :],
        "it was trained with images that are mirrored": lambda image: image[..., ::-1, :],
        "it was trained with red and blue exchanged": lambda image: image[..., ::-1],
    }
    for text, turn in turns.items():
        yield "images", text, pipeline, _turned(turn)
    same: Callable[[RobotDict], RobotDict] = lambda observation: observation  # noqa: E731
    if pipeline.prompt_format == "pi05":
        text = "it was trained without the state in its prompt"
        yield "prompt", text, replace(pipeline, prompt_format="none"), same
    elif pipeline.prompt_format == "none":
        yield "prompt", "it was trained with the state in its prompt", replace(pipeline, prompt_format="pi05"), same
    stats = pipeline.norm_stats
    other = "zscore" if stats.mode == "quantile" else "quantile"
    mode = replace(stats, mode=other)
    yield (
        "statistics",
        f"it was normalised in the mode {other}, not {stats.mode}",
        replace(pipeline, norm_stats=mode),
        same,
    )
    own = dataset_norm_stats(dataset, pipeline.embodiment, stats.mode, horizon)
    if _differ(stats, own):
        text = "it was trained with the statistics of this data, and comes with others"
        yield "statistics", text, replace(pipeline, norm_stats=own), same


def _differ(theirs: NormStats, own: NormStats) -> bool:
    return any(
        bool((misfit(a, b) > FAR / 2).any()) for a, b in ((theirs.state, own.state), (theirs.actions, own.actions))
    )  # fmt: skip


def _swapped(first: str, second: str) -> Callable[[RobotDict], RobotDict]:
    def change(observation: RobotDict) -> RobotDict:
        images = observation["images"]
        return {**observation, "images": {**images, first: images[second], second: images[first]}}

    return change


def _turned(turn: Callable[[Any], Any]) -> Callable[[RobotDict], RobotDict]:
    def change(observation: RobotDict) -> RobotDict:
        images = {name: np.ascontiguousarray(turn(image)) for name, image in observation["images"].items()}
        return {**observation, "images": images}

    return change
