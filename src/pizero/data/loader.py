"""Training batches from LeRobot datasets: a sample order fixed by the seed, an exact resume at any step, mixtures."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.frames import FrameCache
from pizero.data.pipeline import ModelInputs, Pipeline
from pizero.data.prompts import FAST_BLOCK, PROMPT_MASKS
from pizero.data.robot_columns import robot_action_window, robot_state
from pizero.processes import end_with_parent
from pizero.types import UserError

Rows: TypeAlias = NDArray[np.int64]
"""Places in a batch."""


@dataclass(frozen=True)
class Batch:
    """Model inputs (see `Pipeline.model_inputs`) and normalised actions [B, H, action_dim]."""

    inputs: ModelInputs
    actions: NDArray[np.float32]
    action_dims: NDArray[np.int64] | None = None
    """[B] action dimensions that the sample's robot has; the others are padding. None: unknown."""
    subtasks: Sequence[str] | None = None
    """[B] what the robot is doing, in words; empty where the data does not say it. None where no dataset says any."""


@dataclass(frozen=True)
class Place:
    """Where a sample comes from: the folder of its dataset, its episode's number and its frame of that episode."""

    dataset: Path
    episode: int
    frame: int


@dataclass(frozen=True)
class Member:
    """One dataset of a mixture: its frames that are used, and the pipeline of its robot.

    weight: share of the samples, in proportion to the other members'; None takes the number of frames, so that each
    frame is drawn once per epoch. task_weights: frames of an instruction are drawn in proportion to its weight, with
    replacement; those of others count 1.
    """

    dataset: LeRobotDataset
    pipeline: Pipeline
    cache: FrameCache
    frames: NDArray[np.int64]
    weight: float | None = None
    task_weights: Mapping[str, float] = field(default_factory=dict[str, float])

    def read(self, frames: NDArray[np.int64], horizon: int) -> Batch:
        embodiment, dataset = self.pipeline.embodiment, self.dataset
        history = self.pipeline.num_history
        seen = frames if history == 1 else dataset.history(frames, history)  # [B], or [B, T] positions
        state = robot_state(dataset, embodiment, seen)
        actions = self.pipeline.model_actions(robot_action_window(dataset, embodiment, frames, horizon)[0], state)
        images = {camera: self.cache.images(camera, seen) for camera in embodiment.cameras.values()}
        prompts = self.prompts(frames)
        subtasks = self._subtasks(frames)
        inputs = self.pipeline.model_inputs(images, state, prompts, actions, subtasks)
        dims = np.full(len(frames), self.pipeline.robot_action_dim, np.int64)
        return Batch(inputs, actions, dims, subtasks)

    def tell_cut_prompts(self) -> None:
        """Encodes each instruction, with each of its subtasks, once, with the state of its first frame: what must be
        cut is reported now, not by every process that prepares batches. UserError as for `model_inputs`.
        """
        texts = zip(self.prompts(self.frames), self._subtasks(self.frames) or [""] * len(self.frames), strict=True)
        firsts = dict(zip(reversed(list(texts)), reversed(self.frames.tolist()), strict=True))
        state = robot_state(self.dataset, self.pipeline.embodiment)
        history = self.pipeline.num_history
        for (prompt, subtask), frame in firsts.items():
            seen = np.array([frame]) if history == 1 else self.dataset.history(np.array([frame]), history)
            self.pipeline.encode_prompts([prompt], state[seen], [subtask])

    def _subtasks(self, frames: NDArray[np.int64]) -> list[str] | None:
        return None if self.dataset.subtasks is None else self.dataset.subtask_texts(frames)

    def prompts(self, frames: NDArray[np.int64]) -> list[str]:
        embodiment = self.pipeline.embodiment
        return self.dataset.prompts(frames, embodiment.prompt_key, embodiment.default_prompt)


class Loader:
    """Batches over the frames of one or several datasets, reshuffled each epoch over all episodes.

    An epoch has as many samples as there are frames; its last, smaller batch is dropped. `batch(step)` depends on the
    seed and the step alone, so a resumed training reads what the uninterrupted one reads, with any number of workers.
    """

    def __init__(
        self,
        members: Sequence[Member],
        *,
        horizon: int,
        batch_size: int,
        seed: int,
        early_frames: float = 0.0,
        workers: int = 0,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        """early_frames: frame i of an episode is drawn in proportion to (1 + i) ** -early_frames, with replacement.

        workers: processes that prepare batches ahead; 0 prepares them when asked for. rank, num_ranks: this process
        reads its part of each batch, so `batch_size` is that of all ranks together.
        """
        if not members or any(len(member.frames) == 0 for member in members):
            raise UserError("a dataset gives no frames to train on; use more episodes")
        weights = [len(member.frames) if member.weight is None else member.weight for member in members]
        if min(weights) <= 0:
            raise UserError(f"weights of the datasets: got {weights}, expected numbers above 0")
        self._members, self._horizon, self._seed, self._workers = list(members), horizon, seed, workers
        self._offsets = np.cumsum([0, *(member.dataset.num_frames for member in members)])
        total = sum(len(member.frames) for member in members)
        self._counts = _apportion(total, np.array(weights, np.float64))
        self.batch_size = min(batch_size, total)
        self.batches_per_epoch = total // self.batch_size
        if self.batch_size % num_ranks:
            raise UserError(f"a batch of {self.batch_size} cannot be divided among {num_ranks} ranks")
        self._rank, self._share = rank, self.batch_size // num_ranks
        self._orders: dict[int, NDArray[np.int64]] = {}
        with warnings.catch_warnings(action="ignore" if rank else None):
            for member in members:
                member.tell_cut_prompts()
        self._chances = [
            _chances(member, early_frames) if early_frames > 0 or member.task_weights else None for member in members
        ]

    @property
    def members(self) -> Sequence[Member]:
        return self._members

    def batch(self, step: int) -> Batch:
        """This rank's part of the batch of training step `step`, counted from 0."""
        return self.read(self._samples(step))

    def places(self, step: int) -> list[Place]:
        """Where the samples of `batch(step)` come from."""
        samples = self._samples(step)
        of_member = np.searchsorted(self._offsets, samples, side="right") - 1
        places: list[Place] = []
        for index, frame in zip(of_member, samples - self._offsets[of_member], strict=True):
            dataset = self._members[int(index)].dataset
            places.append(Place(dataset.root, int(dataset.episode_index[frame]), int(dataset.frame_index[frame])))
        return places

    def _samples(self, step: int) -> NDArray[np.int64]:
        epoch, position = divmod(step, self.batches_per_epoch)
        if epoch not in self._orders:
            self._orders = {epoch: self._draw_order(epoch)}
        start = position * self.batch_size + self._rank * self._share
        return self._orders[epoch][start : start + self._share]

    def batches(self, first: int, last: int) -> Iterator[Batch]:
        """Those of the steps first ... last - 1, prepared by the workers where there are some."""
        if self._workers == 0:
            for step in range(first, last):
                yield self.batch(step)
            return
        ahead = DataLoader(
            _Steps(self), batch_size=None, sampler=range(first, last), num_workers=self._workers, prefetch_factor=4,
            worker_init_fn=end_with_parent,
        )  # fmt: skip
        for batch in cast("Iterator[Batch | UserError]", ahead):
            if isinstance(batch, UserError):
                raise batch
            yield batch

    def epoch(self) -> Iterator[Batch]:
        """All frames once, in order, for validation."""
        frames = np.concatenate(
            [member.frames + offset for member, offset in zip(self._members, self._offsets[:-1], strict=True)]
        )
        for start in range(0, len(frames), self.batch_size):
            yield self.read(frames[start : start + self.batch_size])

    def read(self, samples: NDArray[np.int64]) -> Batch:
        """The batch of these samples [B]: a member's frame position, plus the frames of the members before it."""
        if len(self._members) == 1:
            return self._members[0].read(samples, self._horizon)
        of_member = np.searchsorted(self._offsets, samples, side="right") - 1
        parts: list[tuple[Rows, Batch]] = []
        for index, member in enumerate(self._members):
            rows = np.flatnonzero(of_member == index)
            if len(rows):
                parts.append((rows, member.read(samples[rows] - self._offsets[index], self._horizon)))
        return _merged(parts)

    def _draw_order(self, epoch: int) -> NDArray[np.int64]:
        """[total] samples: each member's next ones, at random places."""
        drawn = [self._draw(index, epoch) for index in range(len(self._members))]
        if len(drawn) == 1:
            return drawn[0]
        return np.random.default_rng([self._seed, epoch, len(drawn)]).permutation(np.concatenate(drawn))

    def _draw(self, index: int, epoch: int) -> NDArray[np.int64]:
        """A member's samples in an epoch: its frames, shuffled again after each pass over them."""
        member, count = self._members[index], self._counts[index]
        frames, chances = member.frames + self._offsets[index], self._chances[index]
        if chances is not None:
            return np.random.default_rng([self._seed, epoch, index]).choice(frames, count, p=chances)
        first, last = epoch * count, (epoch + 1) * count
        passes = [
            np.random.default_rng([self._seed, number, index]).permutation(frames)
            for number in range(first // len(frames), -(-last // len(frames)))
        ]
        skipped = first - first // len(frames) * len(frames)
        return np.concatenate(passes)[skipped : skipped + count]


class _Steps(TorchDataset[Any]):
    """Batches by step, in worker processes. A user's mistake is passed on as it is, without the worker's traceback."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def __getitem__(self, step: int) -> Batch | UserError:
        try:
            return self._loader.batch(step)
        except UserError as error:
            return error


def _apportion(total: int, weights: NDArray[np.float64]) -> list[int]:
    """`total` in whole parts, at least 1, in proportion to the weights; the largest remainders get what is left."""
    exact = total * weights / weights.sum()
    parts = np.maximum(exact.astype(np.int64), 1)
    order = np.argsort(parts - exact, kind="stable")
    parts[order[: max(total - int(parts.sum()), 0)]] += 1
    return parts.tolist()


def _chances(member: Member, early_frames: float) -> NDArray[np.float64]:
    starts = np.repeat(member.dataset.episode_starts, member.dataset.episode_lengths)
    weights = (1.0 + member.frames - starts[member.frames]) ** -early_frames
    if member.task_weights:
        weights *= [member.task_weights.get(prompt, 1.0) for prompt in member.prompts(member.frames)]
    return weights / weights.sum()


def _merged(parts: Sequence[tuple[Rows, Batch]]) -> Batch:
    """Parts of a batch with the rows they take. A camera that a part lacks is black there, and its mask false."""
    size = sum(len(rows) for rows, _ in parts)

    def gathered(values: Sequence[tuple[Rows, NDArray[Any]]]) -> NDArray[Any]:
        first = values[0][1]
        out = np.zeros((size, *first.shape[1:]), first.dtype)
        for rows, value in values:
            out[rows] = value
        return out

    def field(name: str) -> NDArray[Any]:
        return gathered([(rows, cast("Any", batch.inputs)[name]) for rows, batch in parts])

    images: dict[str, Any] = {}
    for camera in dict.fromkeys(camera for _, batch in parts for camera in batch.inputs["images"]):
        have = [(rows, batch) for rows, batch in parts if camera in batch.inputs["images"]]
        images[camera] = gathered([(rows, batch.inputs["images"][camera]) for rows, batch in have])
    inputs = ModelInputs(
        images=images,
        image_masks={
            camera: gathered([(rows, batch.inputs["image_masks"][camera]) for rows, batch in parts])
            for camera in parts[0][1].inputs["image_masks"]
        },
        prompt_tokens=field("prompt_tokens"), prompt_mask=field("prompt_mask"),
    )  # fmt: skip
    for name in ("state", *PROMPT_MASKS, *FAST_BLOCK):
        have = [(rows, cast("Any", batch.inputs)[name]) for rows, batch in parts if name in batch.inputs]
        if have:
            cast("Any", inputs)[name] = gathered(_equally_long(have) if name in FAST_BLOCK else have)
    known = [(rows, batch.action_dims) for rows, batch in parts if batch.action_dims is not None]
    dims = gathered(known) if len(known) == len(parts) else None
    actions = gathered([(rows, batch.actions) for rows, batch in parts])
    return Batch(inputs, actions, dims, _merged_texts(size, [(rows, batch.subtasks) for rows, batch in parts]))


def _equally_long(parts: Sequence[tuple[Rows, NDArray[Any]]]) -> list[tuple[Rows, NDArray[Any]]]:
    """[b, F] each, padded at the end with zeros to the longest F."""
    longest = max(value.shape[1] for _, value in parts)
    return [(rows, np.pad(value, ((0, 0), (0, longest - value.shape[1])))) for rows, value in parts]


def _merged_texts(size: int, parts: Sequence[tuple[Rows, Sequence[str] | None]]) -> Sequence[str] | None:
    if all(texts is None for _, texts in parts):
        return None
    merged = [""] * size
    for rows, texts in parts:
        for row, text in zip(rows.tolist(), texts or (), strict=False):
            merged[row] = text
    return merged


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
