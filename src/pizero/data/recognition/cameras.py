"""Where each camera goes among the model's: by its name, and of more than three by what it sees."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.types import UserError

BASE, LEFT, RIGHT = PLACES = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
"""The cameras of the released models."""
ON_THE_HAND = re.compile(r"wrist|hand|gripper|ego(?![a-z])|eef|effector", re.IGNORECASE)
_RIGHT_SIDE = re.compile(r"right|(?<![a-z])r(?![a-z])", re.IGNORECASE)
EPISODES, FRAMES, GRID = 6, 8, 16
"""How many are looked at, and squares a side by which pictures are compared."""


@dataclass(frozen=True)
class Seen:
    """Of a camera, in grey levels. moves: mean change between frames, more where the state changes more. sees: how much
    the squares of a picture differ.
    """

    moves: float
    sees: float

    @property
    def score(self) -> float:
        return self.moves * self.sees


@dataclass(frozen=True)
class Placed:
    """places: model camera -> robot camera, in the model's order. reasons: by robot camera. unused: with the reason."""

    places: dict[str, str]
    reasons: dict[str, str]
    unused: dict[str, str]


def place_cameras(names: Sequence[str], seen: Mapping[str, Seen] | None = None) -> Placed:
    """Those on a hand at the wrists, the others outside; of more than three, one from outside and two others that move
    most and see most. seen: None where the pictures cannot be looked at; their order counts then.
    """
    kept, reasons, unused = _best(names, seen) if len(names) > len(PLACES) else (list(names), {}, {})
    found: dict[str, str] = {}
    for name in sorted(kept, key=lambda name: not ON_THE_HAND.search(name)):
        on_hand = ON_THE_HAND.search(name) is not None
        wrists = (RIGHT, LEFT) if _RIGHT_SIDE.search(name) else (LEFT, RIGHT)
        place = next(place for place in ([*wrists, BASE] if on_hand else PLACES) if place not in found)
        found[place] = name
        by_name = "on the hand, by its name" if on_hand else "not on the hand, by its name"
        free = "" if ("wrist" in place) == on_hand else "; the place is free"
        reasons[name] = "; ".join(text for text in (by_name + free, reasons.get(name)) if text)
    return Placed({place: found[place] for place in PLACES if place in found}, reasons, unused)


def _best(names: Sequence[str], seen: Mapping[str, Seen] | None) -> tuple[list[str], dict[str, str], dict[str, str]]:
    """(three cameras in their order, a reason for each, why not the others)."""
    ranked = list(names) if seen is None else sorted(names, key=lambda name: -seen[name].score)
    outside = [name for name in ranked if not ON_THE_HAND.search(name)]
    hands = [name for name in ranked if ON_THE_HAND.search(name)]
    kept = [*outside[:1], *hands[:2]]
    kept = [*kept, *(name for name in ranked if name not in kept)][: len(PLACES)]
    if seen is None:
        why = dict.fromkeys(names, "its pictures could not be looked at")
    else:
        why = {name: f"moves by {seen[name].moves:.2g}, sees {seen[name].sees:.2g} grey levels" for name in names}
    return (
        [name for name in names if name in kept],
        {name: why[name] for name in kept},
        {name: why[name] for name in names if name not in kept},
    )


def look_at_cameras(dataset: LeRobotDataset, state: NDArray[np.float32]) -> dict[str, Seen]:
    """By camera. state [F, d]: whose change says when the robot moves. UserError where a picture cannot be read."""
    chosen = np.unique(np.linspace(0, dataset.num_episodes - 1, min(EPISODES, dataset.num_episodes)).round())
    frames = [
        int(dataset.episode_starts[number]) + np.linspace(0, int(dataset.episode_lengths[number]) - 1, FRAMES).round()
        for number in chosen.astype(int).tolist()
    ]  # fmt: skip
    scale = np.maximum(np.nanstd(state, axis=0), 1e-9)
    steps = np.concatenate([np.abs(np.diff(state[rows.astype(int)], axis=0) / scale).mean(axis=1) for rows in frames])
    steps = np.nan_to_num(steps)
    weights = steps / steps.sum() if steps.sum() > 0 else np.full(len(steps), 1 / len(steps))
    found: dict[str, Seen] = {}
    for camera in dataset.cameras:
        images = (dataset.images(camera, rows.astype(int)) for rows in frames)
        pictures = [np.stack([grey_squares(image) for image in each]) for each in images]
        change = np.concatenate([np.abs(np.diff(each, axis=0)).mean(axis=(1, 2, 3)) for each in pictures])
        sees = float(np.mean([each.std(axis=(1, 2)).mean() for each in pictures]))
        found[camera] = Seen(float((change * weights).sum()), sees)
    return found


def cameras_of_model(names: Sequence[str], placed: Placed, model: Sequence[str] | None, root: object) -> dict[str, str]:
    """Places among the cameras that a model has; None where it gets as many as the robot has. UserError for none."""
    if model is None:
        return placed.places
    same = {name: name for name in names if name in model}
    places = same or {place: own for place, own in placed.places.items() if place in model}
    if names and not places:
        raise UserError(
            f"{root}: none of its cameras ({', '.join(names)}) has an obvious place among the "
            f"model's ({', '.join(model)}); assign them under [cameras] in a robot file (--embodiment)"
        )
    return places


def grey_squares(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """uint8 [h, w, 3] -> mean grey levels [GRID, GRID, 3]."""
    small = Image.fromarray(image).resize((GRID, GRID), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32)
