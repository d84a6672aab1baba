"""What two dimensions have to do with each other over time, and whether one has two values."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pizero.data.norm_stats import NEAR_CONSTANT

LAGS = tuple(range(-5, 6))
"""Frames by which the state may come after the action."""
END = 0.05
"""Of the range between two values, what counts as being at one."""
AT_ENDS = 0.97
"""Of the frames, that must be at one of two values."""


def gone(action: NDArray[np.float64], state: NDArray[np.float64]) -> NDArray[np.float64]:
    """action [n, da], state [n, ds] -> [da, ds]: share of the action's variance that subtracting the state takes away.

    1: a constant is left. 0 and less: it would have been better left alone.
    """
    a, s = action - action.mean(axis=0), state - state.mean(axis=0)
    own, other, both = (a**2).sum(axis=0), (s**2).sum(axis=0), a.T @ s
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(own[:, None] > NEAR_CONSTANT**2 * len(a), (2 * both - other) / own[:, None], 0.0)


def shifted(
    action: NDArray[np.float64], state: NDArray[np.float64], lag: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of one episode: each action beside the state `lag` frames later."""
    count = len(action) - abs(lag)
    return action[max(-lag, 0) :][:count], state[max(lag, 0) :][:count]


def correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size > 0 else 0.0


def two_ends(values: NDArray[np.float32]) -> tuple[float, float] | None:
    """The two commonest values that lie apart, lower first; None where there is only one."""
    low, high = float(values.min()), float(values.max())
    if not high - low >= NEAR_CONSTANT:
        return None
    counts, edges = np.histogram(values, bins=20, range=(low, high))
    first = int(counts.argmax())
    rest = counts.copy()
    rest[max(first - 3, 0) : first + 4] = 0
    if not rest.any():
        return None
    found = sorted((first, int(rest.argmax())))
    inside = [values[(values >= edges[bin]) & (values <= edges[bin + 1])] for bin in found]
    return float(np.median(inside[0])), float(np.median(inside[1]))


def two_values(values: NDArray[np.float32]) -> tuple[float, float] | None:
    """The two values that nearly all frames [F] have, each in a twentieth of them or more; None otherwise."""
    ends = two_ends(values) if len(values) else None
    if ends is None:
        return None
    at_low, at_high = (float((np.abs(values - end) <= END * (ends[1] - ends[0])).mean()) for end in ends)
    return ends if at_low + at_high >= AT_ENDS and min(at_low, at_high) >= 0.05 else None
