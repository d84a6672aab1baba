"""Which columns are the state and the actions, and which action is the target of which state."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from pizero.data.doctor.finding import Subject
from pizero.data.doctor.names import Meaning, dim_text, meaning
from pizero.data.doctor.pairing import FEW_EPISODES, FITS, Fit, measure_fit
from pizero.data.doctor.signals import two_values
from pizero.data.embodiments.embodiment import Embodiment, Key
from pizero.data.norm_stats import NEAR_CONSTANT
from pizero.data.recognition.description import Description, Numbers
from pizero.data.recognition.robots import KnownRobot
from pizero.types import UserError

Kind = Literal["gripper", "finger", "joint", "pose", "speed", "unknown"]

STATE, ACTION = ("observation.state", "state"), ("action", "actions")
_PARTS = {"state": (*STATE, "observation.states", "states"), "action": ACTION}
_DROID = ("joint_position", "gripper_position")
_POSE = {"x", "y", "z", "rx", "ry", "rz", "qx", "qy", "qz", "qw", "roll", "pitch", "yaw", "quat", "rot", "axis"}
_BESIDE = {"left", "right", "l", "r", "ee", "eef", "tcp", "end", "effector", "arm", "pose", "hand", "robot", "k"}
_FINGERS = ("hand", "thumb", "index", "middle", "ring", "little", "pinky")
_LIMBS = (
    "shoulder", "elbow", "wrist", "forearm", "waist", "hip", "knee", "ankle", "torso", "neck", "joint", "pan", "lift",
    "flex",
)  # fmt: skip
_MISMATCH = 0.5
"""Of the state's spread, between the means of a target and of its state, and of the target's variance, explained by the
state: what is more, or less, is no target of it."""
_ENOUGH = 50
"""Frames from which on the numbers count."""


@dataclass(frozen=True)
class Targets:
    """What is to be said of a robot's actions. mask, indices, grippers: as in `Embodiment`."""

    mask: tuple[bool, ...] = ()
    indices: tuple[int, ...] = ()
    grippers: tuple[int, ...] = ()
    mask_reason: str = ""
    gripper_reason: str = ""
    questions: list[str] = field(default_factory=list[str])


def find_column(description: Description, what: Literal["state", "action"]) -> Key:
    """The column of one of the usual names, else the columns that are parts of one. UserError where there is none."""
    numeric = description.columns
    for name in STATE if what == "state" else ACTION:
        if name in numeric:
            return name
    if what == "state" and set(_DROID) <= set(numeric):
        return _DROID
    for name in _PARTS[what]:
        parts = tuple(key for key in numeric if key.startswith(f"{name}."))
        if parts:
            return parts[0] if len(parts) == 1 else parts
    there = ", ".join(numeric) or "no column of numbers"
    wanted = (STATE if what == "state" else ACTION)[0]
    if what == "state":
        raise UserError(
            f"{description.root} has no column {wanted!r}; it has {there}: name the right one as state_key in a robot "
            "file (--embodiment; examples/my_arm.toml). A policy needs to know where its robot is: without any such "
            "column record the dataset again with one"
        )
    raise UserError(
        f"{description.root} has no column {wanted!r}; it has {there}: name the right one as {what}_key in "
        "a robot file (--embodiment; examples/my_arm.toml)"
    )


def kind_of(name: str, joint: Meaning) -> Kind:
    """What the name of an action says. joint: its meaning."""
    words = [word for word in joint.joint if not word.isdigit()]
    if joint.quantity in ("speed", "effort"):
        return "speed" if not joint.is_gripper else "gripper"
    if joint.is_gripper:
        return "gripper"
    rest = [word for word in words if word not in _BESIDE]
    if rest and all(word in _POSE for word in rest):
        return "pose"
    if any(word.startswith(_FINGERS) for word in words):
        return "finger"
    if any(word.startswith(_LIMBS) for word in words) or re.search(r"(?<![a-z])j\d+(?!\d)", name.lower()):
        return "joint"
    return "joint" if any(word in ("roll", "pitch", "yaw") for word in words) else "unknown"


def find_targets(description: Description, robot: Embodiment, known: KnownRobot | None) -> Targets:
    """robot: with its columns alone."""
    names, states = joined_names(description, robot.action_key), joined_names(description, robot.state_key)
    width, state_width = joined_width(description, robot.action_key), joined_width(description, robot.state_key)
    subject = None if description.dataset is None else Subject.of(description.dataset, robot, 10)
    kinds, how = _kinds(names, width, known)
    grippers = tuple(dim for dim, kind in enumerate(kinds) if kind == "gripper")
    questions: list[str] = []
    gripper_reason = how if grippers else "no dimension is called a gripper"
    if not grippers and names is None and subject is not None and subject.finite.any():
        guessed = [dim for dim in range(width) if two_values(subject.actions[subject.finite, dim]) is not None]
        grippers = tuple(guessed)
        for dim in guessed:
            kinds[dim] = "gripper"
        gripper_reason = "nearly always at one of two values" if guessed else "no dimension has two values"
        questions += [f"action {', '.join(map(str, guessed))} has two values: is it a gripper?"] if guessed else []
    if "joint" not in kinds:
        return Targets((), (), grippers, _no_joints(kinds, questions), gripper_reason, questions)
    fit = measure_fit(subject) if subject is not None and subject.finite.sum() >= _ENOUGH else None
    both = joined_numbers(description, robot.action_key), joined_numbers(description, robot.state_key)
    if description.frames < _ENOUGH:
        both = None, None
    partners, by_motion = _partners(kinds, names, states, state_width, fit, both)
    wrong = _no_targets(partners, fit, both)
    mask = tuple(dim in partners and dim not in wrong for dim in range(width))
    if by_motion and any(mask):
        pairs = "; ".join(
            f"{dim_text('action', dim, names)} with {dim_text('state', partners[dim], states)}" for dim in by_motion
        )
        questions.append(f"the names do not pair the actions with the state, their numbers do ({pairs}): is that so?")
    if wrong and len(wrong) * 2 > len(partners):
        questions.append(
            "the joints' actions are not where the state goes (steps or speeds?), so they are learned as they are: "
            "what are they?"
        )
    indices = tuple(partners.get(dim, min(dim, state_width - 1)) if mask[dim] else min(dim, state_width - 1)
                    for dim in range(width))  # fmt: skip
    if all(index == dim for dim, index in enumerate(indices) if mask[dim]):
        indices = ()
    if not any(mask):
        return Targets((), (), grippers, "no action is a joint's target by name and number", gripper_reason, questions)
    reason = "joint targets, learned relative to the state as in openpi; " + (
        "grippers and fingers are not" if not all(mask) else "all of them"
    )
    return Targets(mask, indices, grippers, reason, gripper_reason, questions)


def joined_names(description: Description, key: Key) -> tuple[str, ...] | None:
    if isinstance(key, str):
        return description.names(key)
    parts = [description.names(part) for part in key]
    return None if None in parts else tuple(name for part in parts for name in part or ())


def joined_width(description: Description, key: Key) -> int:
    return sum(description.width(part) for part in (key if isinstance(key, tuple) else (key,)))


def joined_numbers(description: Description, key: Key) -> Numbers | None:
    parts = [description.numbers(part) for part in (key if isinstance(key, tuple) else (key,))]
    found = [part for part in parts if part is not None]
    if len(found) < len(parts):
        return None
    fields = ("low", "high", "mean", "std")
    return Numbers(*(np.concatenate([getattr(part, name) for part in found]) for name in fields))


def _kinds(names: Sequence[str] | None, width: int, known: KnownRobot | None) -> tuple[list[Kind], str]:
    """(what each action is, how its grippers were found): by names, else by the layout of a known robot."""
    kinds: list[Kind] = ["unknown"] * width
    if names is not None:
        kinds = [kind_of(name, meaning(name, of_command=True)) for name in names]
    speeds = "speed" in kinds or "pose" in kinds
    if "gripper" in kinds or known is None or speeds or not known.arms(width):
        return kinds, "by its name"
    last = known.arm - 1
    layout: list[Kind] = ["gripper" if dim % known.arm == last else "joint" for dim in range(width)]
    return layout, f"the last of each {known.title} arm's {known.arm} dimensions"


def _no_joints(kinds: Sequence[Kind], questions: list[str]) -> str:
    if "speed" in kinds:
        return "speeds or efforts by their names: learned as they are"
    if "pose" in kinds:
        return "a pose or its steps by their names: learned as they are"
    questions.append(
        "the names do not say what the actions are, so they are learned as they are: are they targets of joints? then "
        "write relative_mask = [true, ...], one for each action, true for joints and false for grippers"
    )
    return "no action is called a joint: learned as they are"


def _partners(
    kinds: Sequence[Kind],
    names: Sequence[str] | None,
    states: Sequence[str] | None,
    state_width: int,
    fit: Fit | None,
    both: tuple[Numbers | None, Numbers | None],
) -> tuple[dict[int, int], list[int]]:
    """(joint's action -> its state, those of them that were found by their numbers)."""
    joints = [dim for dim, kind in enumerate(kinds) if kind == "joint"]
    if states is None or names is None or list(names) == list(states):
        return {dim: dim for dim in joints if dim < state_width}, []
    wanted = {dim: meaning(names[dim], of_command=True) for dim in joints}
    have = [meaning(name, of_command=False) for name in states]
    found: dict[int, int] = {}
    for dim, joint in wanted.items():
        alike = [index for index, state in enumerate(have) if state.joint == joint.joint and joint.same_quantity(state)]
        if len(alike) == 1:
            found[dim] = alike[0]
    by_motion: list[int] = []
    for dim in joints:
        if dim not in found and (state := _by_numbers(dim, fit, both, set(found.values()))) is not None:
            found[dim] = state
            by_motion.append(dim)
    return found, by_motion


def _by_numbers(dim: int, fit: Fit | None, both: tuple[Numbers | None, Numbers | None], taken: set[int]) -> int | None:
    """The one state that explains the action's motion; without data the one whose mean and spread are the same."""
    if fit is not None:
        state = int(fit.state[dim])
        sure = fit.best[dim, state] >= FITS and fit.episodes[dim] >= FEW_EPISODES
        return state if sure and state not in taken else None
    action, states = both
    if action is None or states is None:
        return None
    distance = np.abs(states.mean - action.mean[dim]) + np.abs(states.std - action.std[dim])
    distance[list(taken)] = np.inf
    best, second = np.argsort(distance)[:2] if len(distance) > 1 else (0, 0)
    close = distance[best] < 0.2 * action.std[dim] and (best == second or distance[second] > 3 * distance[best])
    return int(best) if close else None


def _no_targets(partners: dict[int, int], fit: Fit | None, both: tuple[Numbers | None, Numbers | None]) -> set[int]:
    """The actions whose numbers do not allow that they are targets of their states."""
    action, states = both
    if action is None or states is None:
        return set()
    moving = {
        dim: state
        for dim, state in partners.items()
        if max(float(states.std[state]), float(action.std[dim])) >= NEAR_CONSTANT
    }
    if fit is not None:
        explained = {dim: float(fit.best[dim, state]) for dim, state in moving.items()}
        if explained and float(np.median(list(explained.values()))) < _MISMATCH:
            return set(partners)
        return {dim for dim, share in explained.items() if share < 0}  # relative they would spread more
    differ = {dim for dim, state in moving.items() if _differ(dim, state, action, states)}
    return set(partners) if len(differ) * 2 > len(moving) else set()


def _differ(dim: int, state: int, action: Numbers, states: Numbers) -> bool:
    own, other = float(action.std[dim]), float(states.std[state])
    far = abs(float(action.mean[dim] - states.mean[state])) > _MISMATCH * max(own, other)
    return far or not 0.4 < own / max(other, 1e-12) < 2.5
