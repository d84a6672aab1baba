"""What the name of a dimension means: the joint, and whether its position, its speed or its effort is meant."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Quantity = Literal["position", "speed", "effort"]

_WORDS: dict[Quantity, tuple[str, ...]] = {
    "position": ("pos", "position", "positions", "qpos", "q", "angle", "rad", "deg"),
    "speed": ("vel", "velocity", "velocities", "qvel", "speed", "dq", "delta", "rate"),
    "effort": ("eff", "effort", "efforts", "torque", "tau", "force", "load", "amp", "acc"),
}
_QUANTITIES: dict[str, Quantity] = {word: quantity for quantity, words in _WORDS.items() for word in words}
_SPEEDS = re.compile(r"[vwd](x|y|z)|d?(roll|pitch|yaw)rate|omega")
"""Names that are a speed or a step whole: vx, wz, dy."""
_SAID_OF_COMMANDS = frozenset({
    "action", "actions", "target", "cmd", "command", "commanded", "desired", "des", "goal", "ref", "leader", "master",
    "next",
})  # fmt: skip
_SAID_OF_READINGS = frozenset({
    "state", "states", "observation", "obs", "actual", "measured", "follower", "puppet", "present",
})  # fmt: skip
_GRIPPER = ("grip", "claw", "jaw", "finger", "pinch", "suction", "robotiq")
_JOINTS = (
    "shoulder", "elbow", "wrist", "forearm", "waist", "base", "pan", "lift", "flex", "roll", "pitch", "yaw", "hip",
    "knee", "ankle", "neck", "torso", "head", "thumb", "index", "middle", "ring", "little", "pinky",
)  # fmt: skip


@dataclass(frozen=True)
class Meaning:
    """joint: the words left of a name once what says the quantity is gone. quantity: None where nothing says it."""

    joint: tuple[str, ...]
    quantity: Quantity | None

    @property
    def named(self) -> bool:
        """Whether the joint has a name and not a number alone."""
        return any(not word.isdigit() for word in self.joint)

    @property
    def is_gripper(self) -> bool:
        return any(word.startswith(_GRIPPER) for word in self.joint)

    @property
    def is_joint(self) -> bool:
        """Whether the name is that of another joint than a gripper."""
        return not self.is_gripper and any(word.startswith(_JOINTS) for word in self.joint)

    def same_quantity(self, other: Meaning) -> bool:
        """What has no kind in its name is a position, beside one that has it."""
        return (self.quantity or "position") == (other.quantity or "position")


def meaning(name: str, *, of_command: bool) -> Meaning:
    """of_command: of an action's name; "target_x" is then the x that a state "x" measures."""
    said = _SAID_OF_COMMANDS if of_command else _SAID_OF_READINGS
    words = [word.lstrip("0") or "0" for word in re.findall(r"[a-z]+|\d+", _split_humps(name).lower())]
    if _SPEEDS.fullmatch("".join(words)):
        return Meaning(tuple(words), "speed")
    quantities: list[Quantity] = [_QUANTITIES[word] for word in words if word in _QUANTITIES]
    joint = tuple(word for word in words if word not in _QUANTITIES and word not in said and word != "main")
    return Meaning(joint or tuple(words), quantities[-1] if quantities else None)


def _split_humps(name: str) -> str:
    """ "leftGripper" -> "left Gripper"."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)


def dims_text(what: str, dims: Iterable[int], names: Sequence[str] | None, shown: int = 6) -> str:
    """ "action elbow, wrist and 3 more"; without names "action[1, 2 and 3 more]"."""
    found = list(dims)
    more = f" and {len(found) - shown} more" if len(found) > shown else ""
    if names is None:
        return f"{what}[{', '.join(map(str, found[:shown]))}{more}]"
    return f"{what} {', '.join(dim_text(what, dim, names) for dim in found[:shown])}{more}"


def dim_text(what: str, dim: int, names: Sequence[str] | None) -> str:
    """ "elbow"; without names "action[1]"; with its number where several have the name."""
    if names is None:
        return f"{what}[{dim}]"
    return short(names[dim]) if list(names).count(names[dim]) == 1 else f"{short(names[dim])} ({dim})"


def short(name: str) -> str:
    """On one line, and not too long."""
    text = " ".join(name.split()) or repr(name)
    return text if len(text) <= 40 else f"{text[:39]}…"
