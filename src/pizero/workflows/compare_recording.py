"""A comparison on somebody's recording, where nothing can be played: errors on held-out episodes, in robot units."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pizero.configs.presets import OWN, Preset
from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.loader import split_episodes
from pizero.data.norm_stats import NEAR_CONSTANT
from pizero.data.robot_columns import robot_action_window, robot_actions
from pizero.types import UserError
from pizero.workflows.sizes import sized
from pizero.workflows.training_data import Source, open_sources

VALIDATION_FRACTION = 0.1
"""Of the recorded episodes."""
HELD_OUT_SEED = 0

TRIVIAL = ("constant action", "action before")
"""What a policy must be better than: the median recorded action, and the action before the chunk, held."""


def recorded_source(dataset: str, skip_bad_episodes: bool) -> Source:
    """The recording, its robot as `pizero train --preset small` sees it."""
    if dataset.endswith(".toml"):
        raise UserError(f"{dataset}: a comparison learns from one dataset, not from a mixture")
    return open_sources(Path(dataset), OWN, skip_bad_episodes=skip_bad_episodes)[0]


def sized_by(source: Source, preset: Preset) -> Preset:
    """The preset with the cameras, the image size and the dimensions of the recording; the chunk stays the rung's."""
    fitted = sized(replace(preset, from_data=True), [source])
    model = replace(fitted.model, action_horizon=preset.model.action_horizon)
    train = replace(preset.train, validation_fraction=VALIDATION_FRACTION)
    return replace(preset, embodiment=OWN, from_data=False, model=model, train=train)


def held_out_frames(data: LeRobotDataset, preset: Preset, count: int) -> NDArray[np.int64]:
    """At most `count` frames of the validation episodes, drawn alike for every variant."""
    _, frames = split_episodes(data, preset.train.validation_fraction, preset.train.seed)
    return np.random.default_rng(HELD_OUT_SEED).choice(frames, min(count, len(frames)), replace=False)


def played_error(
    predicted: NDArray[np.float32], expected: NDArray[np.float32], inside: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Mean absolute error per dimension [d], robot units. predicted: broadcast to the shape of expected [N, H, d]."""
    return np.abs(predicted - expected)[inside].mean(axis=0)


def in_spreads(error: NDArray[np.float32], expected: NDArray[np.float32], inside: NDArray[np.bool_]) -> float:
    """The mean error over the dimensions that move, in standard deviations of the recorded actions [N, H, d]."""
    spread = expected[inside].std(axis=0)
    moves = spread > NEAR_CONSTANT
    return float((error[moves] / spread[moves]).mean())


def trivial_rows(source: Source, preset: Preset, count: int) -> list[dict[str, Any]]:
    """The errors of `TRIVIAL` on the frames of a run with this preset: change, open_loop_error, relative_error."""
    data, robot = source.dataset, source.embodiment
    frames = held_out_frames(data, preset, count)
    expected, padded = robot_action_window(data, robot, frames, preset.execution_horizon)
    recorded = robot_actions(data, robot)
    trained, _ = split_episodes(data, preset.train.validation_fraction, preset.train.seed)
    starts = np.repeat(data.episode_starts, data.episode_lengths)
    guesses = np.median(recorded[trained], axis=0), recorded[np.maximum(frames - 1, starts[frames])][:, None]
    errors = [played_error(guess, expected, ~padded) for guess in guesses]
    return [
        {"change": name, "open_loop_error": error.tolist(), "relative_error": in_spreads(error, expected, ~padded)}
        for name, error in zip(TRIVIAL, errors, strict=True)
    ]
