"""Statistics of relative actions over all action chunks of a dataset, without making the chunks.

A chunk starts at every frame, has `horizon` steps and repeats the episode's last action past its end, as in training. A
million frames are 50 million values per dimension: they are made a few thousand frames at a time, in the processor's
cache, summed, and of each block only what may lie beyond a quantile is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pizero.types import UserError

QUANTILES = (0.01, 0.99)
_BLOCK = 2048
"""Frames whose chunks are held at once."""
_LARGEST = float(np.finfo(np.float32).max) / 2
"""Two values up to here have a difference in float32."""


@dataclass(frozen=True)
class Windows:
    """The layout of all chunks: each episode's frames and `horizon` - 1 times its last one more.

    frames: the frame at every place. starts: whether a chunk starts there, which is where the frame is no repetition.
    """

    frames: NDArray[np.int64]
    starts: NDArray[np.bool_]
    horizon: int

    @classmethod
    def of(cls, episode_lengths: Sequence[int], horizon: int) -> Windows:
        """Episodes lie one after the other in the columns; those of length 0 are passed over."""
        lengths = np.array(episode_lengths, dtype=np.int64)
        lengths = lengths[lengths > 0]
        firsts, places = np.cumsum(lengths) - lengths, lengths + horizon - 1
        within = np.arange(int(places.sum())) - np.repeat(np.cumsum(places) - places, places)
        last = np.repeat(lengths - 1, places)
        return cls(np.repeat(firsts, places) + np.minimum(within, last), within <= last, horizon)

    def stats(self, action: NDArray[np.floating], state: NDArray[np.floating]) -> dict[str, float]:
        """mean, std, q01, q99, min, max of action minus the state at the chunk's start; both [F], one dimension.

        Of the differences in float32, as the model gets them: exact quantiles and extremes, sums in float64.
        UserError for values so large that float32 cannot hold their difference.
        """
        if max(np.abs(action).max(), np.abs(state).max()) > _LARGEST:
            raise UserError(
                f"norm stats: relative actions of values above {_LARGEST:.2g} are infinite; repair the data"
            )
        count = int(self.starts.sum()) * self.horizon
        low, high = ((count - 1) * q for q in QUANTILES)
        lowest, highest = _Lowest(min(int(low) + 2, count)), _Lowest(count - int(high))
        pivot = float(action.mean(dtype=np.float64) - state.mean(dtype=np.float64))
        total = squares = 0.0
        for block, empty in self._blocks(action.astype(np.float32), state.astype(np.float32)):
            exact = np.subtract(block, pivot, dtype=np.float64)  # sums about a typical value do not cancel
            exact[:, empty] = 0
            total, squares = total + float(exact.sum()), squares + float(np.vdot(exact, exact))
            lowest.add(block)
            highest.add(np.negative(block, out=block))
        mean = total / count
        std = max(squares / count - mean * mean, 0.0) ** 0.5
        bottom, top = lowest.sorted(), -highest.sorted()[::-1]
        q01 = _between(bottom[int(low) :], low - int(low))
        return {
            "mean": mean + pivot, "std": std, "q01": q01, "q99": _between(top, high - int(high)),
            "min": float(bottom[0]), "max": float(top[-1]),
        }  # fmt: skip

    def _blocks(
        self, action: NDArray[np.float32], state: NDArray[np.float32]
    ) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        """All differences, [horizon, n] at a time in one array, and the columns where no chunk starts; they are NaN."""
        ends, starts = action[self.frames], state[self.frames]
        starts[~self.starts] = np.nan
        places = len(starts) - self.horizon + 1
        later = np.lib.stride_tricks.sliding_window_view(ends, places)  # [horizon, places]
        for first in range(0, places, _BLOCK):
            chosen = slice(first, min(first + _BLOCK, places))
            yield later[:, chosen] - starts[chosen], np.flatnonzero(~self.starts[chosen])


class _Lowest:
    """The `size` lowest of all values added, in memory for about twice as many. NaN is passed over."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._bound = np.float32(np.inf)  # once `size` values are known, no other needs to be kept
        self._parts: list[NDArray[np.float32]] = []
        self._held = 0

    def add(self, values: NDArray[np.float32]) -> None:
        flat = values.ravel()
        found = flat[np.flatnonzero(flat < self._bound)]
        self._parts.append(found)
        self._held += len(found)
        if self._held >= 2 * self._size:
            kept = np.concatenate(self._parts)
            kept.partition(self._size - 1)
            self._bound = kept[self._size - 1]
            self._parts, self._held = [kept[: self._size].copy()], self._size

    def sorted(self) -> NDArray[np.float32]:
        """[size], ascending; of fewer values all."""
        return np.sort(np.concatenate(self._parts))[: self._size]


def _between(values: NDArray[np.float32], share: float) -> float:
    """On the line from the first value to the second, if there is one, as `numpy.quantile` has it."""
    return float(np.quantile(values[:2].astype(np.float64), share if len(values) > 1 else 0.0))
