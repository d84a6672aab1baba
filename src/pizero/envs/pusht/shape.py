"""The T block of PushT: its shape, where it belongs, and how far it is from there."""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

GOAL = np.array([256.0, 256.0, math.pi / 4])
"""Pose of the block on the target: x, y, angle."""
OUTLINE = np.array([(-60, 0), (60, 0), (60, 30), (15, 30), (15, 120), (-15, 120), (-15, 30), (-60, 30)], float)
"""Corners of the block in its own frame: a bar of 120 x 30 and a stem of 30 x 90."""
BOXES = ((-60.0, 0.0, 60.0, 30.0), (-15.0, 30.0, 15.0, 120.0))


@functools.cache
def contacts(spacing: float = 9.0) -> tuple[Array, Array]:
    """Points [n, 2] around the block and outward normals [n, 2], in its frame."""
    points: list[Array] = []
    normals: list[Array] = []
    for a, b in zip(OUTLINE, np.roll(OUTLINE, -1, axis=0), strict=True):
        along = b - a
        length = float(np.linalg.norm(along))
        count = int(length // spacing)
        for index in range(count + 1):
            inset = 2.0 + (length - 4.0) * (index / count)
            points.append(a + along / length * inset)
            normals.append(np.array([along[1], -along[0]]) / length)
    return np.array(points), np.array(normals)


def rotated(vectors: Array, angle: float) -> Array:
    """Vectors [..., 2] turned by an angle."""
    c, s = math.cos(angle), math.sin(angle)
    return vectors @ np.array([[c, s], [-s, c]])


def corners(poses: Array) -> Array:
    """The block's corners [..., 8, 2] at poses [..., 3]."""
    c, s = np.cos(poses[..., 2, None]), np.sin(poses[..., 2, None])
    x = c * OUTLINE[:, 0] - s * OUTLINE[:, 1] + poses[..., 0, None]
    y = s * OUTLINE[:, 0] + c * OUTLINE[:, 1] + poses[..., 1, None]
    return np.stack([x, y], axis=-1)


def errors(poses: Array) -> Array:
    """Mean distance of the corners from where they belong, pixels [n], for poses [n, 3]."""
    return np.linalg.norm(corners(poses) - corners(GOAL), axis=-1).mean(-1)


def error(pose: Array) -> float:
    return float(errors(pose[None])[0])


def coverage(poses: Array) -> Array:
    """Share [n] of the goal that the block covers at poses [n, 3]."""
    import shapely

    goal = shapely.Polygon(corners(GOAL))
    covered = shapely.intersection(shapely.polygons(corners(poses)), goal)
    return np.asarray(shapely.area(covered), float) / goal.area


def distance_to_block(points: Array) -> Array:
    """Distance [...] of points [..., 2] in the block's frame from it; 0 inside."""
    distances = []
    for left, top, right, bottom in BOXES:
        dx = np.maximum(np.maximum(left - points[..., 0], points[..., 0] - right), 0)
        dy = np.maximum(np.maximum(top - points[..., 1], points[..., 1] - bottom), 0)
        distances.append(np.hypot(dx, dy))
    return np.minimum(*distances)
