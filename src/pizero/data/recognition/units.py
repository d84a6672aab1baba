"""In which units a robot's numbers are, guessed from their ranges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pizero.data.recognition.description import Numbers

TURN = 2 * math.pi + 0.3
"""Radians that a joint may reach."""
DEGREES = 400.0


@dataclass(frozen=True)
class Units:
    """joints: "radians", "degrees", "degrees or percent", "unknown"; empty where no joint is known. gripper: "0 to 1",
    "0 to 100", "-1 to 1", "other"; empty where there is none. reasons: with the ranges. questions: what is in doubt.
    """

    joints: str
    gripper: str
    reasons: tuple[str, ...]
    questions: tuple[str, ...]


def guess_units(numbers: Numbers | None, joints: Sequence[int], grippers: Sequence[int], usual: str) -> Units:
    """numbers: of the actions. usual: the joints' units of the robot that was recognised; empty where none was."""
    if numbers is None:
        return Units("", "", (), ("no statistics: in which units are the joints and the gripper?",))
    reasons: list[str] = []
    questions: list[str] = []
    unit = closing = ""
    if joints:
        low, high = min(numbers.low[list(joints)]), max(numbers.high[list(joints)])
        largest = max(abs(float(low)), abs(float(high)))
        unit, doubt = _joint_unit(largest, usual)
        reasons.append(f"joints {unit}: {low:.4g} to {high:.4g}")
        questions += [doubt] if doubt else []
        if usual and unit in ("radians", "degrees") and unit != usual:
            questions.append(f"joints look like {unit}, this robot's are usually in {usual}: which is right?")
    elif not grippers and numbers.low.size:
        reasons.append(f"not known: {numbers.low.min():.4g} to {numbers.high.max():.4g}")
    if grippers:
        low, high = min(numbers.low[list(grippers)]), max(numbers.high[list(grippers)])
        closing = _gripper_range(float(low), float(high))
        reasons.append(f"gripper {closing}: {low:.4g} to {high:.4g}")
        if closing == "other":
            questions.append(f"the gripper goes from {low:.4g} to {high:.4g}: which is open, which closed?")
    return Units(unit, closing, tuple(reasons), tuple(questions))


def _joint_unit(largest: float, usual: str) -> tuple[str, str]:
    """(unit, question)"""
    if largest <= TURN:
        return "radians", "" if largest > 1.05 or usual == "radians" else (
            "all joints stay within -1.05 to 1.05: radians, or scaled to -1 to 1?"
        )  # fmt: skip
    if largest <= 100.5:
        return "degrees or percent", (
            "no joint passes 100: degrees, or LeRobot's percent of the calibrated range (-100 to 100)?"
        )
    if largest <= DEGREES:
        return "degrees", ""
    return "unknown", f"joints reach {largest:.4g}: in which unit are they (steps of a motor, thousandths of a degree)?"


def _gripper_range(low: float, high: float) -> str:
    if low >= -0.1 and 0.2 <= high <= 1.1:
        return "0 to 1"
    if low >= -5 and 2 < high <= 110:
        return "0 to 100"
    return "-1 to 1" if -1.1 <= low < -0.1 and high <= 1.1 else "other"
