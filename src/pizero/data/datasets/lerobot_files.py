"""The files of a LeRobot v3.0 dataset that grow while it is written; each starts a new one at a size limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pizero.data.datasets.layout import CHUNK_SIZE, DATA_PATH, EPISODES_PATH, VIDEO_PATH
from pizero.data.datasets.lerobot_stats import STAT_NAMES
from pizero.data.datasets.parquet import ColumnType, TableWriter
from pizero.data.datasets.video import EpisodeEncoder, VideoCodec, VideoFileWriter

DATA_FILE_MB = 100
VIDEO_FILE_MB = 200
ROW_GROUP = 128  # frames; small groups make a random frame cheap to read
_EPISODE_ROWS = 200  # rows of episode metadata held back before they are written


@dataclass
class _FileNumber:
    """The chunk folder and number of the file being written."""

    chunk: int = 0
    file: int = 0

    def advance(self) -> None:
        self.file += 1
        if self.file == CHUNK_SIZE:
            self.chunk, self.file = self.chunk + 1, 0

    def path(self, root: Path, template: str, **names: str) -> Path:
        return root / template.format(chunk_index=self.chunk, file_index=self.file, **names)


class DataFiles:
    """Frames in parquet files; an episode never spans two."""

    def __init__(self, root: Path, types: Mapping[str, ColumnType], metadata: Mapping[str, str]) -> None:
        self.types = dict(types)
        self._root = root
        self._metadata = metadata
        self._number = _FileNumber()
        self._table: TableWriter | None = None
        self._bytes = 0

    def append(self, columns: Mapping[str, Any], length: int) -> dict[str, int]:
        """Writes one episode, images as encoded bytes; returns its columns of the episode table."""
        size = sum(_num_bytes(values) for values in columns.values())
        if self._table is not None and self._bytes + size > DATA_FILE_MB * 2**20:
            self.close()
            self._number.advance()
        if self._table is None:
            self._table = TableWriter(self._number.path(self._root, DATA_PATH), self.types, self._metadata)
            self._bytes = 0
        images = {key: _image_cells(columns[key]) for key, kind in self.types.items() if kind == "image"}
        rows = {**columns, **images}
        for start in range(0, length, ROW_GROUP):
            self._table.write({key: values[start : start + ROW_GROUP] for key, values in rows.items()})
        self._bytes += size
        return {"data/chunk_index": self._number.chunk, "data/file_index": self._number.file}

    def close(self) -> None:
        if self._table is not None:
            self._table.close()
            self._table = None


class CameraVideo:
    """One camera's mp4 files. Frames are encoded as they come and join a file when their episode is saved."""

    def __init__(self, root: Path, key: str, codec: VideoCodec, fps: float, size: tuple[int, int]) -> None:
        self._root = root
        self._key = key
        self._encoding = (codec, fps, *size)
        self._fps = fps
        self._number = _FileNumber()
        self._file: VideoFileWriter | None = None
        self._episode: EpisodeEncoder | None = None

    def discard_episode(self) -> None:
        self._episode = None

    def add(self, image: NDArray[np.uint8]) -> None:
        if self._episode is None:
            self._episode = EpisodeEncoder(*self._encoding)
        self._episode.add(image)

    def save_episode(self) -> dict[str, Any]:
        """Writes the frames added; returns the episode's columns of the episode table."""
        assert self._episode is not None
        packets = self._episode.finish()
        self._episode = None
        size = sum(packet.size for packet in packets)
        if self._file is not None and self._file.num_bytes + size > VIDEO_FILE_MB * 2**20:
            self.close()
            self._number.advance()
        if self._file is None:
            path = self._number.path(self._root, VIDEO_PATH, video_key=self._key)
            self._file = VideoFileWriter(path, *self._encoding)
        start = self._file.num_frames
        self._file.append(packets)
        values = {
            "chunk_index": self._number.chunk,
            "file_index": self._number.file,
            "from_timestamp": start / self._fps,
            "to_timestamp": self._file.num_frames / self._fps,
        }
        return {f"videos/{self._key}/{name}": value for name, value in values.items()}

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class EpisodeTable:
    """meta/episodes: one row per episode with its length, places and statistics."""

    def __init__(self, root: Path, image_keys: Sequence[str], number_keys: Sequence[str], video: bool) -> None:
        path = _FileNumber().path(root, EPISODES_PATH)
        self._table = TableWriter(path, _episode_columns(image_keys, number_keys, video))
        self._rows: list[dict[str, Any]] = []

    def append(self, row: Mapping[str, Any]) -> None:
        self._rows.append({**row, "meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0})
        if len(self._rows) == _EPISODE_ROWS:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._table.close()

    def _flush(self) -> None:
        if self._rows:
            self._table.write({key: [row[key] for row in self._rows] for key in self._rows[0]})
            self._rows = []


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
