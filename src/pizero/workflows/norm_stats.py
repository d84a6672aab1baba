"""Statistics of a dataset, written to a file."""

from __future__ import annotations

import time
from pathlib import Path

from pizero.checkpoints.remote import local_folder
from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.embodiments import Embodiment, get_embodiment
from pizero.data.norm_stats import Mode, NormStats, compute_norm_stats


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
    """Exact statistics from the parquet columns, in the model's numbers; relative where the embodiment says so."""
    if embodiment is None:
        state, actions = dataset.column("observation.state"), dataset.column("action")
    else:
        state, actions = dataset.column(embodiment.state_key), dataset.column(embodiment.action_key)
        embodiment.check_dims(state.shape[1], actions.shape[1])
        state, actions = embodiment.model_state(state), embodiment.model_actions(actions)
    return compute_norm_stats(
        state,
        actions,
        mode,
        relative=None if embodiment is None else embodiment.relative,
        horizon=horizon,
        episode_lengths=[int(length) for length in dataset.episode_lengths],
    )
