"""Statistics of a dataset, written to a file."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pizero.checkpoints.remote import local_folder
from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.embodiments import Embodiment, get_embodiment
from pizero.data.norm_stats import Mode, NormStats, compute_norm_stats
from pizero.types import UserError


def norm_stats(
    root: Path,
    embodiment: str | None,
    mode: Mode,
    horizon: int,
    output: Path | None,
    skip_bad_episodes: bool = False,
) -> tuple[NormStats, Path, int, float]:
    """(statistics, file written, frames read, seconds). Without an embodiment, of the columns as they are."""
    started = time.perf_counter()
    root = local_folder(root, "dataset")
    dataset = LeRobotDataset(root, skip_bad_episodes=skip_bad_episodes)
    stats = dataset_norm_stats(dataset, None if embodiment is None else get_embodiment(embodiment), mode, horizon)
    path = output or root / "meta" / "norm_stats.json"
    stats.save(path)
    return stats, path, dataset.num_frames, time.perf_counter() - started


def dataset_norm_stats(dataset: LeRobotDataset, embodiment: Embodiment | None, mode: Mode, horizon: int) -> NormStats:
    """Exact statistics from the parquet columns; over relative actions where the embodiment says so."""
    return datasets_norm_stats([dataset], embodiment, mode, horizon)


def datasets_norm_stats(
    datasets: Sequence[LeRobotDataset], embodiment: Embodiment | None, mode: Mode, horizon: int
) -> NormStats:
    """The same over several datasets of one robot, as if they were one."""
    state_key, action_key = ("observation.state", "action")
    if embodiment is not None:
        state_key, action_key = embodiment.state_key, embodiment.action_key
    return compute_norm_stats(
        _joined([dataset.column(state_key) for dataset in datasets], state_key),
        _joined([dataset.column(action_key) for dataset in datasets], action_key),
        mode,
        relative=None if embodiment is None else embodiment.relative,
        horizon=horizon,
        episode_lengths=[int(length) for dataset in datasets for length in dataset.episode_lengths],
    )


def _joined(columns: Sequence[NDArray[np.float32]], key: str) -> NDArray[np.float32]:
    widths = sorted({column.shape[1] for column in columns})
    if len(widths) > 1:
        raise UserError(
            f"{key} has {widths[0]} dimensions in one dataset and {widths[1]} in another of the same robot; "
            "give the robots different names"
        )
    return np.concatenate(columns)
