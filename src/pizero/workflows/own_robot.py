"""The robot that recorded a dataset, as the dataset itself describes it: no robot file."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pizero.configs.preset import OWN
from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.datasets.meta.features import IMAGE_PREFIX, number_keys
from pizero.data.embodiments import Embodiment, Key
from pizero.model.config import CAMERAS
from pizero.types import UserError

_BASE, _LEFT, _RIGHT = CAMERAS
_ON_THE_HAND = re.compile(r"wrist|hand|gripper|ego(?![a-z])|eef|effector", re.IGNORECASE)
_RIGHT_SIDE = re.compile(r"right|(?<![a-z])r(?![a-z])", re.IGNORECASE)


def own_robot(
    dataset: LeRobotDataset, cameras: Sequence[str] | None = None, *, needs_camera: bool = True
) -> Embodiment:
    """Every camera, the state and the actions under their usual names, absolute; parts of a state or an action, such as
    "action.arm" and "action.hand", side by side. The only instruction of a dataset is the robot's default.

    cameras: the model's; None takes as many as the dataset has. UserError where there is no camera, unless none is
    needed, no state or no action.
    """
    if not dataset.cameras and needs_camera:
        raise UserError(f"{dataset.root} has no camera; a policy needs at least one")
    places = {name: name for name in dataset.cameras if cameras is not None and name in cameras} or {
        model: own for model, own in _places(dataset.cameras).items() if cameras is None or model in cameras
    }
    if dataset.cameras and not places:
        raise UserError(
            f"{dataset.root}: none of its cameras ({', '.join(dataset.cameras)}) has an obvious place among the "
            f"model's ({', '.join(cameras or ())}); assign them under [cameras] in a robot file (--embodiment)"
        )
    prompts = [text.strip() for text in dataset.tasks]
    return Embodiment(
        OWN if dataset.robot_type in ("", "unknown") else dataset.robot_type,
        places,
        state_key=_column(dataset, "state", ("observation.state", "state"), ("observation.states", "states")),
        action_key=_column(dataset, "action", ("action", "actions"), ()),
        image_prefix=IMAGE_PREFIX if any(key.startswith(IMAGE_PREFIX) for key in dataset.features) else "",
        default_prompt=prompts[0] if len(prompts) == 1 else "",
    )


def _places(cameras: Sequence[str]) -> dict[str, str]:
    """Model camera -> robot camera, in the model's order: those on a hand at the wrists, the others outside."""
    places = [*CAMERAS, *(f"camera_{number}_rgb" for number in range(len(CAMERAS), len(CAMERAS) + len(cameras)))]
    found: dict[str, str] = {}
    for name in sorted(cameras, key=lambda name: not _ON_THE_HAND.search(name)):
        wrists = (_RIGHT, _LEFT) if _RIGHT_SIDE.search(name) else (_LEFT, _RIGHT)
        wanted = [*wrists, *places] if _ON_THE_HAND.search(name) else places
        found[next(place for place in wanted if place not in found)] = name
    return {place: found[place] for place in places if place in found}


def _column(dataset: LeRobotDataset, what: str, names: tuple[str, ...], groups: tuple[str, ...]) -> Key:
    """The column of one of these names, else the columns that are parts of one."""
    numeric = number_keys(dataset.features)
    for name in names:
        if name in numeric:
            return name
    for name in (*names, *groups):
        parts = tuple(key for key in numeric if key.startswith(f"{name}."))
        if parts:
            return parts[0] if len(parts) == 1 else parts
    raise UserError(
        f"{dataset.root} has no column {names[0]!r}; it has {', '.join(numeric)}: name the right one as {what}_key in "
        "a robot file (--embodiment; examples/my_arm.toml)"
    )
