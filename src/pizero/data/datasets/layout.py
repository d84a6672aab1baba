"""Where the parts of a LeRobot dataset lie on disk. All that depends on the format's version is here."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from pizero.data.datasets.features import Feature
from pizero.data.datasets.parquet import column_names, read_values
from pizero.types import UserError

INFO_PATH = "meta/info.json"
STATS_PATH = "meta/stats.json"
TASKS_PATH = "meta/tasks.parquet"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
IMAGE_PREFIX = "observation.images."

CHUNK_SIZE = 1000
"""Files in one chunk folder."""
VERSION = "v3.0"
OLDER_VERSIONS = ("v2.1", "v2.0")
"""A data file, and a video per camera, for each episode; descriptions as JSON lines. Only their statistics differ."""
EPISODES_LINES, TASKS_LINES = "meta/episodes.jsonl", "meta/tasks.jsonl"
DATA_PATH_V2 = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
VIDEO_PATH_V2 = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"


class BadEpisodeError(UserError):
    """A fault of the files that concerns single episodes; `episodes` are their ids."""

    def __init__(self, message: str, episodes: Iterable[int]) -> None:
        super().__init__(message)
        self.episodes = tuple(episodes)


@dataclass(frozen=True)
class VideoSlice:
    """Where an episode's frames of one camera begin and end, in seconds; end is None where `meta/` does not say it."""

    path: Path
    start: float
    end: float | None = None


@dataclass(frozen=True)
class Episode:
    index: int
    length: int
    data_path: Path
    videos: Mapping[str, VideoSlice] = field(default_factory=dict[str, VideoSlice])


@dataclass(frozen=True)
class Layout:
    """A dataset's description, whatever the version. `tasks[i]` is the text of task_index i.

    notes: what was assumed where `meta/` is incomplete or contradicts itself, a line each.
    """

    root: Path
    version: str
    fps: float
    robot_type: str
    features: dict[str, Feature]
    tasks: list[str]
    episodes: list[Episode]
    stats: dict[str, Any]
    notes: list[str] = field(default_factory=list[str])


def camera_keys(features: Mapping[str, Feature]) -> dict[str, str]:
    """The columns that are cameras, by the camera's name."""
    return {
        key.removeprefix(IMAGE_PREFIX): key
        for key, feature in features.items()
        if feature.get("dtype") in ("video", "image")
    }


def read_layout(root: Path) -> Layout:
    """Reads `meta/`. Raises UserError when it is missing, damaged, of another version, or contradicts itself."""
    if not (root / INFO_PATH).is_file():
        what = "is no LeRobot dataset: it has no meta/info.json" if root.is_dir() else "does not exist"
        raise UserError(f"{root} {what}; give the dataset's own folder")
    info = _read_json(root / INFO_PATH)
    missing = [key for key in ("codebase_version", "fps", "features") if key not in info]
    if missing:
        raise UserError(f"{root / INFO_PATH} lacks {', '.join(missing)}")
    version = str(info["codebase_version"])
    readers = {VERSION: _read_v30, **dict.fromkeys(OLDER_VERSIONS, _read_v2)}
    if version not in readers:
        raise UserError(f"{root} is a LeRobot {version} dataset, which is not known; expected {', '.join(readers)}")
    return readers[version](root, info)


def _read_v30(root: Path, info: dict[str, Any]) -> Layout:
    features: dict[str, Feature] = info["features"]
    video_keys = [key for key, feature in features.items() if feature.get("dtype") == "video"]
    stats_path = root / STATS_PATH
    return Layout(
        root=root,
        version=VERSION,
        fps=float(info["fps"]),
        robot_type=str(info.get("robot_type") or "unknown"),
        features=features,
        tasks=_read_tasks(root / TASKS_PATH),
        episodes=_read_episodes(root, info, video_keys),
        stats=_read_json(stats_path) if stats_path.is_file() else {},
    )


def _read_v2(root: Path, info: dict[str, Any]) -> Layout:
    features: dict[str, Feature] = info["features"]
    video_keys = [key for key, feature in features.items() if feature.get("dtype") == "video"]
    size = int(info.get("chunks_size") or CHUNK_SIZE)
    data_path, video_path = str(info.get("data_path") or DATA_PATH_V2), str(info.get("video_path") or VIDEO_PATH_V2)
    episodes: list[Episode] = []
    for line in _read_lines(root / EPISODES_LINES, ("episode_index", "length")):
        index = int(line["episode_index"])
        names = {"episode_index": index, "episode_chunk": index // size}
        videos = {key: VideoSlice(root / video_path.format(video_key=key, **names), 0.0) for key in video_keys}
        episodes.append(Episode(index, int(line["length"]), root / data_path.format(**names), videos))
    episodes.sort(key=lambda episode: episode.index)
    _check_totals(root, info, episodes)
    lines = _read_lines(root / TASKS_LINES, ("task_index", "task"))
    stats_path = root / STATS_PATH  # of v2.0; v2.1 has those of single episodes
    return Layout(
        root=root,
        version=str(info["codebase_version"]),
        fps=float(info["fps"]),
        robot_type=str(info.get("robot_type") or "unknown"),
        features=features,
        tasks=_in_order(root / TASKS_LINES, {int(line["task_index"]): str(line["task"]) for line in lines}),
        episodes=episodes,
        stats=_read_json(stats_path) if stats_path.is_file() else {},
    )


def _read_lines(path: Path, keys: tuple[str, ...]) -> list[dict[str, Any]]:
    """JSON lines, each an object with these keys."""
    found: list[dict[str, Any]] = []
    try:
        for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            value: Any = json.loads(text) if text.strip() else None
            if value is not None and (
                not isinstance(value, dict) or not set(keys) <= set(cast("dict[str, Any]", value))
            ):
                raise UserError(f"{path}: line {number} has not {' and '.join(keys)}; download the dataset again")
            if value is not None:
                found.append(cast("dict[str, Any]", value))
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is no readable file of JSON lines ({' '.join(str(error).split())})") from None
    return found


def _read_tasks(path: Path) -> list[str]:
    # The text is the table's pandas index, which some writers left unnamed.
    names = column_names(path)
    text_column = "task" if "task" in names else "__index_level_0__"
    columns = read_values(path, ["task_index", text_column])
    pairs = zip(columns["task_index"], columns[text_column], strict=True)
    return _in_order(path, {int(index): str(text) for index, text in pairs})


def _in_order(path: Path, tasks: Mapping[int, str]) -> list[str]:
    if sorted(tasks) != list(range(len(tasks))):
        raise UserError(f"{path}: task_index is not 0, 1, ... {len(tasks) - 1} but {sorted(tasks)}")
    return [tasks[index] for index in range(len(tasks))]


def _read_episodes(root: Path, info: dict[str, Any], video_keys: list[str]) -> list[Episode]:
    paths = sorted((root / "meta/episodes").glob("*/*.parquet"))
    if not paths:
        raise UserError(f"{root / 'meta/episodes'} holds no parquet file; copy or download the dataset again")
    columns = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    for key in video_keys:
        columns += [f"videos/{key}/{name}" for name in ("chunk_index", "file_index", "from_timestamp")]
    data_path = str(info.get("data_path") or DATA_PATH)
    video_path = str(info.get("video_path") or VIDEO_PATH)
    episodes: list[Episode] = []
    for path in paths:
        ends = [f"videos/{key}/to_timestamp" for key in video_keys]
        table = read_values(path, [*columns, *(name for name in ends if name in column_names(path))])
        for row in range(len(table["length"])):
            videos = {key: _video_slice(root, video_path, table, key, row) for key in video_keys}
            file = data_path.format(
                chunk_index=table["data/chunk_index"][row], file_index=table["data/file_index"][row]
            )
            index, length = int(table["episode_index"][row]), int(table["length"][row])
            episodes.append(Episode(index, length, root / file, videos))
    episodes.sort(key=lambda episode: episode.index)
    _check_totals(root, info, episodes)
    return episodes


def _video_slice(root: Path, template: str, table: dict[str, list[Any]], key: str, row: int) -> VideoSlice:
    chunk, file = table[f"videos/{key}/chunk_index"][row], table[f"videos/{key}/file_index"][row]
    path = root / template.format(video_key=key, chunk_index=chunk, file_index=file)
    end = table.get(f"videos/{key}/to_timestamp", [None] * (row + 1))[row]
    start = float(table[f"videos/{key}/from_timestamp"][row])
    return VideoSlice(path, start, None if end is None or math.isnan(end) else float(end))


def _check_totals(root: Path, info: dict[str, Any], episodes: list[Episode]) -> None:
    found = {"total_episodes": len(episodes), "total_frames": sum(episode.length for episode in episodes)}
    for key, count in found.items():
        stated = info.get(key, count)
        if stated != count:
            raise UserError(
                f"{root / INFO_PATH} says {key} {stated}, but meta/episodes lists {count}; "
                "the copy is incomplete: download the dataset again"
            )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no readable JSON file ({' '.join(str(error).split())})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object")
    return cast("dict[str, Any]", value)


def episodes_text(indices: Iterable[int], shown: int = 6) -> str:
    """ "episode 3", "episodes 1, 2 and 40 more"."""
    found = sorted(indices)
    more = f" and {len(found) - shown} more" if len(found) > shown else ""
    return f"episode{'s' if len(found) > 1 else ''} {', '.join(map(str, found[:shown]))}{more}"
