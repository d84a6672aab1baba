"""The files of a LeRobot v3.0 dataset that grow while it is written; each starts a new one at a size limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pizero.data.datasets.files.parquet import ColumnType, TableWriter, keep_row_groups
from pizero.data.datasets.images.video import EpisodeEncoder, VideoCodec, VideoFileWriter, keep_frames
from pizero.data.datasets.meta.info import CHUNK_SIZE, DATA_PATH, EPISODES_PATH, VIDEO_PATH
from pizero.data.datasets.writer.lerobot_stats import STAT_NAMES

DATA_FILE_MB = 100
VIDEO_FILE_MB = 200
ROW_GROUP = 128  # frames; small groups make a random frame cheap to read
_EPISODE_ROWS = 200  # rows of episode metadata held back before they are written


Mark = tuple[int, ...]
"""How far a part was written before an episode."""


@dataclass
class _FileNumber:
    """The chunk folder and number of the file being written."""

    chunk: int = 0
    file: int = 0

    def advance(self) -> None:
        self.file += 1
        if self.file == CHUNK_SIZE:
            self.chunk, self.file = self.chunk + 1, 0

    @property
    def total(self) -> int:
        """Files before this one."""
        return self.chunk * CHUNK_SIZE + self.file

    def path(self, root: Path, template: str, **names: str) -> Path:
        return root / template.format(chunk_index=self.chunk, file_index=self.file, **names)


class DataFiles:
    """Frames in parquet files; an episode never spans two. apart: each episode has a file of its own, which is whole
    when `append` returns.
    """

    def __init__(
        self, root: Path, types: Mapping[str, ColumnType], metadata: Mapping[str, str], apart: bool = False
    ) -> None:
        self.types = dict(types)
        self._root, self._metadata, self._apart = root, metadata, apart
        self._number = _FileNumber()
        self._table: TableWriter | None = None
        self._bytes = 0.0  # in the file of this number
        self._groups = 0  # row groups begun in it

    def append(self, columns: Mapping[str, Any], length: int) -> dict[str, int]:
        """Writes one episode, images as encoded bytes; returns its columns of the episode table."""
        size = sum(_num_bytes(values) for values in columns.values())
        if self._bytes and (self._apart or self._bytes + size > DATA_FILE_MB * 2**20):
            self.close()
            self._number.advance()
            self._bytes, self._groups = 0.0, 0
        if self._table is None:
            self._table = TableWriter(self._path, self.types, self._metadata)
        images = {key: _image_cells(columns[key]) for key, kind in self.types.items() if kind == "image"}
        rows = {**columns, **images}
        for start in range(0, length, ROW_GROUP):
            self._groups += 1
            self._table.write({key: values[start : start + ROW_GROUP] for key, values in rows.items()})
        if self._apart:
            self.close()
        self._bytes += size
        return {"data/chunk_index": self._number.chunk, "data/file_index": self._number.file}

    def mark(self) -> Mark:
        return self._number.total, self._groups, self._table is not None

    def take_back(self, mark: Mark) -> None:
        """Removes what was written since `mark` was taken. Raises where an earlier episode is hit too."""
        if self.mark() == mark:
            return
        self._groups = mark[1] if self._number.total == mark[0] else 0
        self._bytes = _close_damaged(self, self._path, self._groups)
        if self._groups:
            keep_row_groups(self._path, self._groups)

    def close(self) -> None:
        table, self._table = self._table, None
        if table is not None:
            table.close()

    @property
    def _path(self) -> Path:
        return self._number.path(self._root, DATA_PATH)


class CameraVideo:
    """One camera's mp4 files. Frames are encoded as they come and join a file when their episode is saved.

    apart: each episode has a file of its own, which is whole when `save_episode` returns.
    """

    def __init__(
        self, root: Path, key: str, codec: VideoCodec, fps: float, size: tuple[int, int], apart: bool = False
    ) -> None:
        self._root, self._key, self._apart = root, key, apart
        self._encoding = (codec, fps, *size)
        self._fps = fps
        self._number = _FileNumber()
        self._file: VideoFileWriter | None = None
        self._bytes = 0.0  # in the file of this number
        self._episodes = 0  # begun in it
        self._episode: EpisodeEncoder | None = None

    def discard_episode(self) -> None:
        self._episode = None

    def add(self, image: NDArray[np.uint8]) -> None:
        if self._episode is None:
            self._episode = EpisodeEncoder(*self._encoding)
        self._episode.add(image)

    def save_episode(self) -> dict[str, Any]:
        """Writes the frames added; returns the episode's columns of the episode table."""
        episode, self._episode = self._episode, None
        assert episode is not None
        packets = episode.finish()
        size = sum(packet.size for packet in packets)
        if self._bytes and (self._apart or self._bytes + size > VIDEO_FILE_MB * 2**20):
            self.close()
            self._number.advance()
            self._bytes, self._episodes = 0.0, 0
        start = self._frames
        self._episodes += 1
        if self._file is None:
            self._file = VideoFileWriter(self._path, *self._encoding)
        self._file.append(packets)
        values = {
            "chunk_index": self._number.chunk,
            "file_index": self._number.file,
            "from_timestamp": start / self._fps,
            "to_timestamp": self._file.num_frames / self._fps,
        }
        if self._apart:
            self.close()
        self._bytes += size
        return {f"videos/{self._key}/{name}": value for name, value in values.items()}

    def mark(self) -> Mark:
        return self._number.total, self._episodes, self._frames, self._file is not None

    def take_back(self, mark: Mark) -> None:
        """Removes what was written since `mark` was taken. Raises where an earlier episode is hit too."""
        self._episode = None
        if self.mark() == mark:
            return
        self._episodes, frames = mark[1:3] if self._number.total == mark[0] else (0, 0)
        self._bytes = _close_damaged(self, self._path, self._episodes)
        if self._episodes:
            keep_frames(self._path, frames)

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()

    @property
    def _frames(self) -> int:
        return self._file.num_frames if self._file is not None else 0

    @property
    def _path(self) -> Path:
        return self._number.path(self._root, VIDEO_PATH, video_key=self._key)


def _close_damaged(file: DataFiles | CameraVideo, path: Path, kept: int) -> float:
    """Closes a file of which `kept` parts are of earlier episodes, and removes one of none. Returns its bytes for the
    next episode: after an earlier one, so many that another file begins.
    """
    if kept:
        file.close()
        return float("inf")
    with suppress(Exception):
        file.close()
    path.unlink(missing_ok=True)
    return 0.0


class EpisodeTable:
    """meta/episodes: one row per episode with its length, places and statistics. apart: in a file for each."""

    def __init__(
        self, root: Path, image_keys: Sequence[str], number_keys: Sequence[str], video: bool, apart: bool = False
    ) -> None:
        self._root, self._apart = root, apart
        self._columns = _episode_columns(image_keys, number_keys, video)
        self._number = _FileNumber()
        self._written = 0  # rows that are on disk or begun there
        self._table = None if apart else TableWriter(self._path, self._columns)
        self._rows: list[dict[str, Any]] = []

    def append(self, row: Mapping[str, Any]) -> None:
        if self._apart and self._written:
            self._number.advance()
        places = {"meta/episodes/chunk_index": self._number.chunk, "meta/episodes/file_index": self._number.file}
        self._rows.append({**row, **places})
        if self._table is None:
            with TableWriter(self._path, self._columns) as table:
                self._flush(table)
        elif len(self._rows) == _EPISODE_ROWS:
            self._flush(self._table)

    def mark(self) -> Mark:
        return self._number.total, self._written, len(self._rows)

    def take_back(self, mark: Mark) -> None:
        """Removes what was written since `mark` was taken. Raises where an earlier episode is hit too."""
        if self.mark() == mark:
            return
        self._rows = self._rows[: mark[2]]
        if self._apart:
            self._path.unlink(missing_ok=True)
            self._written = 0
        elif self._written != mark[1]:
            raise OSError(f"{self._path} is not whole")

    def close(self) -> None:
        if self._table is not None:
            self._flush(self._table)
            self._table.close()

    def _flush(self, table: TableWriter) -> None:
        if self._rows:
            self._written += len(self._rows)
            table.write({key: [row[key] for row in self._rows] for key in self._rows[0]})
            self._rows = []

    @property
    def _path(self) -> Path:
        return self._number.path(self._root, EPISODES_PATH)


def _episode_columns(image_keys: Sequence[str], number_keys: Sequence[str], video: bool) -> dict[str, ColumnType]:
    integers = ("data/chunk_index", "data/file_index", "dataset_from_index", "dataset_to_index")
    columns: dict[str, ColumnType] = {"episode_index": "int64", "tasks": "strings", "length": "int64"}
    columns |= dict.fromkeys(integers, "int64")
    for key in image_keys if video else ():
        columns |= {f"videos/{key}/chunk_index": "int64", f"videos/{key}/file_index": "int64"}
        columns |= {f"videos/{key}/from_timestamp": "float64", f"videos/{key}/to_timestamp": "float64"}
    for key in (*image_keys, *number_keys):
        values = "float64s3" if key in image_keys else "float64s"
        columns |= {f"stats/{key}/{name}": "int64s" if name == "count" else values for name in STAT_NAMES}
    return {**columns, "meta/episodes/chunk_index": "int64", "meta/episodes/file_index": "int64"}


def _num_bytes(values: Any) -> int:
    return values.nbytes if isinstance(values, np.ndarray) else sum(len(data) for data in values)


def _image_cells(encoded: Sequence[bytes]) -> list[dict[str, Any]]:
    return [{"bytes": data, "path": f"frame-{index:06d}.png"} for index, data in enumerate(encoded)]
