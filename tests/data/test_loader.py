"""Batches with an observation history against a plain gather, frames in memory or read on demand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.embodiments import Conversion, generic
from pizero.data.images import resize_with_pad
from pizero.data.loader import FrameCache, Loader
from pizero.data.norm_stats import compute_norm_stats
from pizero.data.pipeline import Pipeline
from pizero.data.tokenizer import PaligemmaTokenizer

DATASET = LeRobotDataset(Path(__file__).parents[1] / "golden/lerobot/datasets/v30_png")
STARTS = [0, 40, 78, 120]
CAMERAS = {"base_0_rgb": "top", "left_wrist_0_rgb": "wrist"}
SIZE = (16, 16)


def make_loader(history: int, memory_limit: int = 2**30, **changes: Any) -> Loader:
    """Of frames at, just after and well after the starts of episodes; the first action is relative to the state."""
    state, actions = DATASET.column("observation.state"), DATASET.column("action")
    pipeline = Pipeline(
        generic(CAMERAS, relative_mask=(True,)), compute_norm_stats(state, actions, "zscore"),
        PaligemmaTokenizer.bytes(), tuple(CAMERAS), "pi0", 64, SIZE, state_dim=8, action_dim=6, num_history=history,
    )  # fmt: skip
    cache = FrameCache(DATASET, list(CAMERAS.values()), SIZE, memory_limit=memory_limit)
    frames = np.array([0, 1, 3, 39, 40, 42, 77, 78, 100, 160])
    settings: dict[str, Any] = {"horizon": 4, "batch_size": 5, "seed": 0}
    return Loader(DATASET, pipeline, cache, frames, **{**settings, **changes})


def positions_before(frame: int, history: int) -> list[int]:
    start = max(start for start in STARTS if start <= frame)
    return [max(start, frame - back) for back in reversed(range(history))]


@pytest.mark.parametrize("memory_limit", [2**30, 0])
@pytest.mark.parametrize("history", [2, 5])
def test_a_history_is_a_plain_gather(history: int, memory_limit: int) -> None:
    loader, single = make_loader(history, memory_limit), make_loader(1)
    frames = np.array([0, 1, 3, 40, 42, 160])
    batch, newest = loader.read(frames), single.read(frames)
    for camera, robot_camera in CAMERAS.items():
        images = batch.inputs["images"][camera]
        assert images.shape == (6, history, *SIZE, 3)
        for row, frame in enumerate(frames.tolist()):
            expected = resize_with_pad(DATASET.images(robot_camera, positions_before(frame, history)), *SIZE)
            assert_array_equal(images[row], expected)
        assert_array_equal(images[:, -1], newest.inputs["images"][camera])
    stats = single._pipeline.norm_stats.state
    positions = [positions_before(frame, history) for frame in frames.tolist()]
    expected = (DATASET.column("observation.state")[positions] - stats.mean) / (stats.std + 1e-6)
    assert batch.inputs["state"].shape == (6, history, 8)
    assert_allclose(batch.inputs["state"][..., : expected.shape[-1]], expected, rtol=1e-5, atol=1e-6)
    assert_array_equal(batch.inputs["state"][:, -1], newest.inputs["state"])
    assert_array_equal(batch.actions, newest.actions)  # from the newest frame on, and relative to its state


def test_a_history_changes_no_order() -> None:
    for step in range(4):
        with_history, without = (make_loader(history).batch(step) for history in (3, 1))
        assert_array_equal(with_history.inputs["state"][:, -1], without.inputs["state"])
        assert_array_equal(with_history.inputs["prompt_tokens"], without.inputs["prompt_tokens"])


def test_without_a_history_there_is_no_axis() -> None:
    batch = make_loader(1).batch(0)
    assert batch.inputs["images"]["base_0_rgb"].shape == (5, *SIZE, 3)
    assert batch.inputs["state"].shape == (5, 8)


def test_a_batch_of_a_robot_with_joined_columns_and_conversions() -> None:
    """State: the action's columns behind the state's, turned round; the prompt is the default where tasks are empty."""
    loader = make_loader(1)
    state, actions = DATASET.column("observation.state"), DATASET.column("action")
    width = state.shape[1]
    robot = replace(
        loader._pipeline.embodiment,
        state_key=("observation.state", "action"), conversions=(Conversion((0, width), "state", model=(0, -1)),),
    )  # fmt: skip
    joined = np.concatenate([state, actions], axis=1)
    joined[:, [0, width]] *= -1
    pipeline = replace(loader._pipeline, embodiment=robot, norm_stats=compute_norm_stats(joined, actions, "zscore"))
    loader._pipeline = pipeline
    frames = np.array([0, 39, 160])
    batch = loader.read(frames)
    stats = pipeline.norm_stats
    expected = (joined[frames] - stats.state.mean) / (stats.state.std + 1e-6)
    assert_allclose(batch.inputs["state"][:, : joined.shape[1]], expected, rtol=1e-4, atol=1e-5)
    chunk = DATASET.window("action", frames, 4)[0].astype(np.float64)
    chunk[..., 0] += state[frames, None, 0]  # relative to the state turned round
    expected = (chunk - stats.actions.mean) / (stats.actions.std + 1e-6)
    assert_allclose(batch.actions[..., : actions.shape[1]], expected, rtol=1e-4, atol=1e-5)


def test_the_default_prompt_where_a_task_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = make_loader(1)
    monkeypatch.setattr(loader._dataset, "tasks", ["", "push it"])
    loader._pipeline = replace(
        loader._pipeline, embodiment=replace(loader._pipeline.embodiment, default_prompt="wait")
    )  # fmt: skip
    frames = np.arange(161)
    tokens = loader.read(frames).inputs["prompt_tokens"]
    for text, index in (("wait", 0), ("push it", 1)):
        expected, _ = loader._pipeline.tokenizer.encode(text, None, 64)
        assert (DATASET.task_index == index).any()
        assert (tokens[DATASET.task_index == index] == expected).all()
