"""Checks that the LeRobot library reads a LeRobot v3.0 dataset exactly as pizero does, frame by frame.

Run it in an environment of its own that has LeRobot (`pip install "lerobot[dataset]"`) and finds pizero's `src`:

    HF_HUB_OFFLINE=1 PYTHONPATH=src python benchmarks/peers/lerobot_reads_dataset.py DATASET [--video-backend pyav]

Compares every frame of every camera, every action window with its padding mask, state, time, indices and task, and
the same for a choice of episodes. Prints one line per part and leaves with status 1 if anything differs.
"""

from __future__ import annotations

import argparse
import os
import sys
from importlib.metadata import version
from typing import Any

import numpy as np

HORIZON = 10
INDEX_KEYS = ("episode_index", "frame_index", "task_index", "timestamp")


def compare(folder: str, backend: str, episodes: list[int] | None) -> dict[str, float]:
    """Greatest difference per part over all frames; texts and masks count as 1 where they differ."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset as TheirDataset

    from pizero.data.datasets.lerobot import LeRobotDataset

    ours = LeRobotDataset(folder, episodes=episodes)
    windows = {"action": [step / ours.fps for step in range(HORIZON)]}
    theirs = TheirDataset(
        "local/check", root=folder, episodes=episodes, delta_timestamps=windows, video_backend=backend
    )
    if len(theirs) != ours.num_frames:
        raise SystemExit(f"LeRobot sees {len(theirs)} frames, pizero {ours.num_frames}")
    worst: dict[str, float] = {}

    def note(part: str, difference: Any) -> None:
        worst[part] = max(worst.get(part, 0.0), float(np.max(difference)))

    for frame in range(ours.num_frames):
        item = theirs[frame]
        values, is_pad = ours.window("action", [frame], HORIZON)
        note("action window", np.abs(item["action"].numpy() - values[0]))
        note("padding mask", item["action_is_pad"].numpy() != is_pad[0])
        note("state", np.abs(item["observation.state"].numpy() - ours.column("observation.state")[frame]))
        note("task", item["task"] != ours.prompts([frame])[0])
        for key in INDEX_KEYS:
            note(key, np.abs(item[key].numpy() - getattr(ours, key)[frame]))
        for camera in ours.cameras:
            image = np.rint(item[f"observation.images.{camera}"].numpy() * 255).transpose(1, 2, 0)
            note(f"camera {camera}", np.abs(image - ours.images(camera, [frame])[0]))
    for key, stats in ours.stats.items():
        for name, value in stats.items():
            note("stats.json", np.abs(np.asarray(theirs.meta.stats[key][name]) - np.asarray(value)))
    return {"frames": ours.num_frames, **worst}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="a LeRobot v3.0 dataset")
    parser.add_argument("--video-backend", default="torchcodec", choices=["torchcodec", "pyav"])
    arguments = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    print(", ".join(f"{name} {version(name)}" for name in ("lerobot", "datasets", "torch", "torchcodec", "av")))
    failed = False
    for episodes in (None, [1]):
        print(f"episodes {episodes or 'all'}:")
        for part, difference in compare(arguments.folder, arguments.video_backend, episodes).items():
            if part == "frames":
                print(f"  {int(difference)} frames")
                continue
            failed |= difference != 0
            print(f"  {part:20s} greatest difference {difference:g}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
