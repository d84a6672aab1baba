"""What a dataset says of its robot: of an opened one, or of its description alone, without data."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from pizero.data.datasets.files.json_files import as_number, as_table, as_whole, read_lines, read_object
from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.datasets.meta.features import Feature, camera_keys, depth_cameras, dimension_names, read_features
from pizero.types import UserError

Values: TypeAlias = NDArray[np.float64]
INDEX = ("timestamp", "frame_index", "episode_index", "index", "task_index")
"""Columns of the dataset and not of the robot."""
NO_NUMBERS = ("video", "image", "string")


@dataclass(frozen=True)
class Numbers:
    """How the dimensions [d] of a column are spread. low, high: 1 % and 99 % quantiles, or the extremes."""

    low: Values
    high: Values
    mean: Values
    std: Values


@dataclass(frozen=True)
class Description:
    """robot_type: empty where it is not said. fps: None where it is not known. tasks: None where nothing says them.

    features: of cameras and columns, by key. names, numbers, width: of a numeric column; `names` and `numbers` give
    None where nothing is known. dataset: None of a description without data.
    """

    root: Path
    robot_type: str
    fps: float | None
    cameras: tuple[str, ...]
    features: Mapping[str, Feature]
    tasks: tuple[str, ...] | None
    episodes: int
    frames: int
    names: Callable[[str], tuple[str, ...] | None]
    numbers: Callable[[str], Numbers | None]
    width: Callable[[str], int]
    dataset: LeRobotDataset | None = None

    @property
    def columns(self) -> list[str]:
        """Those that hold numbers of the robot."""
        return [
            key for key, feature in self.features.items() if feature.get("dtype") not in NO_NUMBERS and key not in INDEX
        ]


def of_dataset(dataset: LeRobotDataset) -> Description:
    def numbers(key: str) -> Numbers | None:
        values = dataset.column(key)
        values = values[np.isfinite(values).all(axis=1)].astype(np.float64)
        if not len(values):
            return None
        low, high = np.quantile(values, (0.01, 0.99), axis=0)
        return Numbers(low, high, values.mean(axis=0), values.std(axis=0))

    return Description(
        dataset.root, _robot_type(dataset.robot_type), dataset.fps, tuple(dataset.cameras), dataset.features,
        tuple(dataset.tasks), dataset.num_episodes, dataset.num_frames, dataset.names, numbers,
        lambda key: dataset.column(key).shape[1], dataset,
    )  # fmt: skip


def of_folder(root: Path) -> Description:
    """Of the dataset in a folder, with as much of its data as is there; a description alone is enough.

    UserError as for `of_description`.
    """
    for cameras in (None, ()):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of its faults `pizero check` and `train` say more
                return of_dataset(LeRobotDataset(root, cameras=cameras, skip_bad_episodes=True))
        except UserError:
            continue
    return of_description(root)


def of_description(root: Path) -> Description:
    """Of info.json, stats.json, episodes_stats.jsonl and tasks.jsonl in `root/meta`, or in `root` itself.

    UserError where there is no info.json with columns.
    """
    folder = next((path for path in (root / "meta", root) if (path / "info.json").is_file()), None)
    if folder is None:
        raise UserError(f"{root} is no LeRobot dataset: it has no meta/info.json; give the dataset's own folder")
    values = read_object(folder / "info.json")
    features = read_features(as_table(values.get("features")), [])
    if not features:
        raise UserError(f"{folder / 'info.json'} lacks features: the columns and their kinds, an object")
    flat = depth_cameras(features)
    cameras = tuple(name for name in camera_keys(features) if name not in flat)
    stats = _stats(folder)

    def width(key: str) -> int:
        shape = features[key]["shape"]
        return int(shape[-1]) if shape else 1

    def names(key: str) -> tuple[str, ...] | None:
        found = dimension_names(features[key].get("names"))
        return found if found and len(found) == width(key) else None

    def numbers(key: str) -> Numbers | None:
        found = stats.get(key)
        return found if found is not None and len(found.mean) == width(key) else None

    count = {key: as_whole(values.get(key)) or 0 for key in ("total_episodes", "total_frames")}
    return Description(
        root, _robot_type(values.get("robot_type")), as_number(values.get("fps")), cameras, features, _tasks(folder),
        count["total_episodes"], count["total_frames"], names, numbers, width,
    )  # fmt: skip


def _robot_type(said: Any) -> str:
    text = str(said or "").strip()
    return "" if text.lower() in ("unknown", "none") else text


def _tasks(folder: Path) -> tuple[str, ...] | None:
    if not (folder / "tasks.jsonl").is_file():
        return None
    texts = [line.get("task") for _, line in read_lines(folder / "tasks.jsonl", [])]
    return tuple(text for text in texts if isinstance(text, str))


def _stats(folder: Path) -> dict[str, Numbers]:
    """By column; of v2.1, whose episodes have statistics of their own, those of all episodes together."""
    if (folder / "stats.json").is_file():
        tables = [read_object(folder / "stats.json")]
    elif (folder / "episodes_stats.jsonl").is_file():
        tables = [as_table(line.get("stats")) for _, line in read_lines(folder / "episodes_stats.jsonl", [])]
    else:
        return {}
    found: dict[str, Numbers] = {}
    for key in {key for table in tables for key in table}:
        parts = [numbers for table in tables if (numbers := _numbers(as_table(table.get(key)))) is not None]
        if parts and len({len(part.mean) for part in parts}) == 1:
            found[key] = _together(parts)
    return found


def _numbers(entry: Mapping[str, Any]) -> Numbers | None:
    low, high, mean, std = (
        _array(entry, *names) for names in (("q01", "min"), ("q99", "max"), ("mean",), ("std",))
    )  # fmt: skip
    if low is None or high is None or mean is None or std is None or not low.shape == high.shape == mean.shape:
        return None
    return Numbers(low, high, mean, std) if std.shape == mean.shape else None


def _array(entry: Mapping[str, Any], *names: str) -> Values | None:
    for name in names:
        try:
            values = np.asarray(cast("object", entry.get(name)), dtype=np.float64)
        except (TypeError, ValueError):
            continue
        if values.ndim == 1 and values.size and np.isfinite(values).all():
            return values
    return None


def _together(parts: list[Numbers]) -> Numbers:
    """As if all parts had as many frames."""
    means, deviations = np.stack([part.mean for part in parts]), np.stack([part.std for part in parts])
    mean = means.mean(axis=0)
    std = np.sqrt((deviations**2 + (means - mean) ** 2).mean(axis=0))
    low, high = np.min([part.low for part in parts], axis=0), np.max([part.high for part in parts], axis=0)
    return Numbers(low, high, mean, std)
