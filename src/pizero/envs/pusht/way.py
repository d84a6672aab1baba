"""Ways around the T block that do not touch it: straight pieces over points that surround it."""

from __future__ import annotations

import functools

import numpy as np

from pizero.envs.pusht.shape import OUTLINE, Array, Mask, contacts, distance_to_block, rotated

EDGE = 4.0
"""The disc's middle stays that far inside the board, pixels."""
_CLEARANCE = 19.0  # between the block and the disc's middle; the disc's radius is 15
_RING = 25.0  # distance of the surrounding points from the block
_FIRST_PIECE = 0.95  # its weight in the length of a way, so that the disc does not slow down at each point
_SAMPLES = 33  # points of a straight piece that are looked at


class Way:
    """The ways around the block at one pose [3]."""

    def __init__(self, pose: Array) -> None:
        self._pose = pose
        ring, steps = _ring()
        self._nodes = rotated(ring, pose[2]) + pose[:2]
        inside = on_board(self._nodes)
        self._lengths = _shortest(np.where(inside[:, None] & inside, steps, np.inf))

    def lengths(self, start: Array, ends: Array) -> Array:
        """Pixels [n] of the shortest ways from `start` [2] to `ends` [n, 2]; inf where there is none."""
        return self._choose(start, ends)[0]

    def next_point(self, start: Array, end: Array) -> Array:
        """Where to go straight from `start` [2] on the way to `end` [2]; `end` itself when there is no way."""
        lengths, nodes = self._choose(start, end[None], _FIRST_PIECE)
        return end if nodes[0] < 0 or not np.isfinite(lengths[0]) else self._nodes[nodes[0]]

    def _choose(self, start: Array, ends: Array, weight: float = 1.0) -> tuple[Array, Array]:
        """Lengths [n] and the first node [n] of each way, -1 where it is straight. weight: of the first piece."""
        direct = np.where(self._clear(start[None], ends), np.linalg.norm(ends - start, axis=-1), np.inf)
        out = np.where(self._clear(start[None], self._nodes), np.linalg.norm(self._nodes - start, axis=-1), np.inf)
        back = np.linalg.norm(ends[:, None] - self._nodes, axis=-1)
        back[~self._clear(self._nodes, ends[:, None])] = np.inf
        to_end = (self._lengths[None] + back[:, None, :]).min(-1)  # from each node to each end
        around = weight * out + to_end
        best = around.argmin(1)
        length = np.take_along_axis(around, best[:, None], 1)[:, 0]
        straight = np.isfinite(direct)
        return np.where(straight, direct, length), np.where(straight, -1, best)

    def _clear(self, a: Array, b: Array) -> Mask:
        return _clear(rotated(a - self._pose[:2], -self._pose[2]), rotated(b - self._pose[:2], -self._pose[2]))


def on_board(points: Array) -> Mask:
    """Whether the disc's middle may be at `points` [..., 2]."""
    inside: Mask = (points > EDGE) & (points < 512.0 - EDGE)
    return np.all(inside, axis=-1)


def _clear(a: Array, b: Array) -> Mask:
    """Whether the straight pieces from a to b [..., 2], in the block's frame, keep off the block.

    Near its ends a piece may be as near as the end is, or a little more.
    """
    a, b = np.broadcast_arrays(a, b)
    share = np.linspace(0.0, 1.0, _SAMPLES)
    points = a[..., None, :] + share[:, None] * (b - a)[..., None, :]
    distance = distance_to_block(points)
    length = np.linalg.norm(b - a, axis=-1)[..., None]
    from_a, to_b = share * length, (1 - share) * length
    needed = np.minimum(distance[..., :1] - 0.3 + 0.5 * from_a, distance[..., -1:] - 0.3 + 0.5 * to_b)
    return np.all(distance >= np.minimum(needed, _CLEARANCE), axis=-1)


@functools.cache
def _ring() -> tuple[Array, Array]:
    """Points [n, 2] around the block in its frame, their straight distances [n, n], inf where the block is between."""
    points, normals = contacts(18.0)
    out = np.concatenate([points + _RING * normals, OUTLINE + _RING * np.sign(OUTLINE - (0.0, 45.0))])
    nodes = out[distance_to_block(out) >= _RING - 3.0]
    steps = np.linalg.norm(nodes[:, None] - nodes, axis=-1)
    steps[~_clear(nodes[:, None], nodes[None])] = np.inf
    np.fill_diagonal(steps, 0.0)
    return nodes, steps


def _shortest(steps: Array) -> Array:
    """All-pairs shortest ways (Floyd and Warshall)."""
    lengths = steps.copy()
    for middle in range(len(lengths)):
        lengths = np.minimum(lengths, lengths[:, middle, None] + lengths[None, middle])
    return lengths
