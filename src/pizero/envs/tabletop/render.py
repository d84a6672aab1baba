"""Pictures of the tabletop, drawn with distance fields: a part is blended over the pixels that it covers.

Both cameras look straight down. A camera is a pose and a half width; parts are moved into its frame, so that the
pixel grid is fixed, and each part touches only the pixels around it. Details finer than a pixel are not drawn, since
demonstrations are made by the thousand in small pictures. A canvas keeps its colour planes apart, [3, size, size].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pizero.envs.tabletop.world import OBJECT_RADIUS, Thing, World

Field: TypeAlias = NDArray[np.floating[Any]]  # float32 throughout


def _colour(red: int, green: int, blue: int) -> Field:
    return np.array([[[red]], [[green]], [[blue]]], np.float32)


COLOURS: dict[str, Field] = {
    "red": _colour(230, 40, 40),
    "green": _colour(40, 196, 70),
    "blue": _colour(40, 84, 240),
    "yellow": _colour(250, 216, 40),
}
TOP_HALF_WIDTH = 1.1  # a little more than the table
EGO_HALF_WIDTH = 0.6
# The table is mid grey, zero for the model: a bright one makes a network learn much more slowly where things are.
_TABLE, _EDGE, _FLOOR = _colour(128, 130, 134), _colour(108, 110, 116), _colour(92, 94, 100)
_SHADOW, _JAW, _PALM = _colour(60, 62, 68), _colour(22, 25, 32), _colour(70, 76, 86)
_BLOCK_HALF = 0.15  # a square of the same area as the disc
_FRAME = 0.03


@dataclass(frozen=True, slots=True)
class _Camera:
    """Where a picture is taken from: centre and rotation in the world, half width, pixels per side."""

    x: float
    y: float
    yaw: float
    half_width: float
    size: int

    @property
    def pixel(self) -> float:
        return 2.0 * self.half_width / self.size


def draw_top(world: World, size: int) -> NDArray[np.uint8]:
    """The whole table from above, fixed: [size, size, 3]."""
    return _draw(world, _Camera(0.0, 0.0, 0.0, TOP_HALF_WIDTH, size), _top_background(size).copy())


def draw_ego(world: World, size: int) -> NDArray[np.uint8]:
    """What a camera on the hand sees: centred at the tip and turned with it, [size, size, 3]."""
    camera = _Camera(world.x, world.y, world.yaw, EGO_HALF_WIDTH, size)
    return _draw(world, camera, _background(camera))


def draw_both(world: World, size: int, gap: int = 8) -> NDArray[np.uint8]:
    """Top and ego side by side: [size, 2 * size + gap, 3]."""
    space = np.full((size, gap, 3), 255, np.uint8)
    return np.concatenate([draw_top(world, size), space, draw_ego(world, size)], axis=1)


def _draw(world: World, camera: _Camera, canvas: Field) -> NDArray[np.uint8]:
    for thing in sorted(world.things, key=lambda thing: thing.z):  # a lifted one is above the others
        _draw_thing(canvas, camera, thing)
    _draw_gripper(canvas, camera, world)
    return np.ascontiguousarray((canvas + np.float32(0.5)).astype(np.uint8).transpose(1, 2, 0))


def _background(camera: _Camera) -> Field:
    """The table with its edge, and the floor around it."""
    canvas = np.empty((3, camera.size, camera.size), np.float32)
    reach = camera.half_width * (abs(math.cos(camera.yaw)) + abs(math.sin(camera.yaw)))
    if max(abs(camera.x), abs(camera.y)) + reach < 0.96:
        canvas[:] = _TABLE
        return canvas
    _, u, v = _window(canvas, camera, 0.0, 0.0, 0.0, reach=4.0)
    border = np.maximum(abs(u), abs(v)) - 1.0
    canvas[:] = _FLOOR
    _blend_framed(canvas, camera, border, _TABLE, _EDGE)
    return canvas


@lru_cache(maxsize=8)
def _top_background(size: int) -> Field:
    return _background(_Camera(0.0, 0.0, 0.0, TOP_HALF_WIDTH, size))


def _draw_thing(canvas: Field, camera: _Camera, thing: Thing) -> None:
    scale = 1.0 + 0.2 * thing.z  # nearer to the camera, so larger
    radius = scale * (OBJECT_RADIUS if thing.shape == "disc" else _BLOCK_HALF)
    reach = radius if thing.shape == "disc" else 1.42 * radius
    drop, soft = 0.03 + 0.12 * thing.z, camera.pixel + 0.04 + 0.06 * thing.z
    if drop > camera.pixel:
        region, u, v = _window(canvas, camera, thing.x + drop, thing.y - drop, thing.yaw, reach + soft)
        _blend(region, 0.3 * _cover(_outline(u, v, thing.shape) - radius, soft), _SHADOW)
    region, u, v = _window(canvas, camera, thing.x, thing.y, thing.yaw, reach)
    colour = COLOURS[thing.colour]
    _blend_framed(region, camera, _outline(u, v, thing.shape) - radius, colour, 0.72 * colour)


def _draw_gripper(canvas: Field, camera: _Camera, world: World) -> None:
    """A bar across the hand with a jaw at each end; with height the parts grow and the shadow moves away."""
    scale = 1.0 + 0.25 * world.z
    spread, length, thick = scale * (0.04 + 0.22 * world.opening), scale * 0.065, scale * 0.035
    reach = math.hypot(spread + thick, length + thick)
    drop, soft = 0.02 + 0.2 * world.z, camera.pixel + 0.03 + 0.06 * world.z
    region, u, v = _window(canvas, camera, world.x + drop, world.y - drop, world.yaw, reach + soft)
    _blend(region, 0.45 * _cover(_jaws(u, v, spread, length) - thick, soft), _SHADOW)
    region, u, v = _window(canvas, camera, world.x, world.y, world.yaw, reach)
    bar = np.maximum(abs(u) - spread, abs(v) - scale * 0.022)
    palm = np.sqrt(u * u + v * v) - scale * 0.05
    _blend(region, _cover(bar, camera.pixel), _PALM)
    _blend(region, _cover(np.minimum(_jaws(u, v, spread, length) - thick, palm), camera.pixel), _JAW)
    _blend(region, _cover(palm + 0.022, camera.pixel), _PALM)


def _window(canvas: Field, camera: _Camera, x: float, y: float, yaw: float, reach: float) -> tuple[Field, Field, Field]:
    """The canvas within `reach` of a part with that world pose, and the part's own coordinates u, v at each pixel."""
    cos, sin = math.cos(camera.yaw), math.sin(camera.yaw)
    x, y = x - camera.x, y - camera.y
    column = (cos * x + sin * y) / camera.pixel + camera.size / 2
    row = (sin * x - cos * y) / camera.pixel + camera.size / 2
    pixels = reach / camera.pixel + 1.0
    left, right = max(int(column - pixels), 0), max(int(column + pixels) + 1, 0)
    top, bottom = max(int(row - pixels), 0), max(int(row + pixels) + 1, 0)
    centres = _pixel_centres(camera.size)
    across, down = centres[left:right] - column, row - centres[top:bottom, None]
    cos, sin = camera.pixel * math.cos(yaw - camera.yaw), camera.pixel * math.sin(yaw - camera.yaw)
    return canvas[:, top:bottom, left:right], cos * across + sin * down, cos * down - sin * across


@lru_cache(maxsize=8)
def _pixel_centres(size: int) -> Field:
    return np.arange(size, dtype=np.float32) + np.float32(0.5)


def _outline(u: Field, v: Field, shape: str) -> Field:
    """The distance whose level set is the shape's outline."""
    return np.sqrt(u * u + v * v) if shape == "disc" else np.maximum(abs(u), abs(v))


def _jaws(u: Field, v: Field, spread: float, length: float) -> Field:
    """Distance to the nearer of two segments along v, at u = -spread and u = spread."""
    u, v = abs(u) - spread, np.maximum(abs(v) - length, 0.0)
    return np.sqrt(u * u + v * v)


def _cover(border: Field, width: float) -> Field:
    """How much of a pixel is inside, from its signed distance to the border; `width` is that of the soft edge."""
    cover = border * (-1.0 / width) + 0.5
    return np.minimum(np.maximum(cover, 0.0, out=cover), 1.0, out=cover)


def _blend(region: Field, cover: Field, colour: Field) -> None:
    region += cover * (colour - region)


def _blend_framed(region: Field, camera: _Camera, border: Field, colour: Field, frame: Field) -> None:
    """Blends a part with a thin frame along its border."""
    if camera.pixel < _FRAME:
        _blend(region, _cover(border, camera.pixel), frame)
        border = border + _FRAME
    _blend(region, _cover(border, camera.pixel), colour)
