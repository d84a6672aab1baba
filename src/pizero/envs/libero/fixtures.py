"""How the demonstrator moves what is fixed but has a joint: drawers and knobs."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from pizero.envs.libero.geometry import UP, Geometry, grasps_across
from pizero.envs.libero.hand import CLOSED, OPEN, SLOW, Actions, Hand
from pizero.envs.libero.simulator import Array
from pizero.envs.rotations import rotation

_BAR = 0.016  # metres: a handle's bar is that thick at most
_FINGER_DEPTH = 0.02
_PULL, _PUSH, _TURN = 0.19, 0.22, 1.2  # metres and radians, more than is needed

Reached = Callable[[], bool]


def open_drawer(hand: Hand, geometry: Geometry, drawer: str, reached: Reached) -> Actions:
    """Takes the handle from the front, fingers above and below it, and pulls until `reached`."""
    ahead = geometry.opens_towards(drawer)
    turn = _turn(-ahead, UP)
    handle = _handle(geometry, drawer, ahead)
    yield from hand.go(handle + 0.14 * ahead + 0.10 * UP, turn, OPEN, 0.02)
    yield from hand.go(handle + 0.08 * ahead, turn, OPEN, 0.01)
    yield from hand.go(handle, turn, OPEN, 0.006, most=40, speed=SLOW)
    yield from hand.hold(CLOSED, 10)
    yield from hand.go(handle + _PULL * ahead, turn, CLOSED, 0.006, most=60, until=reached)
    yield from hand.hold(OPEN, 6)
    yield from hand.go(hand.position + 0.06 * ahead, turn, OPEN, 0.02, most=30)
    yield from hand.go(hand.position + 0.15 * UP, turn, OPEN, 0.03, most=30)


def close_drawer(hand: Hand, geometry: Geometry, drawer: str, reached: Reached) -> Actions:
    """Pushes the handle with closed fingers until `reached`; the hand leans back, away from handles above."""
    ahead = geometry.opens_towards(drawer)
    turn = _turn((-ahead - UP) / math.sqrt(2.0), np.cross(-ahead, UP))
    handle = _handle(geometry, drawer, ahead)
    yield from hand.go(handle + 0.08 * ahead + 0.15 * UP, turn, CLOSED, 0.02)
    yield from hand.go(handle + 0.06 * ahead, turn, CLOSED, 0.02)
    yield from hand.go(handle - _PUSH * ahead, turn, CLOSED, 0.006, most=80, until=reached)
    yield from hand.go(hand.position + 0.08 * ahead, turn, CLOSED, 0.03, most=30)


def turn_knob(hand: Hand, geometry: Geometry, knob: str, reached: Reached) -> Actions:
    """Takes a knob's grip from above and turns it counter-clockwise until `reached`."""
    points = geometry.moving_points(knob)
    grip = points[points[:, 2] > points[:, 2].max() - _FINGER_DEPTH]
    _, grasp = min(grasps_across(grip, _FINGER_DEPTH), key=lambda found: found[0] + 0.3 * abs(found[1].yaw))
    yield from hand.go(grasp.position + 0.10 * UP, grasp.turn, OPEN, 0.015)
    yield from hand.go(grasp.position, grasp.turn, OPEN, 0.006, most=40, speed=SLOW)
    yield from hand.hold(CLOSED, 8)
    yield from hand.go(grasp.position, rotation(_TURN * UP) @ grasp.turn, CLOSED, 0.006, most=60, until=reached)
    yield from hand.hold(OPEN, 6)
    yield from hand.go(hand.position + 0.12 * UP, grasp.turn, OPEN, 0.03, most=30)


def _handle(geometry: Geometry, drawer: str, ahead: Array) -> Array:
    """The middle [3] of what stands out furthest of a drawer."""
    points = geometry.moving_points(drawer)
    out = points @ ahead
    bar = points[out > out.max() - _BAR]
    return (bar.max(0) + bar.min(0)) / 2


def _turn(pointing: Array, closing: Array) -> Array:
    """Rotation [3, 3] of a hand that points one way and closes its fingers along another."""
    return np.stack([np.cross(closing, pointing), closing, pointing], axis=1)
