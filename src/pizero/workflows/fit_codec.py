"""A FAST codec fitted to a dataset, and what it loses there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pizero.checkpoints.files.remote import local_folder
from pizero.checkpoints.stats import read_norm_stats
from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.embodiments import Embodiment, get_embodiment
from pizero.data.fast.codec import FastCodec
from pizero.data.fast.fidelity import ActionChunks, Fidelity, measure_fidelity
from pizero.data.norm_stats import Mode
from pizero.types import UserError
from pizero.workflows.norm_stats import dataset_norm_stats
from pizero.workflows.own_robot import own_robot
from pizero.workflows.progress import tell_notes
from pizero.workflows.replay import spread_over

MOST_CHUNKS = 20_000
"""Chunks that a codec is fitted on: more of them change little and take minutes."""
MEASURED = 2_000
"""Chunks on which its error is measured, others than those where the dataset has enough."""


@dataclass(frozen=True)
class CodecConfig:
    """embodiment: by name or file; None takes the dataset's own columns. norm_stats: a file or checkpoint; None
    computes them. mode: of the statistics that are computed. horizon: actions per chunk. vocab_size: tokens at most.
    scale: coefficients per unit of a normalised action: more is finer and costs tokens.
    """

    embodiment: str | None = None
    norm_stats: str | None = None
    mode: Mode = "quantile"
    horizon: int = 50
    vocab_size: int = 1024
    scale: float = 10.0
    skip_bad_episodes: bool = False


def fit_codec(root: Path, output: Path, config: CodecConfig) -> tuple[FastCodec, Fidelity, dict[str, Any]]:
    """(codec, error on the dataset, how many chunks each is of). The codec is saved to `output`, a new folder."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} exists already; choose another name, it will not be overwritten")
    chunks = action_chunks(root, config)
    frames = np.arange(chunks.dataset.num_frames)
    fitted = spread_over(frames, MOST_CHUNKS)
    codec = FastCodec.fit([chunks.normalised(fitted)], config.vocab_size, config.scale)
    others = np.setdiff1d(frames, fitted)
    measured = spread_over(others if len(others) >= MEASURED else frames, MEASURED)
    fidelity = measure_fidelity(codec, chunks, measured)
    codec.save(output)
    return codec, fidelity, {"fitted": len(fitted), "unseen": len(others) >= MEASURED}


def action_chunks(root: Path, config: CodecConfig) -> ActionChunks:
    """The chunks of a dataset, as the robot and the statistics have them."""
    robot = None if config.embodiment is None else get_embodiment(config.embodiment)
    columns = None if robot is None else robot.columns
    dataset = LeRobotDataset(
        local_folder(root, "dataset"), cameras=(), columns=columns, skip_bad_episodes=config.skip_bad_episodes
    )
    tell_notes(dataset.notes)
    embodiment: Embodiment = robot or own_robot(dataset, needs_camera=False)
    if config.norm_stats is None:
        stats = dataset_norm_stats(dataset, embodiment, config.mode, config.horizon)
    else:
        stats = read_norm_stats(config.norm_stats, config.mode, embodiment)
    return ActionChunks(dataset, embodiment, stats, config.horizon)
