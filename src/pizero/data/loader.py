"""Training batches from a LeRobot dataset: a sample order fixed by the seed, an exact resume at any step, and frames
decoded once into memory where they fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.images import resize_with_pad
from pizero.data.pipeline import ModelInputs, Pipeline
from pizero.types import Convention

MEMORY_LIMIT = 6 * 2**30
"""Bytes of decoded frames that are kept in memory; a larger dataset is decoded as it is read."""


@dataclass(frozen=True)
class Batch:
    """Model inputs (see `Pipeline.model_inputs`) and normalised actions [B, H, action_dim]."""

    inputs: ModelInputs
    actions: NDArray[np.float32]


class FrameCache:
    """Frames of the cameras that the model reads, at the model's size: uint8 [F, h, w, 3] each, or read on demand.

    convention: of the resizing; "lerobot" is rounded to grey levels here.
    """

    def __init__(
        self,
        dataset: LeRobotDataset,
        cameras: Sequence[str],
        image_size: tuple[int, int],
        on_progress: Callable[[int, int], None] | None = None,
        memory_limit: int = MEMORY_LIMIT,
        convention: Convention = "openpi",
    ) -> None:
        self._dataset = dataset
        self._size = image_size
        self._convention: Convention = convention
        self._frames: dict[str, NDArray[np.uint8]] = {}
        total = dataset.num_frames * len(cameras)
        self.in_memory = total * image_size[0] * image_size[1] * 3 <= memory_limit
        if not self.in_memory:
            return
        done = 0
        for camera in cameras:
            frames = np.empty((dataset.num_frames, *image_size, 3), np.uint8)
            for positions, images in dataset.iter_images(camera):
                frames[positions] = self._resize(images)
                done += len(images)
                if on_progress is not None:
                    on_progress(done, total)
            self._frames[camera] = frames

    def images(self, camera: str, frames: NDArray[np.int64]) -> NDArray[np.uint8]:
        """uint8 [N, h, w, 3] of the frames with these positions [N], in their order; [N, T, h, w, 3] of [N, T]."""
        if self.in_memory:
            return self._frames[camera][frames]
        images = self._resize(self._dataset.images(camera, frames.ravel()))
        return images.reshape(*frames.shape, *images.shape[1:])

    def _resize(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        resized = resize_with_pad(images, *self._size, self._convention)
        return (np.rint(resized) if self._convention == "lerobot" else resized).astype(np.uint8, copy=False)


class Loader:
    """Batches over the chosen frames of a dataset, reshuffled each epoch; an epoch's last, smaller batch is left out.

    `batch(step)` depends on the seed and the step alone, so a resumed training reads what the uninterrupted one reads.
    """

    def __init__(
        self,
        dataset: LeRobotDataset,
        pipeline: Pipeline,
        cache: FrameCache,
        frames: NDArray[np.int64],
        *,
        horizon: int,
        batch_size: int,
        seed: int,
        early_frames: float = 0.0,
    ) -> None:
        """early_frames: frame i of an episode is drawn in proportion to (1 + i) ** -early_frames, with replacement."""
        self._dataset, self._pipeline, self._cache = dataset, pipeline, cache
        self._frames, self._horizon, self._seed = frames, horizon, seed
        self.batch_size = min(batch_size, len(frames))
        self.batches_per_epoch = len(frames) // self.batch_size
        self._order: tuple[int, NDArray[np.int64]] = (-1, frames)
        self._shares: NDArray[np.float64] | None = None
        if early_frames > 0:
            starts = np.repeat(dataset.episode_starts, dataset.episode_lengths)
            weights = (1.0 + frames - starts[frames]) ** -early_frames
            self._shares = weights / weights.sum()

    def batch(self, step: int) -> Batch:
        """The batch of training step `step`, counted from 0."""
        epoch, position = divmod(step, self.batches_per_epoch)
        if self._order[0] != epoch:
            self._order = epoch, self._draw_order(np.random.default_rng([self._seed, epoch]))
        start = position * self.batch_size
        return self.read(self._order[1][start : start + self.batch_size])

    def _draw_order(self, rng: np.random.Generator) -> NDArray[np.int64]:
        if self._shares is None:
            return rng.permutation(self._frames)
        return rng.choice(self._frames, len(self._frames), p=self._shares)

    def epoch(self) -> Iterator[Batch]:
        """All frames once, in order, for validation."""
        for start in range(0, len(self._frames), self.batch_size):
            yield self.read(self._frames[start : start + self.batch_size])

    def read(self, frames: NDArray[np.int64]) -> Batch:
        embodiment, dataset = self._pipeline.embodiment, self._dataset
        history = self._pipeline.num_history
        seen = frames if history == 1 else dataset.history(frames, history)  # [B], or [B, T] positions
        state = dataset.column(embodiment.state_key)[seen]
        actions, _ = dataset.window(embodiment.action_key, frames, self._horizon)
        images = {camera: self._cache.images(camera, seen) for camera in embodiment.cameras.values()}
        prompts = dataset.prompts(frames, embodiment.prompt_key, embodiment.default_prompt)
        inputs = self._pipeline.model_inputs(images, state, prompts)
        return Batch(inputs, self._pipeline.model_actions(actions, state))


def split_episodes(dataset: LeRobotDataset, validation_fraction: float, seed: int) -> tuple[NDArray[np.int64], ...]:
    """Frame positions of the training and of the validation episodes; whole episodes, drawn by the seed."""
    count = round(dataset.num_episodes * validation_fraction)
    if validation_fraction > 0 and dataset.num_episodes > 1:
        count = min(max(count, 1), dataset.num_episodes - 1)
    order = np.random.default_rng(seed).permutation(dataset.num_episodes)
    held_out = np.zeros(dataset.num_episodes, bool)
    held_out[order[:count]] = True
    of_frame = np.repeat(held_out, dataset.episode_lengths)
    return np.flatnonzero(~of_frame), np.flatnonzero(of_frame)
