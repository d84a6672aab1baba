"""Training samples per second: frames cached, frames decoded, and beside LeRobot's loader where it is installed.

python benchmarks/data/loader.py                     pizero alone
LEROBOT_ENV/bin/python benchmarks/data/loader.py     beside LeRobot (PYTHONPATH=src), the same dataset, interleaved

Feeds docs/data.md (decoded frames); some minutes on 2 cores. A sample is two cameras, the state, the
instruction and a window of 50 actions. Ours are resized to 224 x 224 and normalised, ready for the model; LeRobot's are
what its dataset and DataLoader give, in the recorded size.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.datasets.writer.lerobot_writer import LeRobotWriter
from pizero.data.embodiments import generic
from pizero.data.frames import FrameCache, FrameStore
from pizero.data.loader import Loader, Member
from pizero.data.norm_stats import compute_norm_stats
from pizero.data.pipeline import Pipeline
from pizero.data.tokenizer import PaligemmaTokenizer

CAMERAS = {"base_0_rgb": "top", "left_wrist_0_rgb": "wrist"}
HORIZON, DIM, FPS, BATCH = 50, 7, 30, 32


def record(root: Path, codec: str, size: tuple[int, int], episodes: int, frames: int) -> None:
    """Smooth moving pictures with some noise, so that the video has something to say."""
    rng, (height, width) = np.random.default_rng(0), size
    ys, xs = np.mgrid[:height, :width].astype(np.float32)
    noise = rng.integers(0, 12, (16, height, width, 3), np.uint8)
    names = [f"d{index}" for index in range(DIM)]
    cameras = dict.fromkeys(CAMERAS.values(), size)
    with LeRobotWriter(
        root, fps=FPS, robot_type="synthetic", state_names=names, action_names=names, cameras=cameras,
        image_format=codec,  # type: ignore[arg-type]
    ) as writer:  # fmt: skip
        for episode in range(episodes):
            for frame in range(frames):
                waves = [
                    110 + 100 * np.sin((xs * kx + ys * ky) / 40 + frame / 9 + episode)
                    for kx, ky in ((1, 0.3), (0.2, 1), (0.7, -0.7))
                ]
                image = np.stack(waves, axis=-1).astype(np.uint8) + noise[frame % 16]
                values = rng.standard_normal((2, DIM)).astype(np.float32)
                writer.add_frame(*values, dict.fromkeys(CAMERAS.values(), image))
            writer.save_episode("put the red block into the bowl")


def ours(dataset: LeRobotDataset, store: FrameStore, workers: int, folder: Path) -> Callable[[int], Iterator[object]]:
    """Batches without end, from a first step on."""
    pipeline = Pipeline(
        generic(CAMERAS), compute_norm_stats(dataset.column("observation.state"), dataset.column("action"), "zscore"),
        PaligemmaTokenizer.bytes(), tuple(CAMERAS), "pi0", 48, (224, 224), state_dim=32, action_dim=32,
    )  # fmt: skip
    cache = FrameCache(dataset, list(CAMERAS.values()), (224, 224), store=store, folder=folder)
    member = Member(dataset, pipeline, cache, np.arange(dataset.num_frames))
    loader = Loader([member], horizon=HORIZON, batch_size=BATCH, seed=0, workers=workers)
    return lambda first: loader.batches(first, 1_000_000)


def theirs(root: Path, workers: int, backend: str) -> Callable[[int], Iterator[object]]:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset as Theirs  # pyright: ignore

    window = {"action": [index / FPS for index in range(HORIZON)]}
    dataset = Theirs("local/benchmark", root=root, delta_timestamps=window, video_backend=backend)
    loader = torch.utils.data.DataLoader(dataset, BATCH, shuffle=True, num_workers=workers)

    def batches(first: int) -> Iterator[object]:
        while True:
            yield from loader

    return batches


def rates(loaders: dict[str, Iterator[object]], rounds: int, seconds: float) -> dict[str, float]:
    """Samples per second, the median over rounds in which every loader has its turn; the first batches do not count."""
    found: dict[str, list[float]] = {name: [] for name in loaders}
    for _ in range(rounds):
        for name, batches in loaders.items():
            for _ in range(2):
                next(batches)
            count, started = 0, time.perf_counter()
            while (elapsed := time.perf_counter() - started) < seconds or count < 2:
                next(batches)
                count += 1
            found[name].append(count * BATCH / elapsed)
    return {name: statistics.median(values) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codec", choices=("av1", "h264", "png"), default="h264")
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), help="height and width of the recorded frames")
    parser.add_argument("--episodes", type=int, default=6)
    parser.add_argument("--frames", type=int, default=150, help="of each episode")
    parser.add_argument("--workers", type=int, nargs="+", default=(0, 1, 2))
    parser.add_argument("--backend", default="torchcodec", help="LeRobot's decoder: torchcodec or pyav")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each turn")
    options = parser.parse_args()
    torch.set_num_threads(1)
    peer = importlib.util.find_spec("lerobot") is not None
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        os.environ["HF_HUB_OFFLINE"] = "1"
        root = Path(name) / "data"
        record(root, options.codec, tuple(options.size), options.episodes, options.frames)
        dataset = LeRobotDataset(root)
        print(f"{dataset.num_frames} frames, 2 cameras of {options.size[0]} x {options.size[1]}, {options.codec}")
        started = time.perf_counter()
        FrameCache(dataset, list(CAMERAS.values()), (224, 224), store="disk", folder=Path(name))
        print(f"cache built in {time.perf_counter() - started:.1f} s")
        for workers in sorted(options.workers, reverse=True):  # a decoder that LeRobot has open here breaks its workers
            loaders = {
                "cached": ours(dataset, "disk", workers, Path(name))(0),
                "decoded": ours(dataset, "decode", workers, Path(name))(0),
            }
            if peer:
                loaders[f"LeRobot, {options.backend}"] = theirs(root, workers, options.backend)(0)
            measured = rates(loaders, options.rounds, options.seconds)
            slowest = list(measured.values())[-1]
            for label, rate in measured.items():
                print(f"  workers {workers}  {label:20s} {rate:8.0f} samples/s  {rate / slowest:5.1f}x")
            for batches in loaders.values():
                stack.callback(batches.close)  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
