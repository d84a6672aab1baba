"""Seconds that norm statistics take: reading the parquet files, of the columns as they are, of relative actions.

    OMP_NUM_THREADS=1 python benchmarks/data/norm_stats.py [--frames 1000000] [--dims 14] [--horizon 50]

Feeds docs/data.md (statistics); half a minute of a core. Writes a LeRobot dataset without cameras, episodes of 500
frames (or fewer) of a random walk, into a temporary folder.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.datasets.writer.lerobot_writer import LeRobotWriter
from pizero.data.embodiments import generic
from pizero.workflows.norm_stats import dataset_norm_stats

T = TypeVar("T")


def write_dataset(root: Path, frames: int, dims: int, length: int = 500) -> None:
    rng = np.random.default_rng(0)
    names = [f"joint_{i}" for i in range(dims)]
    with LeRobotWriter(
        root, fps=50, robot_type="random", state_names=names, action_names=names, cameras={}, image_format="png"
    ) as writer:
        for start in range(0, frames, length):
            state = np.cumsum(rng.normal(scale=0.01, size=(min(length, frames - start), dims)), axis=0)
            for here, there in zip(state, state + rng.normal(scale=0.02, size=state.shape), strict=True):
                writer.add_frame(here, there, {})
            writer.save_episode("walk")


def timed(name: str, call: Callable[[], T]) -> T:
    started, busy = time.perf_counter(), time.process_time()
    result = call()
    seconds, busy = time.perf_counter() - started, time.process_time() - busy
    print(f"{name:<28} {seconds:6.2f} s, {busy:.2f} s of the processor", flush=True)
    return result


def read(root: Path) -> LeRobotDataset:
    dataset = LeRobotDataset(root)
    for key in ("observation.state", "action"):
        dataset.column(key)
    return dataset


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--dims", type=int, default=14)
    parser.add_argument("--horizon", type=int, default=50)
    arguments = parser.parse_args()
    robot = generic({"base_0_rgb": "top"}, relative_mask=[True] * arguments.dims)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "data"
        timed("(writing the dataset)", lambda: write_dataset(root, arguments.frames, arguments.dims))
        dataset = timed(f"reading {arguments.frames:,} frames", lambda: read(root))
        timed("statistics, columns as is", lambda: dataset_norm_stats(dataset, None, "quantile", arguments.horizon))
        timed("the same, relative actions", lambda: dataset_norm_stats(dataset, robot, "quantile", arguments.horizon))


if __name__ == "__main__":
    main()
