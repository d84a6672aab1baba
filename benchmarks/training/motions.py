"""Writes what the hand is about to do in words, for a dataset without subtasks: "move left and down, close the hand".

    python benchmarks/training/motions.py DATASET MOTIONS.csv
    pizero train DATASET --subtasks MOTIONS.csv --text openpi --model pi05 ...

For robots whose first three actions move the hand (x right, y forward, z up, -1 to 1) and whose last one closes it, as
Meta-World's. The words of a frame come from the mean of its next 8 recorded actions: an axis is named where the mean is
beyond 0.3. Pieces of fewer than 4 frames join the piece before. The idea, motions between instruction and action, is
RT-H's (arXiv 2403.01823).
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

AHEAD, LEAST, BEYOND = 8, 4, 0.3
AXES = (("left", "right"), ("back", "forward"), ("down", "up"))


def words(mean: NDArray[np.float32]) -> str:
    """The text for mean actions [4]."""
    directions = [pair[int(value > 0)] for pair, value in zip(AXES, mean, strict=False) if abs(value) > BEYOND]
    motion = f"move {' and '.join(directions)}" if directions else "stay"
    return f"{motion}, {'close' if mean[-1] > 0 else 'open'} the hand"


def pieces(actions: NDArray[np.float32]) -> list[tuple[int, str]]:
    """First frame and text of each piece of an episode; actions [T, 4]."""
    texts = [words(actions[frame : frame + AHEAD].mean(axis=0)) for frame in range(len(actions))]
    starts = [0, *(frame for frame in range(1, len(texts)) if texts[frame] != texts[frame - 1])]
    lengths = np.diff([*starts, len(texts)])
    result: list[tuple[int, str]] = []
    for start, length in zip(starts, lengths, strict=True):
        if (length >= LEAST or not result) and (not result or result[-1][1] != texts[start]):
            result.append((start, texts[start]))
    return result


def main() -> None:
    dataset, target = Path(sys.argv[1]), Path(sys.argv[2])
    columns = pq.read_table(dataset / "data", columns=["episode_index", "frame_index", "action"])
    episodes = columns["episode_index"].to_numpy()
    actions = np.stack(columns["action"].to_pylist()).astype(np.float32)
    with target.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["episode", "from_frame", "to_frame", "text"])
        for episode in np.unique(episodes):
            rows = np.flatnonzero(episodes == episode)
            rows = rows[np.argsort(columns["frame_index"].to_numpy()[rows])]
            writer.writerows([int(episode), start, "", text] for start, text in pieces(actions[rows]))


if __name__ == "__main__":
    main()
