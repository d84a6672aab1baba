"""meta/info.json: what a dataset says of itself, as far as it can be understood. Only `codebase_version` is a must."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any

from pizero.data.datasets.files.json_files import as_number, as_table, as_whole, read_object
from pizero.data.datasets.meta.features import Feature, read_features
from pizero.files import lies_inside
from pizero.types import UserError

INFO_PATH = "meta/info.json"
STATS_PATH = "meta/stats.json"
TASKS_PATH, TASKS_LINES = "meta/tasks.parquet", "meta/tasks.jsonl"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
DATA_PATH_V2 = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
VIDEO_PATH_V2 = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
CHUNK_SIZE = 1000
"""Files in one chunk folder."""
VERSION = "v3.0"
OLDER_VERSIONS = ("v2.1", "v2.0")
"""A data file, and a video per camera, for each episode; descriptions as JSON lines. Only their statistics differ."""
EPISODES_LINES, EPISODES_FOLDER = "meta/episodes.jsonl", "meta/episodes"
PLACES = ("chunk_index", "file_index", "episode_chunk", "episode_index", "video_key")
"""What a path can be made of."""


@dataclass(frozen=True)
class Info:
    """fps: None where it is not recorded. data_path, video_path: templates. totals: numbers of episodes and frames."""

    version: str
    fps: float | None
    robot_type: str
    features: dict[str, Feature]
    data_path: str
    video_path: str
    chunk_size: int
    totals: Mapping[str, int]

    @property
    def is_old(self) -> bool:
        """v2: a file for each episode."""
        return self.version in OLDER_VERSIONS


def read_info(root: Path, notes: list[str]) -> Info:
    """UserError where there is none, it cannot be read, is of an unknown version, or describes no columns."""
    if not (root / INFO_PATH).is_file():
        what = "is no LeRobot dataset: it has no meta/info.json" if root.is_dir() else "does not exist"
        raise UserError(f"{root} {what}; give the dataset's own folder")
    values = read_object(root / INFO_PATH)
    version = _version(root, values, notes)
    features = read_features(as_table(values.get("features")), notes)
    if not features:
        raise UserError(f"{root / INFO_PATH} lacks features: the columns and their kinds, an object")
    old = version in OLDER_VERSIONS
    totals = {key: as_whole(values.get(key)) for key in ("total_episodes", "total_frames")}
    size = as_whole(values.get("chunks_size"))
    return Info(
        version=version,
        fps=_fps(values.get("fps"), notes),
        robot_type=str(values.get("robot_type") or "unknown"),
        features=features,
        data_path=_template(root, values, "data_path", DATA_PATH_V2 if old else DATA_PATH),
        video_path=_template(root, values, "video_path", VIDEO_PATH_V2 if old else VIDEO_PATH),
        chunk_size=size if size is not None and size > 0 else CHUNK_SIZE,
        totals={key: count for key, count in totals.items() if count is not None},
    )


def fill(root: Path, template: str, names: Mapping[str, int | str]) -> Path:
    """The path that a template gives. UserError where it cannot be filled in, or leads out of the dataset."""
    try:
        path = root / template.format(**names)
    except (ValueError, LookupError, AttributeError, OverflowError) as error:
        raise UserError(f"{root / INFO_PATH}: the path {template!r} cannot be filled in ({error})") from None
    if not lies_inside(path, root):
        raise UserError(f"{root / INFO_PATH}: the path {template!r} leads to {path}, which is no file of the dataset")
    return path


def _version(root: Path, values: Mapping[str, Any], notes: list[str]) -> str:
    """The version that is recorded, unless the files are of the other kind."""
    said = values.get("codebase_version")
    number = re.match(r"v?(\d+)(?:\.(\d+))?", str(said).strip().lower())
    version = f"v{number[1]}.{number[2] or 0}" if number else ""
    lines, tables = (root / EPISODES_LINES).is_file(), any((root / EPISODES_FOLDER).rglob("*.parquet"))
    by_files = VERSION if tables and not lines else OLDER_VERSIONS[0] if lines and not tables else ""
    known = (VERSION, *OLDER_VERSIONS)
    near = "v3" if by_files == VERSION else "v2"
    if version in known and (not by_files or near == version[:2]):
        return version
    if by_files and (version in known or not version or version.startswith(f"{near}.")):
        notes.append(f"meta/info.json says codebase_version {said!r}, but the files are laid out as in {by_files}")
        return by_files
    if said is None:
        raise UserError(f"{root / INFO_PATH} lacks codebase_version; expected {', '.join(known)}")
    raise UserError(f"{root} is a LeRobot {said} dataset, which is not known; expected {', '.join(known)}")


def _fps(said: Any, notes: list[str]) -> float | None:
    fps = as_number(said)
    if fps is None or fps <= 0:
        return None
    if isinstance(said, str):
        notes.append(f"meta/info.json gives fps as text, {said!r}: read as {fps:g}")
    return fps


def _template(root: Path, values: Mapping[str, Any], key: str, default: str) -> str:
    said = values.get(key)
    if said is None or said == "":
        return default
    where = f"{root / INFO_PATH}: {key} is {said!r}"
    if not isinstance(said, str):
        raise UserError(f"{where}; expected text such as {default!r}")
    try:
        fields = [(name, kind or "") for _, name, kind, _ in Formatter().parse(said) if name is not None]
    except ValueError as error:
        raise UserError(f"{where}, which cannot be read ({error}); expected text such as {default!r}") from None
    for name, kind in fields:
        if name not in PLACES:
            raise UserError(f"{where}, but {{{name}}} is not known; a path can have {', '.join(PLACES)}")
        if not re.fullmatch(r"0?[1-9]?[ds]?", kind):
            raise UserError(f"{where}, but numbers are written as by {{{name}:03d}}, with at most 9 digits")
    return said.replace("\\", "/")
