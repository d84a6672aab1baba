"""The statistics that a LeRobot v3.0 dataset stores, per episode and over the whole dataset.

Quantiles of an episode are exact. Those of the dataset are the frame-weighted mean of the episodes' quantiles, which
is what the format defines; training computes its own norm stats from the pooled data.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
STAT_NAMES = ("min", "max", "mean", "std", "count", *QUANTILES)

Stats = dict[str, NDArray[Any]]
"""min, max, mean, std and quantiles of one shape, and count [1]."""


def numeric_stats(values: NDArray[Any]) -> Stats:
    """[n, d] -> statistics [d]."""
    exact = values.astype(np.float64)
    quantiles = np.quantile(exact, list(QUANTILES.values()), axis=0)
    return {
        "min": exact.min(0),
        "max": exact.max(0),
        "mean": exact.mean(0),
        "std": exact.std(0),
        "count": np.array([len(values)]),
        **dict(zip(QUANTILES, quantiles, strict=True)),
    }


class ImageStats:
    """Statistics per colour channel in [0, 1], shape [3, 1, 1], over every fifth frame of an episode."""

    EVERY = 5  # frames
    SIDE = 64  # pixels looked at in each direction, at most about that many

    def __init__(self) -> None:
        self._histogram = np.zeros((3, 256), np.int64)
        self._frames = 0
        self._seen = 0

    def add(self, image: NDArray[np.uint8]) -> None:
        """uint8 [h, w, 3]."""
        if self._seen % self.EVERY == 0:
            stride = max(1, round(max(image.shape) / self.SIDE))
            pixels = image[::stride, ::stride]
            for channel in range(3):
                self._histogram[channel] += np.bincount(pixels[..., channel].ravel(), minlength=256)
            self._frames += 1
        self._seen += 1

    def finish(self) -> Stats:
        levels = np.arange(256) / 255
        per_channel = [_histogram_stats(histogram, levels) for histogram in self._histogram]
        stats: Stats = {
            name: np.array([channel[name] for channel in per_channel]).reshape(3, 1, 1) for name in per_channel[0]
        }
        return {**stats, "count": np.array([self._frames])}


def _histogram_stats(histogram: NDArray[np.int64], levels: NDArray[np.float64]) -> dict[str, float]:
    total = histogram.sum()
    present = np.flatnonzero(histogram)
    mean = float(histogram @ levels / total)
    cumulative = np.cumsum(histogram)
    return {
        "min": float(levels[present[0]]),
        "max": float(levels[present[-1]]),
        "mean": mean,
        "std": float(np.sqrt(histogram @ (levels - mean) ** 2 / total)),
        **{name: float(levels[np.searchsorted(cumulative, q * total)]) for name, q in QUANTILES.items()},
    }


def merge_stats(total: Stats | None, episode: Stats) -> Stats:
    """The statistics of everything seen so far and one more episode."""
    if total is None:
        return episode
    count = total["count"] + episode["count"]
    share = episode["count"] / count
    difference = episode["mean"] - total["mean"]
    variance = (1 - share) * total["std"] ** 2 + share * episode["std"] ** 2 + share * (1 - share) * difference**2
    return {
        "min": np.minimum(total["min"], episode["min"]),
        "max": np.maximum(total["max"], episode["max"]),
        "mean": total["mean"] + share * difference,
        "std": np.sqrt(variance),
        "count": count,
        **{name: (1 - share) * total[name] + share * episode[name] for name in QUANTILES},
    }
