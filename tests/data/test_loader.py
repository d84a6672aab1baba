"""Batches with an observation history against a plain gather, frames in memory or read on demand."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.embodiments import Conversion, Embodiment, generic
from pizero.data.frames import FrameCache, FrameStore
from pizero.data.images import resize_with_pad
from pizero.data.loader import Batch, Loader, Member
from pizero.data.norm_stats import NormStats, compute_norm_stats
from pizero.data.pipeline import Pipeline
from pizero.data.robot_columns import robot_actions, robot_state
from pizero.data.tokenizer import PaligemmaTokenizer
from pizero.types import UserError

DATASET = LeRobotDataset(Path(__file__).parents[1] / "golden/lerobot/datasets/v30_png")
STARTS = [0, 40, 78, 120]
CAMERAS = {"base_0_rgb": "top", "left_wrist_0_rgb": "wrist"}
SIZE = (16, 16)


def make_loader(
    history: int, store: FrameStore = "memory", robot: Mapping[str, Any] | None = None, **changes: Any
) -> Loader:
    """Of frames at, just after and well after the starts of episodes; the first action is relative to the state.

    robot: what is otherwise in its description.
    """
    embodiment = replace(generic(CAMERAS, relative_mask=(True,)), **(robot or {}))
    pipeline = Pipeline(
        embodiment, statistics(embodiment),
        PaligemmaTokenizer.bytes(), tuple(CAMERAS), "pi0", 64, SIZE, state_dim=8, action_dim=6, num_history=history,
    )  # fmt: skip
    cache = FrameCache(DATASET, list(CAMERAS.values()), SIZE, store=store)
    frames = np.array([0, 1, 3, 39, 40, 42, 77, 78, 100, 160])
    settings: dict[str, Any] = {"horizon": 4, "batch_size": 5, "seed": 0}
    return Loader([Member(DATASET, pipeline, cache, frames)], **{**settings, **changes})


def statistics(robot: Embodiment) -> NormStats:
    state, actions = robot_state(DATASET, robot), robot_actions(DATASET, robot)
    return compute_norm_stats(robot.model_state(state), robot.model_actions(actions), "zscore")


def positions_before(frame: int, history: int) -> list[int]:
    start = max(start for start in STARTS if start <= frame)
    return [max(start, frame - back) for back in reversed(range(history))]


@pytest.mark.parametrize("store", ["memory", "decode"])
@pytest.mark.parametrize("history", [2, 5])
def test_a_history_is_a_plain_gather(history: int, store: FrameStore) -> None:
    loader, single = make_loader(history, store), make_loader(1)
    frames = np.array([0, 1, 3, 40, 42, 160])
    batch, newest = loader.read(frames), single.read(frames)
    for camera, robot_camera in CAMERAS.items():
        images = batch.inputs["images"][camera]
        assert images.shape == (6, history, *SIZE, 3)
        for row, frame in enumerate(frames.tolist()):
            expected = resize_with_pad(DATASET.images(robot_camera, positions_before(frame, history)), *SIZE)
            assert_array_equal(images[row], expected)
        assert_array_equal(images[:, -1], newest.inputs["images"][camera])
    stats = single.members[0].pipeline.norm_stats.state
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


def batches_equal(one: Batch, other: Batch) -> None:
    assert_array_equal(one.actions, other.actions)
    assert_array_equal(one.inputs["state"], other.inputs["state"])
    assert_array_equal(one.inputs["prompt_tokens"], other.inputs["prompt_tokens"])
    for camera, images in one.inputs["images"].items():
        assert_array_equal(images, other.inputs["images"][camera])


def test_workers_change_no_batch_and_a_resume_within_an_epoch_goes_on() -> None:
    alone, ahead = make_loader(1, batch_size=3), make_loader(1, batch_size=3, workers=2)
    assert alone.batches_per_epoch == 3
    expected = list(alone.batches(0, 8))
    for first in (0, 4):
        found = list(ahead.batches(first, 8))
        assert len(found) == 8 - first
        for one, other in zip(expected[first:], found, strict=True):
            batches_equal(one, other)


def test_a_prompt_that_is_cut_is_told_before_the_workers_start(capfd: pytest.CaptureFixture[str]) -> None:
    """With the state of its first frame; then neither the training nor its workers say it again."""
    state, actions = DATASET.column("observation.state"), DATASET.column("action")
    tasks, dims = sorted(set(DATASET.prompts(np.arange(DATASET.num_frames)))), state.shape[1]
    pipeline = Pipeline(
        generic(CAMERAS), compute_norm_stats(state, actions, "quantile"), PaligemmaTokenizer.bytes(), tuple(CAMERAS),
        "pi05", len("Task: , State: ;\nAction: ") + 4 * dims + 10, SIZE, state_dim=8, action_dim=6,
    )  # fmt: skip
    cache = FrameCache(DATASET, list(CAMERAS.values()), SIZE, store="memory")
    with pytest.warns(UserWarning, match="the instruction is cut after") as told:
        loader = Loader([Member(DATASET, pipeline, cache, np.arange(160))], horizon=4, batch_size=40, seed=0, workers=2)
    assert len(told) == len(tasks)
    assert all(any(repr(task) in str(warning.message) for warning in told) for task in tasks)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batches = list(loader.batches(0, 4))
        assert_array_equal(batches[0].inputs["prompt_tokens"], loader.batch(0).inputs["prompt_tokens"])
    assert len(np.unique(batches[0].inputs["prompt_tokens"], axis=0)) > len(tasks)  # the state is in it
    assert capfd.readouterr().err == ""
    with pytest.raises(UserError, match=f"the state's {dims} dimensions take"):
        Loader(
            [Member(DATASET, replace(pipeline, prompt_length=20), cache, np.arange(9))], horizon=4, batch_size=4, seed=0
        )


def test_a_mistake_in_a_worker_is_the_same_line(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = make_loader(1, workers=1)

    def wrong(self: FrameCache, camera: str, frames: NDArray[np.int64]) -> None:
        raise UserError("the disk is gone")

    monkeypatch.setattr(FrameCache, "images", wrong)
    with pytest.raises(UserError, match=r"^the disk is gone$"):
        list(loader.batches(0, 2))


def test_ranks_share_a_batch() -> None:
    whole = make_loader(1, batch_size=6).batch(1)
    parts = [make_loader(1, batch_size=6, rank=rank, num_ranks=3).batch(1) for rank in range(3)]
    assert_array_equal(np.concatenate([part.actions for part in parts]), whole.actions)
    with pytest.raises(UserError, match="a batch of 5 cannot be divided among 2 ranks"):
        make_loader(1, batch_size=5, num_ranks=2)


def make_mixture(weights: tuple[float | None, float | None], batch_size: int = 5, seed: int = 0) -> Loader:
    """The dataset with both cameras, and the same of a robot that has the second camera alone and other statistics."""
    members: list[Member] = []
    for cameras, shift, frames, weight in (
        (CAMERAS, 0.0, np.arange(10, 40), weights[0]), ({"left_wrist_0_rgb": "wrist"}, 1.0, np.arange(10), weights[1]),
    ):  # fmt: skip
        state, actions = DATASET.column("observation.state"), DATASET.column("action")
        pipeline = Pipeline(
            generic(cameras), compute_norm_stats(state + shift, actions, "zscore"),
            PaligemmaTokenizer.bytes(), tuple(CAMERAS), "pi0", 64, SIZE, state_dim=8, action_dim=6,
        )  # fmt: skip
        cache = FrameCache(DATASET, list(cameras.values()), SIZE, store="memory")
        members.append(Member(DATASET, pipeline, cache, frames, weight))
    return Loader(members, horizon=4, batch_size=batch_size, seed=seed)


def test_a_mixture_reads_each_member_with_its_own_pipeline() -> None:
    loader = make_mixture((None, None))
    batch = loader.read(np.array([10, DATASET.num_frames + 3, 12, DATASET.num_frames]))
    first, second = (member.read(np.array(frames), 4) for member, frames in zip(
        loader._members, ([10, 12], [3, 0]), strict=True))  # fmt: skip
    assert_array_equal(batch.actions[[0, 2]], first.actions)
    assert_array_equal(batch.inputs["state"][[1, 3]], second.inputs["state"])
    assert_array_equal(batch.inputs["images"]["left_wrist_0_rgb"][[1, 3]], second.inputs["images"]["left_wrist_0_rgb"])
    assert_array_equal(batch.inputs["images"]["base_0_rgb"][[0, 2]], first.inputs["images"]["base_0_rgb"])
    assert not batch.inputs["images"]["base_0_rgb"][[1, 3]].any()
    assert batch.inputs["image_masks"]["base_0_rgb"].tolist() == [True, False, True, False]
    assert batch.inputs["image_masks"]["left_wrist_0_rgb"].all()


def drawn(loader: Loader, epochs: range) -> NDArray[np.int64]:
    return np.concatenate([loader._draw_order(epoch) for epoch in epochs])


def test_without_weights_a_mixture_draws_each_frame_once_per_epoch() -> None:
    for epoch in range(3):
        order = drawn(make_mixture((None, None)), range(epoch, epoch + 1))
        assert sorted(order.tolist()) == [*range(10, 40), *range(DATASET.num_frames, DATASET.num_frames + 10)]


def test_weights_are_shares_and_frames_take_turns() -> None:
    loader = make_mixture((1.0, 3.0))
    order = drawn(loader, range(5))  # of 40 samples each
    counts = np.bincount(order, minlength=DATASET.num_frames + 10)
    assert counts[10:40].sum() == 50
    assert counts[DATASET.num_frames :].tolist() == [15] * 10
    assert set(counts[10:40].tolist()) == {1, 2}  # shuffled again only when all were drawn
    assert not np.array_equal(order, drawn(make_mixture((1.0, 3.0), seed=1), range(5)))
    with pytest.raises(UserError, match="expected numbers above 0"):
        make_mixture((1.0, 0.0))
    starts = order.reshape(5, 40)[:, :5] >= DATASET.num_frames
    assert 0 < starts.sum() < 25  # the members are mixed within an epoch


def test_a_batch_of_a_robot_with_joined_columns_and_conversions() -> None:
    """State: the action's columns behind the state's, turned round; the prompt is the default where tasks are empty."""
    state, actions = DATASET.column("observation.state"), DATASET.column("action")
    width = state.shape[1]
    turned = Conversion((0, width), "state", model=(0, -1))
    loader = make_loader(1, robot={"state_key": ("observation.state", "action"), "conversions": (turned,)})
    joined = np.concatenate([state, actions], axis=1)
    joined[:, [0, width]] *= -1
    stats = compute_norm_stats(joined, actions, "zscore")
    frames = np.array([0, 39, 160])
    batch = loader.read(frames)
    expected = (joined[frames] - stats.state.mean) / (stats.state.std + 1e-6)
    assert_allclose(batch.inputs["state"][:, : joined.shape[1]], expected, rtol=1e-4, atol=1e-5)
    chunk = DATASET.window("action", frames, 4)[0].astype(np.float64)
    chunk[..., 0] += state[frames, None, 0]  # relative to the state turned round
    expected = (chunk - stats.actions.mean) / (stats.actions.std + 1e-6)
    assert_allclose(batch.actions[..., : actions.shape[1]], expected, rtol=1e-4, atol=1e-5)


def test_the_default_prompt_where_a_task_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DATASET, "tasks", ["", "push it"])
    loader = make_loader(1, robot={"default_prompt": "wait"})
    tokenizer = loader.members[0].pipeline.tokenizer
    frames = np.arange(161)
    tokens = loader.read(frames).inputs["prompt_tokens"]
    for text, index in (("wait", 0), ("push it", 1)):
        expected, _ = tokenizer.encode(text, None, 64)
        assert (DATASET.task_index == index).any()
        assert (tokens[DATASET.task_index == index] == expected).all()
