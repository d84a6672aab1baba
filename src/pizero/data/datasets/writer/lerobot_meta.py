"""What a LeRobot v3.0 dataset says about itself: columns, and the files of `meta/`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pizero.data.datasets.files.parquet import ColumnType, TableWriter
from pizero.data.datasets.images.video import ENCODERS, VideoCodec
from pizero.data.datasets.meta.features import IMAGE_PREFIX
from pizero.data.datasets.meta.info import CHUNK_SIZE, DATA_PATH, INFO_PATH, STATS_PATH, TASKS_PATH, VERSION, VIDEO_PATH
from pizero.data.datasets.subtasks import PERSISTENT, STYLE
from pizero.data.datasets.writer.lerobot_files import DATA_FILE_MB, VIDEO_FILE_MB
from pizero.data.datasets.writer.lerobot_stats import Stats

INDEX_TYPES: Mapping[str, str] = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}


_TEXT = {"dtype": "string", "_type": "Value"}
_LANGUAGE = {
    "role": _TEXT, "content": _TEXT, "style": _TEXT, "timestamp": {"dtype": "float32", "_type": "Value"},
    "camera": _TEXT, "tool_calls": {"_type": "List", "feature": _TEXT},
}  # fmt: skip


def language_rows(texts: Sequence[str], fps: float) -> list[dict[str, Any]]:
    """A cell of `language_persistent` for an episode with these subtasks [T]: a row wherever the text changes."""
    changes = [frame for frame, text in enumerate(texts) if text != (texts[frame - 1] if frame else "")]
    return [
        {"role": "assistant", "content": texts[frame], "style": STYLE, "timestamp": frame / fps, "camera": None,
         "tool_calls": None} for frame in changes
    ]  # fmt: skip


@dataclass(frozen=True)
class Recording:
    """The fixed facts of a dataset being written. `codec` None stores PNG frames; `cameras` name -> (height, width).

    subtasks: whether it has LeRobot's column `language_persistent`.
    """

    fps: float
    robot_type: str
    vectors: Mapping[str, tuple[str, ...]]
    cameras: Mapping[str, tuple[int, int]]
    codec: VideoCodec | None
    subtasks: bool = False

    @property
    def image_keys(self) -> list[str]:
        return [IMAGE_PREFIX + camera for camera in self.cameras]

    @property
    def number_keys(self) -> list[str]:
        return [*self.vectors, *INDEX_TYPES]

    def column_types(self) -> dict[str, ColumnType]:
        """The columns of the data files. One dimension is a number, not a list of one: LeRobot's own form."""
        types: dict[str, ColumnType] = {} if self.codec else dict.fromkeys(self.image_keys, "image")
        types |= {key: len(names) if len(names) != 1 else "float32" for key, names in self.vectors.items()}
        return {**types, **INDEX_TYPES, **({PERSISTENT: "language"} if self.subtasks else {})}

    def huggingface_metadata(self) -> dict[str, str]:
        """The schema note by which the `datasets` library knows images from plain structures."""
        features: dict[str, Any] = {}
        for key, kind in self.column_types().items():
            if kind == "image":
                features[key] = {"_type": "Image"}
            elif kind == "language":
                features[key] = {"_type": "List", "feature": _LANGUAGE}
            elif isinstance(kind, int):
                features[key] = {"feature": {"dtype": "float32", "_type": "Value"}, "length": kind, "_type": "List"}
            else:
                features[key] = {"dtype": kind, "_type": "Value"}
        return {"huggingface": json.dumps({"info": {"features": features}})}

    def features(self) -> dict[str, Any]:
        """The features of info.json."""
        features: dict[str, Any] = {}
        for key, (height, width) in zip(self.image_keys, self.cameras.values(), strict=True):
            features[key] = {
                "dtype": "video" if self.codec else "image",
                "shape": [height, width, 3],
                "names": ["height", "width", "channels"],
            }
            if self.codec:
                features[key]["info"] = self._video_info(self.codec, height, width)
        for key, names in self.vectors.items():
            features[key] = {"dtype": "float32", "shape": [len(names)], "names": list(names)}
        for key, kind in INDEX_TYPES.items():
            features[key] = {"dtype": kind, "shape": [1], "names": None}
        if self.subtasks:
            features[PERSISTENT] = {"dtype": "language", "shape": [1], "names": None}
        return features

    def _video_info(self, codec: VideoCodec, height: int, width: int) -> dict[str, Any]:
        options = ENCODERS[codec][1]
        preset = options["preset"]
        return {
            "video.height": height,
            "video.width": width,
            "video.codec": codec,
            "video.pix_fmt": "yuv420p",
            "video.fps": _whole(self.fps),
            "video.channels": 3,
            "has_audio": False,
            "video.g": int(options["g"]),
            "video.crf": int(options["crf"]),
            "video.preset": int(preset) if preset.isdigit() else preset,
            "video.fast_decode": 0,
            "video.video_backend": "pyav",
            "video.extra_options": {},
            "is_depth_map": False,
        }


def write_meta(
    root: Path, recording: Recording, tasks: Sequence[str], stats: Mapping[str, Stats], episodes: int, frames: int
) -> None:
    """Writes info.json, stats.json and tasks.parquet."""
    info = {
        "codebase_version": VERSION,
        "fps": _whole(recording.fps),
        "features": recording.features(),
        "total_episodes": episodes,
        "total_frames": frames,
        "total_tasks": len(tasks),
        "chunks_size": CHUNK_SIZE,
        "data_files_size_in_mb": DATA_FILE_MB,
        "video_files_size_in_mb": VIDEO_FILE_MB,
        "data_path": DATA_PATH,
        "video_path": VIDEO_PATH if recording.codec else None,
        "robot_type": recording.robot_type,
        "splits": {"train": f"0:{episodes}"},
    }
    write_description(root, info, tasks, stats)


def write_description(root: Path, info: Mapping[str, Any], tasks: Sequence[str], stats: Mapping[str, Stats]) -> None:
    """The same with an info.json that is known."""
    _write_json(root / INFO_PATH, info)
    values = {key: {name: value.tolist() for name, value in entry.items()} for key, entry in stats.items()}
    _write_json(root / STATS_PATH, values)
    columns: dict[str, ColumnType] = {"task_index": "int64", "task": "string"}
    with TableWriter(root / TASKS_PATH, columns, {"pandas": _pandas_metadata()}) as table:
        table.write({"task_index": list(range(len(tasks))), "task": list(tasks)})


def _pandas_metadata() -> str:
    """LeRobot reads the tasks with pandas and expects the text to be the index."""
    names = (("task_index", "int64", "int64"), ("task", "unicode", "object"))
    columns = [
        {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy_kind, "metadata": None}
        for name, kind, numpy_kind in names
    ]
    return json.dumps({"index_columns": ["task"], "column_indexes": [], "columns": columns, "attributes": {}})


def _whole(fps: float) -> float:
    """LeRobot writes whole rates as integers."""
    return int(fps) if float(fps).is_integer() else fps


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=4, ensure_ascii=False), encoding="utf-8")
