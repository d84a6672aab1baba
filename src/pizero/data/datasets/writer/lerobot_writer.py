"""Writes LeRobot v3.0 datasets that the LeRobot library opens, frame by frame, in bounded memory."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pizero.data.datasets.images.png import encode_png
from pizero.data.datasets.images.video import ENCODERS, check_encoding
from pizero.data.datasets.meta.features import IMAGE_PREFIX
from pizero.data.datasets.meta.info import INFO_PATH, STATS_PATH, TASKS_PATH
from pizero.data.datasets.subtasks import PERSISTENT
from pizero.data.datasets.writer.lerobot_files import CameraVideo, DataFiles, EpisodeTable, Mark
from pizero.data.datasets.writer.lerobot_meta import INDEX_TYPES, Recording, language_rows, write_meta
from pizero.data.datasets.writer.lerobot_stats import STAT_NAMES, ImageStats, Stats, merge_stats, numeric_stats
from pizero.files import partial_path
from pizero.types import UserError

ImageFormat: TypeAlias = Literal["png", "h264", "av1"]


class LeRobotWriter:
    """`add_frame` for each control step, then `save_episode(task)` or `discard_episode()`; `finalize()` at the end.

    Everything is written to a hidden sibling folder, which becomes `root` in `finalize`; until then nothing is at
    `root`. As a context manager it finalizes, or on an exception (Ctrl-C too) removes what it wrote.

    Where `save_episode` fails, that episode alone is gone, all of it, and recording continues. Only a write that breaks
    off in the middle of a file can hit earlier episodes of that file, which every later call then reports. With `apart`
    it cannot: each episode is in files of its own, and a whole dataset is on disk when `save_episode` returns.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        fps: float,
        robot_type: str,
        state_names: Sequence[str],
        action_names: Sequence[str],
        cameras: Mapping[str, tuple[int, int]],
        image_format: ImageFormat = "h264",
        apart: bool = False,
    ) -> None:
        """`cameras`: robot camera name -> (height, width). `root` must not exist, or be empty."""
        self.root = Path(root)
        self.num_frames = 0
        self.num_episodes = 0
        self._recording = Recording(
            fps=fps,
            robot_type=robot_type,
            vectors={"observation.state": tuple(state_names), "action": tuple(action_names)},
            cameras={camera: (int(height), int(width)) for camera, (height, width) in cameras.items()},
            codec=None if image_format == "png" else image_format,
        )
        self._check_arguments(image_format)
        self._apart = apart
        self._hit = ""  # why earlier episodes are not whole

        self._partial = partial_path(self.root)
        self._partial.mkdir()
        # Runs in `abort`, at the latest when the writer is collected or the program ends.
        self._remove_partial = weakref.finalize(self, shutil.rmtree, self._partial, True)
        self._open_files()
        self._tasks: dict[str, int] = {}
        self._stats: dict[str, Stats] = {}
        self._start_episode()

    def add_frame(
        self, state: ArrayLike, action: ArrayLike, images: Mapping[str, NDArray[np.uint8]], subtask: str | None = None
    ) -> None:
        """One control step: state [d], action [d], images of exactly the declared cameras, uint8 [h, w, 3].

        subtask: what is done now, in words, for LeRobot's column `language_persistent`; None in all frames where the
        dataset shall not have it, a text (maybe an empty one) in all others.
        """
        if self.num_frames == self._length == 0:
            self._recording = replace(self._recording, subtasks=subtask is not None)
            self._data = self._data_files()
        if self._recording.subtasks != (subtask is not None):
            raise UserError(f"frame {self._length}: subtask is {subtask!r}; give one in all frames, or in none")
        given = {"observation.state": state, "action": action}
        vectors = {key: self._check_vector(key, values) for key, values in given.items()}
        self._check_images(images)
        for key, vector in vectors.items():
            self._frames[key].append(vector)
        for camera, image in images.items():
            self._image_stats[camera].add(image)
            if self._recording.codec is None:
                self._frames[IMAGE_PREFIX + camera].append(encode_png(image))
            else:
                self._videos[camera].add(image)
        self._subtasks.append(subtask or "")
        self._length += 1

    def save_episode(self, task: str) -> int:
        """Keeps the frames added since the last episode, with the prompt `task`; returns the episode's index.

        Whatever it raises, nothing is left of these frames, and of no episode a part.
        """
        if self._length == 0:
            raise UserError("save_episode: the episode has no frames; call add_frame first")
        self._check_whole()
        parts = (self._data, *self._videos.values(), self._episode_table)
        marks = [part.mark() for part in parts]
        try:
            tasks = {**self._tasks, task: self._tasks.get(task, len(self._tasks))}
            stats = self._write_episode(task, tasks)
        except BaseException:
            self.discard_episode()
            for part, mark in zip(parts, marks, strict=True):
                self._take_back(part, mark)
            raise
        self._tasks, self._stats = tasks, stats
        self.num_frames += self._length
        self.num_episodes += 1
        self._start_episode()
        return self.num_episodes - 1

    def _write_episode(self, task: str, tasks: dict[str, int]) -> dict[str, Stats]:
        """Returns the statistics with this episode. tasks: with this one's."""
        columns = self._episode_columns(tasks[task])
        episode_stats = self._episode_stats(columns)
        stats = {key: merge_stats(self._stats.get(key), values) for key, values in episode_stats.items()}
        row: dict[str, Any] = {
            "episode_index": self.num_episodes,
            "tasks": [task],
            "length": self._length,
            "dataset_from_index": self.num_frames,
            "dataset_to_index": self.num_frames + self._length,
        }
        for key, values in episode_stats.items():
            row |= {f"stats/{key}/{name}": values[name].tolist() for name in STAT_NAMES}
        row |= self._data.append(columns, self._length)
        for video in self._videos.values():
            row |= video.save_episode()
        new = self._partial / ".new"
        if self._apart:
            write_meta(new, self._recording, list(tasks), stats, self.num_episodes + 1, row["dataset_to_index"])
        self._episode_table.append(row)
        if self._apart:
            for path in (STATS_PATH, TASKS_PATH, INFO_PATH):
                os.replace(new / path, self._partial / path)
            shutil.rmtree(new)
        return stats

    def _take_back(self, part: DataFiles | CameraVideo | EpisodeTable, mark: Mark) -> None:
        try:
            part.take_back(mark)
        except Exception as error:
            self._hit = " ".join(str(error).split())[:200]

    def _check_whole(self) -> None:
        if self._hit:
            raise UserError(
                f"{self.root} is not written: an episode could not be saved, and earlier ones in its file are not "
                f"whole either ({self._hit})"
            )

    def discard_episode(self) -> None:
        """Drops the frames added since the last episode."""
        for video in self._videos.values():
            video.discard_episode()
        self._start_episode()

    def finalize(self) -> Path:
        """Completes the files and moves the dataset to `root`."""
        if self._length:
            raise UserError(f"finalize: {self._length} frames are in no episode; call save_episode or discard_episode")
        if self.num_episodes == 0:
            raise UserError(f"{self.root} was not written: no episode was saved")
        self._check_whole()
        self._close_files()
        if not self._apart:  # where each episode is, the description is there since the last one
            tasks = list(self._tasks)
            write_meta(self._partial, self._recording, tasks, self._stats, self.num_episodes, self.num_frames)
        try:
            if self.root.is_dir():
                self.root.rmdir()  # empty, as checked at the start
            os.replace(self._partial, self.root)
        except OSError as error:
            if self._apart:
                self._keep_aside(error)
            raise
        self._remove_partial.detach()
        return self.root

    def _keep_aside(self, error: OSError) -> None:
        """Gives a dataset that is whole another name than `root`, and returns it."""
        aside = self.root.with_name(f"{self.root.name}-{secrets.token_hex(4)}")
        os.replace(self._partial, aside)
        self._remove_partial.detach()
        raise UserError(f"{self.root} cannot be written ({error}); the dataset is in {aside}") from error

    def abort(self) -> None:
        """Removes everything written; does nothing after `finalize`."""
        if self._remove_partial.alive:
            with contextlib.suppress(Exception):  # half-written files may not close; they are removed all the same
                self._close_files()
            self._remove_partial()

    def __enter__(self) -> LeRobotWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._remove_partial.alive:
                self.finalize()
        finally:
            self.abort()

    def _data_files(self) -> DataFiles:
        recording = self._recording
        return DataFiles(self._partial, recording.column_types(), recording.huggingface_metadata(), self._apart)

    def _open_files(self) -> None:
        recording = self._recording
        self._data = self._data_files()
        self._videos: dict[str, CameraVideo] = {}
        if recording.codec is not None:
            for camera, size in recording.cameras.items():
                key = IMAGE_PREFIX + camera
                self._videos[camera] = CameraVideo(
                    self._partial, key, recording.codec, recording.fps, size, self._apart
                )
        self._episode_table = EpisodeTable(
            self._partial, recording.image_keys, recording.number_keys, recording.codec is not None, self._apart
        )

    def _close_files(self) -> None:
        for file in (self._data, self._episode_table, *self._videos.values()):
            file.close()

    def _start_episode(self) -> None:
        self._length = 0
        keys = [*self._recording.vectors, *([] if self._recording.codec else self._recording.image_keys)]
        self._frames: dict[str, list[Any]] = {key: [] for key in keys}
        self._subtasks: list[str] = []
        self._image_stats = {camera: ImageStats() for camera in self._recording.cameras}

    def _episode_columns(self, task_index: int) -> dict[str, Any]:
        frame_index = np.arange(self._length, dtype=np.int64)
        columns: dict[str, Any] = {
            "timestamp": (frame_index / self._recording.fps).astype(np.float32),
            "frame_index": frame_index,
            "episode_index": np.full_like(frame_index, self.num_episodes),
            "index": self.num_frames + frame_index,
            "task_index": np.full_like(frame_index, task_index),
        }
        for key, frames in self._frames.items():
            columns[key] = np.stack(frames) if key in self._recording.vectors else frames
            if len(self._recording.vectors.get(key, ())) == 1:
                columns[key] = columns[key][:, 0]
        if self._recording.subtasks:  # LeRobot has an episode's texts at each of its frames
            columns[PERSISTENT] = [language_rows(self._subtasks, self._recording.fps)] * self._length
        return columns

    def _episode_stats(self, columns: Mapping[str, Any]) -> dict[str, Stats]:
        stats = {IMAGE_PREFIX + camera: collected.finish() for camera, collected in self._image_stats.items()}
        for key in (*self._recording.vectors, *INDEX_TYPES):
            stats[key] = numeric_stats(columns[key].reshape(self._length, -1))
        return stats

    def _check_arguments(self, image_format: str) -> None:
        recording = self._recording
        if image_format not in ("png", *ENCODERS):
            raise UserError(f"image_format is {image_format!r}; choose png, h264 or av1")
        if not recording.fps > 0:
            raise UserError(f"fps is {recording.fps}; it must be above 0")
        if self.root.exists() and (not self.root.is_dir() or any(self.root.iterdir())):
            raise UserError(f"{self.root} exists and is not empty; choose another folder or remove it first")
        for camera, (height, width) in recording.cameras.items():
            if not camera or "/" in camera:
                raise UserError(f"camera name {camera!r} cannot be part of a column name; it must not contain /")
            if recording.codec is not None:
                check_encoding(recording.codec, camera, height, width)

    def _check_vector(self, key: str, values: ArrayLike) -> NDArray[np.float32]:
        vector = np.array(values, dtype=np.float32)  # a copy: the caller may reuse its array
        expected = (len(self._recording.vectors[key]),)
        if vector.shape != expected:
            raise UserError(f"frame {self._length}: {key} has shape {vector.shape}, expected {expected}")
        if not np.isfinite(vector).all():
            raise UserError(f"frame {self._length}: {key} is not finite: {vector.tolist()}")
        return vector

    def _check_images(self, images: Mapping[str, NDArray[np.uint8]]) -> None:
        cameras = self._recording.cameras
        if images.keys() != cameras.keys():
            raise UserError(f"frame {self._length}: cameras {sorted(images)}, expected {sorted(cameras)}")
        for camera, image in images.items():
            expected = (*cameras[camera], 3)
            if image.dtype != np.uint8 or image.shape != expected:
                raise UserError(
                    f"frame {self._length}: camera {camera!r} gave {image.dtype} {image.shape}, "
                    f"expected uint8 {expected}"
                )
