"""Numbers that mean something else to the model than to the robot: units, signs, grippers. With their inverse."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from pizero.types import UserError

Of: TypeAlias = Literal["both", "state", "action"]
Curve: TypeAlias = Literal["linear", "aloha_gripper"]
Numbers: TypeAlias = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Conversion:
    """The line through two points: where the robot says robot[0], robot[1], the model sees model[0], model[1].

    A gripper of 0 (open) to 100 (closed) as the released models know it: robot (0, 100), model (0, 1). A joint that
    turns the other way: robot (0, 1), model (0, -1). Degrees: robot (0, 180), model (0, 3.14159265).
    dims: of state and action ("both"), or of one alone. curve: what the robot's number goes through before the line;
    "aloha_gripper" is `_gripper_angle`, and the line's robot numbers are then angles.
    """

    dims: tuple[int, ...]
    of: Of = "both"
    robot: tuple[float, float] = (0.0, 1.0)
    model: tuple[float, float] = (0.0, 1.0)
    curve: Curve = "linear"

    def __post_init__(self) -> None:
        for what, value, known in (("of", self.of, Of), ("curve", self.curve, Curve)):
            if value not in get_args(known):
                raise UserError(f"{what} must be one of {', '.join(get_args(known))}, got {value[:60]!r}")
        if not self.dims or min(self.dims) < 0 or len(set(self.dims)) != len(self.dims):
            raise UserError(f"dims must be one or more, from 0 on, each once, got {str(list(self.dims))[:60]}")
        for what, ends in (("robot", self.robot), ("model", self.model)):
            if len(ends) != 2 or ends[0] == ends[1] or not all(map(math.isfinite, ends)):
                raise UserError(f"{what} must be two different numbers, got {str(list(ends))[:60]}")
        slope = (self.model[1] - self.model[0]) / (self.robot[1] - self.robot[0])
        if not 1e-30 < abs(slope) < 1e30:
            raise UserError(f"robot and model must be of sizes that a float32 can hold, got {self.robot}, {self.model}")

    def __call__(self, x: Numbers) -> NDArray[np.float64]:
        """Robot numbers [..., d] -> the model's, all d of them, as float64."""
        out = x.astype(np.float64)
        values = out[..., list(self.dims)]
        if self.curve == "aloha_gripper":
            values = _gripper_angle(values)
        out[..., list(self.dims)] = _line(values, self.robot, self.model)
        return out

    def inverse(self, x: Numbers) -> NDArray[np.float64]:
        """The model's numbers [..., d] -> the robot's."""
        out = x.astype(np.float64)
        values = _line(out[..., list(self.dims)], self.model, self.robot)
        out[..., list(self.dims)] = _gripper_position(values) if self.curve == "aloha_gripper" else values
        return out


def to_model(x: Numbers, conversions: Iterable[Conversion]) -> Numbers:
    """Robot numbers [..., d] through all of `conversions`, in their order; x itself where there are none."""
    for conversion in conversions:
        x = conversion(x)
    return x


def to_robot(x: Numbers, conversions: Iterable[Conversion]) -> Numbers:
    """The inverse of `to_model`."""
    for conversion in reversed(tuple(conversions)):
        x = conversion.inverse(x)
    return x


def _line(x: NDArray[np.float64], source: tuple[float, float], target: tuple[float, float]) -> NDArray[np.float64]:
    return (x - source[0]) / (source[1] - source[0]) * (target[1] - target[0]) + target[0]


# ALOHA tells how far its gripper's fingers are apart, as 0 (0.01844 m) to 1 (0.058 m); the released models know the
# angle of the motor that moves them. Both are linked by a horn of 22 mm and an arm of 36 mm: with the finger at a
# distance d, arm^2 = horn^2 + d^2 - 2 horn d sin(angle). Figures: openpi src/openpi/policies/aloha_policy.py, which has
# them from Interbotix.
_HORN, _ARM = 0.022, 0.036
_CLOSED, _OPEN = 0.01844, 0.058


def _gripper_angle(position: NDArray[np.float64]) -> NDArray[np.float64]:
    """Position 0 to 1 -> radians, -0.62 to 1.57. Beyond the mechanism's reach the angle stays at 90 degrees."""
    distance = _CLOSED + position * (_OPEN - _CLOSED)
    with np.errstate(divide="ignore", invalid="ignore"):  # positions far from 0 to 1 are nonsense, but no crash
        sine = (_HORN**2 + distance**2 - _ARM**2) / (2 * _HORN * distance)
    return np.arcsin(np.clip(sine, -1, 1))


def _gripper_position(angle: NDArray[np.float64]) -> NDArray[np.float64]:
    """Radians -> position, 0 to 1."""
    across = _HORN * np.sin(angle)
    distance = across + np.sqrt(across**2 + _ARM**2 - _HORN**2)
    return (distance - _CLOSED) / (_OPEN - _CLOSED)
