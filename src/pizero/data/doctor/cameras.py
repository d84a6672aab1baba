"""Faults of pictures: black, frozen, the same camera twice, cameras changed about."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pizero.data.datasets.meta.layout import episodes_text
from pizero.data.doctor.finding import Finding, Subject
from pizero.data.recognition.cameras import grey_squares
from pizero.types import UserError

EPISODES, FRAMES = 24, 6
"""How many are looked at."""
DARK = 4.0
STILL = 3.0
"""Grey levels, of a square between two frames."""
SAME = 2.0
"""Grey levels, mean difference of two cameras' squares."""


@dataclass(frozen=True)
class Look:
    """Of one camera: `grey_squares` [E, FRAMES, 16, 16, 3] of the episodes looked at; one picture [h, w, 3] of each."""

    squares: NDArray[np.float32]
    pictures: Sequence[NDArray[np.uint8]]


def look(subject: Subject) -> tuple[list[int], dict[str, Look], list[Finding]]:
    """(positions of the episodes looked at, a look by robot camera, what could not be read)."""
    dataset = subject.dataset
    count = min(EPISODES, dataset.num_episodes)
    chosen = sorted(set(np.linspace(0, dataset.num_episodes - 1, count).round().astype(int).tolist()))
    looks: dict[str, Look] = {}
    unread: list[Finding] = []
    for camera in (name for name in subject.embodiment.cameras.values() if name in dataset.cameras):
        squares: list[NDArray[np.float32]] = []
        pictures: list[NDArray[np.uint8]] = []
        try:
            for number in chosen:
                start, length = int(dataset.episode_starts[number]), int(dataset.episode_lengths[number])
                frames = start + np.linspace(0, length - 1, FRAMES).round().astype(np.int64)
                images = dataset.images(camera, frames)
                squares.append(np.stack([grey_squares(image) for image in images]))
                pictures.append(images[FRAMES // 2])
            looks[camera] = Look(np.stack(squares), pictures)
        except UserError as error:
            unread.append(Finding("error", "unreadable", f"camera {camera}", str(error), "copy or record it again"))
    return chosen, looks, unread


def check_camera_map(subject: Subject) -> Iterator[Finding]:
    """Whether the dataset has the embodiment's cameras."""
    wanted, there = subject.embodiment.cameras, subject.dataset.cameras
    if not wanted and not there:
        yield Finding(
            "error", "no camera", "all episodes", "the dataset has no camera; a policy needs at least one",
            "its numbers are examined; to train on it, record it with a camera",
        )  # fmt: skip
    for model, robot in wanted.items():
        if robot not in there:
            yield Finding(
                "error", "no camera", f"camera {robot}",
                f"{subject.embodiment.name} maps it to {model}; the dataset has {', '.join(there) or 'no camera'}",
                "name the cameras of the dataset in the embodiment",
            )  # fmt: skip
    for robot in there:
        if robot not in wanted.values():
            yield Finding(
                "note", "unused camera", f"camera {robot}", "the embodiment does not name it", "it is not looked at"
            )


def check_cameras(subject: Subject, chosen: Sequence[int], looks: Mapping[str, Look]) -> Iterator[Finding]:
    """`chosen` and `looks` as `look` gives them."""
    episodes = subject.dataset.episodes[np.asarray(chosen, dtype=np.int64)]
    for camera, seen in looks.items():
        levels = seen.squares.reshape(len(episodes), -1)
        black = (levels.mean(axis=1) < DARK) & (levels.std(axis=1) < DARK)
        if black.any():
            yield Finding(
                "error", "black video", f"camera {camera}, {episodes_text(episodes[black].tolist())}",
                f"mean grey level {levels[black].mean():.2g} of 255",
                "the camera was off or covered: leave these episodes out, or the camera",
            )  # fmt: skip
        still = np.abs(np.diff(seen.squares, axis=1)).reshape(len(episodes), -1).max(axis=1) < STILL
        frozen = still & ~black & _robot_moves(subject, chosen)
        if frozen.any():
            yield Finding(
                "error", "frozen video", f"camera {camera}, {episodes_text(episodes[frozen].tolist())}",
                "the picture stays the same while the robot moves",
                "the camera had stopped: leave these episodes out",
            )  # fmt: skip
    names = [camera for camera in looks if not _all_black(looks[camera])]
    for index, first in enumerate(names):
        for second in names[index + 1 :]:
            yield from _pair(episodes, first, second, looks[first].squares, looks[second].squares)
    yield from _wrist(subject, looks)


def _pair(
    episodes: NDArray[np.int64], first: str, second: str, a: NDArray[np.float32], b: NDArray[np.float32]
) -> Iterator[Finding]:
    if float(np.abs(a - b).mean()) < SAME:
        yield Finding(
            "error", "one camera twice", f"cameras {first}, {second}",
            f"they differ by {np.abs(a - b).mean():.2g} grey levels", "map each name to a camera of its own",
        )  # fmt: skip
        return
    if len(episodes) < 4:
        return
    typical_a, typical_b = np.median(a.mean(axis=1), axis=0), np.median(b.mean(axis=1), axis=0)
    own, other = np.zeros(len(episodes)), np.zeros(len(episodes))
    for mean, mine, theirs in ((a.mean(axis=1), typical_a, typical_b), (b.mean(axis=1), typical_b, typical_a)):
        own += np.abs(mean - mine).mean(axis=(1, 2, 3))
        other += np.abs(mean - theirs).mean(axis=(1, 2, 3))
    swapped = other < 0.5 * own
    if swapped.any():
        yield Finding(
            "error", "swapped cameras", f"cameras {first}, {second}, {episodes_text(episodes[swapped].tolist())}",
            "each looks like the other one elsewhere", "exchange them in these episodes",
        )  # fmt: skip


def _wrist(subject: Subject, looks: Mapping[str, Look]) -> Iterator[Finding]:
    """A camera on the robot sees everything move, one beside it only the robot."""
    places = {robot: model for model, robot in subject.embodiment.cameras.items() if robot in looks}
    change = {robot: float(np.abs(np.diff(looks[robot].squares, axis=1)).mean()) for robot in places}
    base = [robot for robot, model in places.items() if model.startswith("base")]
    wrist = [robot for robot, model in places.items() if "wrist" in model and not _all_black(looks[robot])]
    for outside in base:
        for inside in wrist:
            if change[outside] > 2 * change[inside]:
                yield Finding(
                    "warning", "swapped cameras", f"cameras {outside}, {inside}",
                    f"{inside}, mapped to a wrist, changes by {change[inside]:.2g} grey levels from frame to frame, "
                    f"{outside}, mapped to {places[outside]}, by {change[outside]:.2g}",
                    "look whether the camera map has them the right way round",
                )  # fmt: skip


def _robot_moves(subject: Subject, chosen: Sequence[int]) -> NDArray[np.bool_]:
    """[E]: whether any state dimension moves by a tenth of its range, or more, in these episodes."""
    slices = subject.episode_slices()
    whole = np.ptp(subject.state[subject.finite], axis=0) if subject.finite.any() else np.ones(subject.state.shape[1])
    moves = [np.ptp(np.nan_to_num(subject.state[slices[number]]), axis=0) for number in chosen]
    return np.array([bool((move > 0.1 * np.maximum(whole, 1e-9)).any()) for move in moves])


def _all_black(seen: Look) -> bool:
    return float(seen.squares.mean()) < DARK
