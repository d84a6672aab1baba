"""Reads LeRobot datasets (v2.0, v2.1, v3.0: parquet with PNG frames, or with mp4 video) without the LeRobot package."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pizero.data.datasets.faults import clock_note, find_faults, left_out, nothing_left, number_faults, refusal
from pizero.data.datasets.files.columns import NumberColumns
from pizero.data.datasets.files.index_columns import read_index
from pizero.data.datasets.files.numbers import read_columns
from pizero.data.datasets.files.parquet import read_cells
from pizero.data.datasets.images.pictures import Frame, Kind, Pictures
from pizero.data.datasets.images.png import OtherSizeError
from pizero.data.datasets.meta.description import read_layout
from pizero.data.datasets.meta.features import camera_keys, dimension_names, number_keys, picture_size
from pizero.data.datasets.meta.layout import BadEpisodeError, Episode
from pizero.data.datasets.subtasks import STYLE, Subtasks, find_subtasks
from pizero.types import UserError


@dataclass(frozen=True)
class EpisodeFiles:
    """Where an episode lies: rows [length] of its data file; by column the video with its frames' times [length], or
    images [length] beside the data file.
    """

    data_path: Path
    rows: NDArray[np.int64]
    videos: Mapping[str, tuple[Path, NDArray[np.float64]]]
    images: Mapping[str, Sequence[Path]]


class LeRobotDataset:
    """One dataset folder, or the chosen episodes of it. Frames are numbered 0 ... num_frames - 1 over those episodes.

    Numbers are read from parquet alone; video and images are decoded when asked for. May be shared by threads,
    forked and pickled. A fault of the files is a UserError that names the file and, where there is one, the episode.
    `notes`: what was assumed of an incomplete or contradictory dataset, a line each, to be printed once.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        episodes: Sequence[int] | None = None,
        cameras: Sequence[str] | None = None,
        columns: Sequence[str] | None = None,
        skip_bad_episodes: bool = False,
        subtasks: str | Path | None = None,
    ) -> None:
        """`episodes`: the episode ids to use, in that order; all by default.

        cameras: whose files are looked at now, without decoding; all by default, and others when they are read.
        columns: the same of numbers; by default those that are named as states and actions. Of episodes with missing or
        damaged files, with other numbers of rows or frames than the description says, or with numbers that are null or
        more or fewer than elsewhere, the first is a BadEpisodeError; with `skip_bad_episodes` they are skipped with
        one warning, and are `faults`. subtasks: as for `find_subtasks`.
        """
        self.root = Path(root)
        layout = read_layout(self.root)
        self.notes = list(layout.notes)
        self._missing_cameras = dict(layout.missing_cameras)
        self._camera_keys = camera_keys(layout.features)
        self._pictures = Pictures(layout)
        self._kinds: dict[str, Kind] = {}
        selected = _select(self.root, layout.episodes, episodes)
        looked_at = NumberColumns(layout.features, columns)
        self.faults, rows = find_faults(layout, selected, cameras, self._pictures, looked_at, self.notes)
        self._episodes = self._without_faults(selected, skip_bad_episodes)
        self.fps = layout.fps
        self.robot_type = layout.robot_type
        self.features = dict(layout.features)
        self.tasks = layout.tasks
        self.stats = layout.stats
        self.episodes = np.array([episode.index for episode in self._episodes], np.int64)
        self.episode_lengths = np.array([episode.length for episode in self._episodes], np.int64)
        self.episode_starts = np.cumsum(self.episode_lengths) - self.episode_lengths
        self.num_episodes = len(self._episodes)
        self.num_frames = int(self.episode_lengths.sum())
        # Position of each frame's episode in self.episodes.
        self._ordinals = np.repeat(np.arange(self.num_episodes), self.episode_lengths)

        index = read_index(layout, self._episodes, rows)
        self.notes += index.notes
        self._rows = np.concatenate([index.rows[episode.index] for episode in self._episodes])
        self.episode_index = np.repeat(self.episodes, self.episode_lengths)
        self.frame_index = np.arange(self.num_frames) - self.episode_starts[self._ordinals]
        self.task_index = index.task_index
        self.timestamp = index.timestamp
        note = clock_note(self.fps, self.timestamp, {e.index: self._frames_of(i) for i, e in enumerate(self._episodes)})
        self.notes += [] if note is None else [note]
        self._columns: dict[str | tuple[str, ...], NDArray[np.float32]] = {}
        for key in looked_at.widths:
            if (values := looked_at.take(key, self._episodes, index.rows)) is not None:
                self._columns[key] = values
        self._texts: dict[str, list[str]] = {}
        self.subtask_source = subtasks
        self.look_at(cameras)

    def column(self, key: str | tuple[str, ...]) -> NDArray[np.float32]:
        """float32 [num_frames, d] of "observation.state", "action" or another numeric column. Kept in memory.

        Of several keys, their columns side by side.
        """
        if isinstance(key, tuple):
            if key not in self._columns:
                self._columns[key] = np.concatenate([self.column(part) for part in key], axis=1)
        elif key not in self._columns:
            numeric = number_keys(self.features)
            if key not in numeric:
                raise UserError(f"{self.root} has no numeric column {key!r}; it has {', '.join(numeric)}")
            self._columns[key] = self._read_column(key)
        return self._columns[key]

    def names(self, key: str | tuple[str, ...]) -> tuple[str, ...] | None:
        """The names in info.json of a numeric column's dimensions; None unless there is one for each of the data's.

        Of several keys, their names side by side.
        """
        if isinstance(key, tuple):
            parts = [self.names(part) for part in key]
            return None if None in parts else tuple(name for part in parts for name in part or ())
        names = dimension_names(self.features.get(key, {}).get("names"))
        return names if names and len(names) == self.column(key).shape[1] else None

    def window(
        self, key: str | tuple[str, ...], frames: ArrayLike, horizon: int
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """(values [N, horizon, d], is_pad [N, horizon]): `key` at each frame and the horizon - 1 after it.

        Past the episode's end the last value repeats and is_pad is true.
        """
        frames = self._check_frames(frames)
        ends = (self.episode_starts + self.episode_lengths)[self._ordinals[frames], None]
        positions = frames[:, None] + np.arange(horizon)
        return self.column(key)[np.minimum(positions, ends - 1)], positions >= ends

    def history(self, frames: ArrayLike, length: int) -> NDArray[np.int64]:
        """Positions [N, length] of each frame and the length - 1 before it, oldest first.

        Before the episode's start its first frame repeats.
        """
        frames = self._check_frames(frames)
        starts = self.episode_starts[self._ordinals[frames], None]
        return np.maximum(frames[:, None] + np.arange(1 - length, 1), starts)

    def prompts(self, frames: ArrayLike, key: str = "task", default: str = "") -> list[str]:
        """The text of each frame's task, or in the column `key`; `default` where it is empty.

        "subtask": what is done at the frame, by `subtasks`; the task where that is not known.
        """
        positions = self._check_frames(frames)
        if key == STYLE and self.subtasks is not None:
            texts: list[str] = [self._subtask_or_task(position) for position in positions.tolist()]
        elif key == "task":
            texts = [self.tasks[index] for index in self.task_index[positions].tolist()]
        else:
            if key not in self._texts:
                self._texts[key] = self._read_texts(key)
            texts = [self._texts[key][position] for position in positions.tolist()]
        return [default if default and not text.strip() else text for text in texts]

    @cached_property
    def subtasks(self) -> Subtasks | None:
        """What is done when, in words; None where nothing says it. UserError where that cannot be read."""
        return find_subtasks(self, self.subtask_source)

    def subtask_texts(self, frames: ArrayLike) -> list[str]:
        """What is done at each frame; empty where nothing says it."""
        positions: list[int] = self._check_frames(frames).tolist()
        return [""] * len(positions) if self.subtasks is None else [self.subtasks.texts[frame] for frame in positions]

    def _subtask_or_task(self, position: int) -> str:
        task: int = int(self.task_index[position])
        return self.subtask_texts([position])[0] or self.tasks[task]

    def cells(self, key: str, frames: ArrayLike) -> list[Any]:
        """The values in the data files of any column, of the frames given."""
        positions = self._check_frames(frames)
        values: list[Any] = [None] * len(positions)
        of_episode = self._ordinals[positions]
        for path, ordinals in self._by_file():
            places = np.flatnonzero(np.isin(of_episode, ordinals))
            for place, value in zip(places.tolist(), read_cells(path, key, self._rows[positions[places]]), strict=True):
                values[place] = value
        return values

    def image_shape(self, camera: str) -> tuple[int, int]:
        """(height, width) of a camera's frames, by the first of them."""
        kind = self._kind(self.camera_key(camera))
        return kind.height, kind.width

    def image_files(self, cameras: Sequence[str]) -> list[Path]:
        """The files that hold these cameras' frames, each once, in the order of the episodes."""
        keys = [self.camera_key(camera) for camera in cameras]
        video = [key for key in keys if self.features[key]["dtype"] == "video"]
        paths = [episode.videos[key].path for key in video for episode in self._episodes]
        if len(video) < len(keys):
            paths += [episode.data_path for episode in self._episodes]
        for key in (key for key in keys if key not in video and self._beside(key, 0) is not None):
            for number in range(self.num_episodes):
                paths += [path for path in self._beside(key, number) or [] if path is not None]
        return list(dict.fromkeys(paths))

    def camera_key(self, camera: str) -> str:
        """The camera's column; UserError where there is none."""
        if camera in self._missing_cameras:
            raise UserError(f"{self.root}: camera {camera!r} cannot be used: {self._missing_cameras[camera]}")
        if camera not in self._camera_keys:
            raise UserError(f"{self.root} has no camera {camera!r}; it has {', '.join(self.cameras) or 'none'}")
        return self._camera_keys[camera]

    def files(self, number: int) -> EpisodeFiles:
        """Where the episode at this position of `episodes` lies."""
        episode, start = self._episodes[number], int(self.episode_starts[number])
        videos: dict[str, tuple[Path, NDArray[np.float64]]] = {}
        images: dict[str, list[Path]] = {}
        for key in self._camera_keys.values():
            if key in episode.videos:
                videos[key] = episode.videos[key].path, self._pictures.times(key, episode)
            elif (beside := self._beside(key, number)) is not None:
                images[key] = [path for path in beside if path is not None]
        return EpisodeFiles(episode.data_path, self._rows[start : start + episode.length], videos, images)

    def images(self, camera: str, frames: ArrayLike) -> NDArray[np.uint8]:
        """uint8 [N, h, w, 3] of the frames given, in any order, repeats allowed; each is decoded once."""
        frames = self._check_frames(frames)
        key = self.camera_key(camera)
        height, width = self.image_shape(camera)
        images = np.empty((len(frames), height, width, 3), np.uint8)
        unique, first, inverse = np.unique(frames, return_index=True, return_inverse=True)
        for position, order in zip(unique.tolist(), first.tolist(), strict=True):
            frame = self._frame(position)
            try:
                images[order] = self._pictures.read(key, frame, (height, width))
            except OtherSizeError as error:
                raise BadEpisodeError(
                    f"{self.root}: episode {frame.episode.index}, frame {frame.position} of camera {camera!r} is "
                    f"{error.size[0]}x{error.size[1]}, but the first frame is {height}x{width}",
                    [frame.episode.index],
                ) from None
        if len(unique) < len(frames):
            images = images[first[inverse]]
        return images

    def look_at(self, cameras: Collection[str] | None) -> None:
        """Leaves those of the cameras out whose first picture is one of depth, and notes what info.json has otherwise
        than the pictures; None for all cameras. Their files need not have been looked at before.
        """
        for camera in [camera for camera in self._camera_keys if cameras is None or camera in cameras]:
            key = self._camera_keys[camera]
            try:
                kind = self._kind(key)
            except BadEpisodeError:
                continue  # said when it is read
            said = picture_size(self.features[key])
            if kind.is_depth:
                self._missing_cameras[camera] = f"it is a depth camera ({kind.mode}); only colours are used"
                self.notes.append(f"camera {camera!r} is not used: {self._missing_cameras[camera]}")
                del self._camera_keys[camera], self.features[key]
                continue
            if kind.note is not None:
                self.notes.append(f"camera {camera!r} {kind.note}")
            if said is None or said[:2] != (kind.height, kind.width):
                shape = "x".join(map(str, self.features[key].get("shape") or [])) or "that cannot be read"
                self.notes.append(
                    f"camera {camera!r}: meta/info.json has the shape {shape}, the pictures are {kind.height} high and "
                    f"{kind.width} wide: the pictures count"
                )
        self.cameras = tuple(self._camera_keys)

    def _frame(self, position: int) -> Frame:
        ordinal = int(self._ordinals[position])
        return Frame(self._episodes[ordinal], position - int(self.episode_starts[ordinal]), int(self._rows[position]))

    def _beside(self, key: str, number: int) -> list[Path | None] | None:
        return self._pictures.beside(key, self._episodes[number], self._rows[self._frames_of(number)])

    def _kind(self, key: str) -> Kind:
        if key not in self._kinds:
            self._kinds[key] = self._pictures.kind(key, self._frame(0))
        return self._kinds[key]

    def _check_frames(self, frames: ArrayLike) -> NDArray[np.int64]:
        positions = np.asarray(frames, dtype=np.int64)
        if positions.size and (positions.min() < 0 or positions.max() >= self.num_frames):
            raise IndexError(f"frames must lie in 0 ... {self.num_frames - 1}")
        return positions

    def _by_file(self) -> Iterator[tuple[Path, list[int]]]:
        """Data files with the positions (in self.episodes) of the episodes they hold."""
        order = sorted(range(self.num_episodes), key=lambda ordinal: self._episodes[ordinal].data_path)
        for path, group in groupby(order, key=lambda ordinal: self._episodes[ordinal].data_path):
            yield path, list(group)

    def _without_faults(self, episodes: list[Episode], skip: bool) -> list[Episode]:
        if not self.faults:
            return episodes
        if not skip:
            raise refusal(self.faults)
        bad = {fault.episode for fault in self.faults}
        good = [episode for episode in episodes if episode.index not in bad]
        if not good:
            raise nothing_left(self.faults)
        warnings.warn(f"{self.root}: {left_out(self.faults, len(episodes))}", stacklevel=3)
        return good

    def _read_column(self, key: str) -> NDArray[np.float32]:
        """A column that was not looked at when the dataset was opened."""
        columns = NumberColumns(self.features, [key])
        rows = {e.index: self._rows[self._frames_of(ordinal)] for ordinal, e in enumerate(self._episodes)}
        bad = columns.examine(self._episodes, rows)
        if bad:
            raise refusal(number_faults(bad))
        values = columns.take(key, self._episodes, rows)
        if values is None:
            for path in dict.fromkeys(episode.data_path for episode in self._episodes):
                read_columns(path, [key])  # says what is wrong with it
            raise UserError(f"{self.root}: column {key!r} is null everywhere")
        return values

    def _read_texts(self, key: str) -> list[str]:
        if self.features.get(key, {}).get("dtype") != "string":
            found = [name for name, feature in self.features.items() if feature.get("dtype") == "string"]
            raise UserError(f"{self.root} has no column of text {key!r}; it has {', '.join(['task', *found])}")
        texts = self.cells(key, np.arange(self.num_frames))
        other = next((text for text in texts if text is not None and not isinstance(text, str)), None)
        if other is not None:
            raise UserError(f"{self.root}: column {key!r} holds no text but {type(other).__name__}")
        return [text or "" for text in texts]

    def _frames_of(self, ordinal: int) -> NDArray[np.int64]:
        start = self.episode_starts[ordinal]
        return np.arange(start, start + self.episode_lengths[ordinal], dtype=np.int64)


def _select(root: Path, all_episodes: list[Episode], wanted: Sequence[int] | None) -> list[Episode]:
    if wanted is None:
        selected = all_episodes
    else:
        by_id = {episode.index: episode for episode in all_episodes}
        unknown = [index for index in wanted if index not in by_id]
        if unknown:
            raise UserError(
                f"{root} has no episode {unknown[0]}; it has {len(by_id)}, from {min(by_id)} to {max(by_id)}"
            )
        if len(set(wanted)) != len(wanted):
            raise UserError(f"the same episode is asked for twice: {list(wanted)}")
        selected = [by_id[index] for index in wanted]
    if not selected:
        raise UserError(f"{root}: no episodes to read")
    return selected
