"""Reads `meta/` of a LeRobot dataset of any version, also where it is incomplete or contradicts itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from pizero.data.datasets.files.json_files import as_table, is_there, read_object
from pizero.data.datasets.files.numbers import read_columns
from pizero.data.datasets.files.parquet import column_names, count_rows
from pizero.data.datasets.files.places import find_files
from pizero.data.datasets.files.rows import settle
from pizero.data.datasets.meta.episode_table import Described, read_episodes
from pizero.data.datasets.meta.features import Feature, camera_keys, depth_cameras
from pizero.data.datasets.meta.frame_rate import find_frame_rate
from pizero.data.datasets.meta.info import STATS_PATH, Info, read_info
from pizero.data.datasets.meta.layout import Episode, Layout, VideoSlice, episodes_text
from pizero.data.datasets.meta.tasks import read_tasks
from pizero.types import UserError

Files = tuple[Path, dict[str, Path]]
"""Of an episode: its data file, its video files by column."""


def read_layout(root: Path) -> Layout:
    """Reads `meta/`. What is incomplete is completed from the data, or skipped, with a note.

    Raises UserError where that is not possible: no info.json, no table of episodes, another version.
    """
    notes: list[str] = []
    info = read_info(root, notes)
    cameras = camera_keys(info.features)
    videos = [key for key in cameras.values() if info.features[key]["dtype"] == "video"]
    described = read_episodes(root, info, videos, notes)
    found = find_files(root, info, described, notes)
    described = _with_lengths(described, found, notes)
    missing = {**_missing_cameras(root, info.features, found), **depth_cameras(info.features)}
    notes += [f"camera {camera!r} is not used: {why}" for camera, why in missing.items()]
    features = {key: value for key, value in info.features.items() if key not in {cameras[name] for name in missing}}
    fps = info.fps or find_frame_rate(root, info.features, [data for data, _ in found], notes)
    episodes = _with_starts(described, found, features, fps, notes)
    episodes = _without_empty(root, settle(root, episodes, not info.is_old, notes), notes)
    interrupted = _compare_totals(info, episodes, notes)
    tasks, ids = read_tasks(root, described, notes)
    return Layout(
        root=root,
        version=info.version,
        fps=fps,
        robot_type=info.robot_type,
        features=features,
        tasks=tasks,
        task_ids=ids,
        episodes=episodes,
        stats=_read_stats(root, notes),
        missing_cameras=missing,
        notes=notes,
        interrupted=interrupted,
    )


def _with_lengths(episodes: Sequence[Described], found: Sequence[Files], notes: list[str]) -> list[Described]:
    """Lengths that are not recorded, counted in the data files."""
    counted: list[int] = []
    whole: list[Described] = []
    for episode, (data, _) in zip(episodes, found, strict=True):
        if episode.length is None:
            counted.append(episode.index)
            episode = replace(episode, length=_count(data, episode.index))
        whole.append(episode)
    if counted:
        notes.append(f"meta/ does not say the length of {episodes_text(counted)}: the rows are counted")
    return whole


def _count(path: Path, index: int) -> int:
    if not is_there(path):
        return 0
    if "episode_index" not in column_names(path):
        return count_rows(path)
    return int((read_columns(path, ["episode_index"])["episode_index"].scalars() == index).sum())


def _missing_cameras(root: Path, features: Mapping[str, Feature], found: Sequence[Files]) -> dict[str, str]:
    """Why, by the camera's name, where there is not one file of a camera that info.json has, but some of others.

    Without any of all cameras the copy is incomplete, which is a fault of its episodes.
    """
    missing: dict[str, str] = {}
    for camera, key in camera_keys(features).items():
        if features[key]["dtype"] == "video":
            paths = list(dict.fromkeys(videos[key] for _, videos in found if key in videos))
            if not any(is_there(path) for path in paths):
                first = f", the first would be {paths[0].relative_to(root)}" if paths else ""
                missing[camera] = f"meta/info.json has it, but no file of it is there{first}"
        else:
            data = next((path for path, _ in found if is_there(path)), None)
            if data is not None and not _has_column(data, key) and not (root / "images" / key).is_dir():
                missing[camera] = f"meta/info.json has it, but {data.relative_to(root)} has no column {key!r}"
    return missing if len(missing) < len(camera_keys(features)) else {}


def _has_column(path: Path, key: str) -> bool:
    try:
        return key in column_names(path)
    except UserError:
        return True  # the file's own fault is told when it is read


def _with_starts(
    described: Sequence[Described],
    found: Sequence[Files],
    features: Mapping[str, Feature],
    fps: float,
    notes: list[str],
) -> list[Episode]:
    """The episodes; where a video's part has no start, it follows the part before in its file."""
    episodes: list[Episode] = []
    ends: dict[Path, float] = {}
    guessed: set[int] = set()
    for entry, (data, paths) in zip(described, found, strict=True):
        length = entry.length or 0
        videos: dict[str, VideoSlice] = {}
        for key, clip in entry.clips.items():
            if key not in features:
                continue
            start = clip.start
            if start is None:
                start = ends.get(paths[key], 0.0)
                guessed.add(entry.index)
            ends[paths[key]] = start + length / fps if clip.end is None else clip.end
            videos[key] = VideoSlice(paths[key], start, clip.end)
        episodes.append(Episode(entry.index, length, data, videos, entry.tasks))
    if guessed:
        notes.append(
            f"meta/episodes does not say where the video of {episodes_text(guessed)} starts: after the one before"
        )
    return episodes


def _without_empty(root: Path, episodes: list[Episode], notes: list[str]) -> list[Episode]:
    empty = [episode.index for episode in episodes if not episode.length]
    if empty:
        notes.append(f"{episodes_text(empty)} {'are' if len(empty) > 1 else 'is'} empty and skipped")
    whole = [episode for episode in episodes if episode.length]
    if not whole:
        raise UserError(f"{root}: no episode has a frame; record it again, or copy the whole dataset")
    return whole


def _compare_totals(info: Info, episodes: Sequence[Episode], notes: list[str]) -> bool:
    """Whether episodes are announced that come after those that there are."""
    found = {"total_episodes": len(episodes), "total_frames": sum(episode.length for episode in episodes)}
    lies = [key for key, count in found.items() if info.totals.get(key, count) != count]
    if not lies:
        return False
    said = " and ".join(f"{key} {info.totals[key]}" for key in lies)
    listed = " and ".join(str(found[key]) for key in lies)
    more = any(info.totals[key] > found[key] for key in lies)
    after = info.totals.get("total_episodes", 0) > max(episode.index for episode in episodes) + 1
    why = " (the recording was interrupted, or the copy is incomplete)" if more else ""
    notes.append(f"meta/info.json says {said}, but meta/ lists {listed}{why}: what is there is used")
    return after


def _read_stats(root: Path, notes: list[str]) -> dict[str, Any]:
    """Of v2.0 and v3.0; v2.1 has those of single episodes. What is no number is skipped."""
    path = root / STATS_PATH
    if not path.is_file():
        return {}
    try:
        said = read_object(path)
    except UserError as error:
        notes.append(f"{error}; `pizero` does not need it")
        return {}
    stats: dict[str, Any] = {}
    for key, entry in said.items():
        values = {name: value for name, value in as_table(entry).items() if _is_numbers(value)}
        if values:
            stats[key] = values
    return stats


def _is_numbers(value: Any) -> bool:
    try:
        array = np.asarray(cast("object", value))
    except ValueError:  # rows of different lengths
        return False
    return array.dtype.kind in "biuf" and array.size > 0
