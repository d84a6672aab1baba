"""Statistics of a dataset, written to a file."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pizero.checkpoints.files.remote import local_folder
from pizero.checkpoints.openpi.folder import save_stats
from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.datasets.meta.features import number_keys
from pizero.data.datasets.writer.lerobot_meta import INDEX_TYPES
from pizero.data.datasets.writer.lerobot_stats import numeric_stats
from pizero.data.embodiments import Embodiment, Key, generic, get_embodiment
from pizero.data.norm_stats import Mode, NormStats, compute_norm_stats, near_constant_dimensions
from pizero.data.robot_columns import action_names, robot_actions, robot_state, state_names
from pizero.files import write_bytes
from pizero.types import UserError
from pizero.workflows.own_robot import guess_robot
from pizero.workflows.progress import console, tell, tell_notes

StatsFormat: TypeAlias = Literal["pizero", "openpi", "lerobot"]


def norm_stats(
    root: Path,
    embodiment: str | None,
    mode: Mode,
    horizon: int,
    output: Path | None,
    skip_bad_episodes: bool = False,
    format: StatsFormat = "pizero",
) -> tuple[NormStats, Path, int, float]:
    """(statistics, file written, frames read, seconds). Without an embodiment, of the robot that the dataset describes;
    for LeRobot's file of the columns as they are.

    skip_bad_episodes: those that training skips as well; videos are looked at for this alone. format: of the
    file, see `pizero norm-stats`; only pizero's has a default place. UserError for a mixture.
    """
    robot = None if embodiment is None else get_embodiment(embodiment)
    if output is None and format != "pizero":
        raise UserError(f"format {format}: give --output, the {_NAMES[format]} to write")
    if format == "lerobot" and robot is not None and any(robot.relative_mask):
        raise UserError(
            f"LeRobot's stats.json is of the columns as they are, but actions of the {robot.name} embodiment are "
            "relative; leave --embodiment out, or choose another format"
        )
    if root.suffix == ".toml":
        raise UserError(f"{root} is no dataset; of a mixture give the datasets that it lists, one at a time")
    started = time.perf_counter()
    root = local_folder(root, "dataset")
    cameras = () if not skip_bad_episodes else None if robot is None else list(robot.cameras.values())
    columns = None if robot is None else robot.columns
    dataset = LeRobotDataset(root, cameras=cameras, columns=columns, skip_bad_episodes=skip_bad_episodes)
    tell_notes(dataset.notes)
    if robot is None and format != "lerobot":
        guess = guess_robot(dataset, needs_camera=False)
        robot = guess.robot
        console.print(f"relative to the state: {guess.relative_text}")
    stats = dataset_norm_stats(dataset, robot, mode, horizon)
    columns = robot or generic({})
    for warning in near_constant_dimensions(stats, state_names(dataset, columns), action_names(dataset, columns)):
        tell("warning", warning)
    path = output or root / "meta" / "norm_stats.json"
    if format == "openpi":
        save_stats(stats, path)
    elif format == "lerobot":
        _save_lerobot(dataset, path)
    else:
        stats.save(path)
    return stats, path, dataset.num_frames, time.perf_counter() - started


def dataset_norm_stats(dataset: LeRobotDataset, embodiment: Embodiment | None, mode: Mode, horizon: int) -> NormStats:
    """Exact statistics from the parquet columns, in the model's numbers; relative where the embodiment says so."""
    return datasets_norm_stats([dataset], embodiment, mode, horizon)


def datasets_norm_stats(
    datasets: Sequence[LeRobotDataset], embodiment: Embodiment | None, mode: Mode, horizon: int
) -> NormStats:
    """The same over several datasets of one robot, as if they were one."""
    if embodiment is None:
        state, actions = (
            _joined(key, [dataset.column(key) for dataset in datasets]) for key in ("observation.state", "action")
        )
    else:
        state = _joined(embodiment.state_key, [robot_state(dataset, embodiment) for dataset in datasets])
        actions = _joined(embodiment.action_key, [robot_actions(dataset, embodiment) for dataset in datasets])
        embodiment.check_dims(state.shape[1], actions.shape[1])
        state, actions = embodiment.model_state(state), embodiment.model_actions(actions)
    return compute_norm_stats(
        state,
        actions,
        mode,
        relative=None if embodiment is None else embodiment.relative,
        horizon=horizon,
        episode_lengths=[int(length) for dataset in datasets for length in dataset.episode_lengths],
    )


def _joined(key: Key, columns: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    widths = sorted({column.shape[1] for column in columns})
    if len(widths) > 1:
        raise UserError(
            f"{key} has {widths[0]} dimensions in one dataset and {widths[1]} in another of the same robot; "
            "give the robots different names"
        )
    return np.concatenate(columns)


_NAMES = {"openpi": "assets/<asset id>/norm_stats.json", "lerobot": "meta/stats.json"}


def _save_lerobot(dataset: LeRobotDataset, path: Path) -> None:
    """The dataset's own stats.json with exact statistics of its numbers; what it has of images and indices stays."""
    values = dict(dataset.stats)
    for key in number_keys(dataset.features):
        if key in INDEX_TYPES:
            continue
        column = dataset.column(key)
        if not np.isfinite(column).all():
            raise UserError(f"norm stats: column {key!r} holds NaN or infinity; repair or drop those frames")
        values[key] = {name: value.tolist() for name, value in numeric_stats(column).items()}
    write_bytes(path, json.dumps(values, indent=4, ensure_ascii=False).encode())
