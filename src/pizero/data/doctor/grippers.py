"""Faults of grippers that are open or closed and nothing between: episodes with another range, or turned about."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pizero.data.datasets.meta.layout import episodes_text
from pizero.data.doctor.finding import Finding, Subject
from pizero.data.doctor.names import dim_text, dims_text, meaning
from pizero.data.doctor.signals import correlation, two_ends, two_values
from pizero.data.norm_stats import NEAR_CONSTANT

FEW = 1 / 3
"""Of the episodes: more of them are not the exception."""
FOLLOWS = 0.7
"""Correlation from which on a state dimension goes with the command, in either direction."""
MOST = 0.8
"""Of the episodes in which the gripper moves, that must follow, or have two values, for it to be reported at all."""
DELAYS = range(1, 11)
"""Frames by which the gripper may come after its command."""


def gripper_dimensions(actions: NDArray[np.float32], names: Sequence[str] | None = None) -> list[int]:
    """Action dimensions [F, da] that are grippers, and move: by their names, else those at one of two values.

    None whose name is another joint's.
    """
    found: list[int] = []
    for dim in range(actions.shape[1]):
        joint = meaning("" if names is None else names[dim], of_command=True)
        ends = two_ends(actions[:, dim]) if joint.is_gripper else two_values(actions[:, dim])
        if ends is not None and not joint.is_joint:
            found.append(dim)
    return found


def check_grippers(subject: Subject) -> Iterator[Finding]:
    actions = subject.actions[subject.finite]
    meanings = subject.action_meanings or []
    named = [dim for dim, joint in enumerate(meanings) if joint.is_gripper]
    sure = set(subject.embodiment.grippers) | set(named)
    for dim in sorted(sure | set(gripper_dimensions(actions, subject.action_names))):
        yield from _ranges(subject, dim, sure=dim in sure)
        partner = _gripper_state(subject, dim)
        if partner is not None:
            yield from _opposite(subject, dim, partner, sure=dim in sure)


def _ranges(subject: Subject, dim: int, *, sure: bool) -> Iterator[Finding]:
    """Only of a gripper that has two values in each episode: others may stop anywhere."""
    ends: dict[int, tuple[float, float]] = {}
    moving = 0
    for episode, values in _episodes(subject, subject.actions[:, dim]):
        if float(np.ptp(values)) >= NEAR_CONSTANT:
            moving += 1
            if (found := two_values(values)) is not None:
                ends[episode] = found
    if len(ends) < max(3, MOST * moving):
        return
    low, high = (float(np.median([end[side] for end in ends.values()])) for side in (0, 1))
    other = [
        episode for episode, end in ends.items() if max(abs(end[0] - low), abs(end[1] - high)) > 0.5 * (high - low)
    ]
    if other and len(other) <= FEW * len(ends):
        found = ends[other[0]]
        yield Finding(
            "error" if sure else "warning", "gripper range", _where(subject, dim, other),
            f"elsewhere it is at {low:.3g} or {high:.3g}, in these episodes at other values, in the first at "
            f"{found[0]:.3g} or {found[1]:.3g}",
            "look at one of them: if it was recorded in other units, leave these episodes out, or bring a copy of them "
            "to one range",
        )  # fmt: skip


def _opposite(subject: Subject, dim: int, partner: int, *, sure: bool) -> Iterator[Finding]:
    signs = _signs(subject, dim, partner)
    plus = [episode for episode, value in signs.items() if value > FOLLOWS]
    minus = [episode for episode, value in signs.items() if value < -FOLLOWS]
    fewer, more = sorted((plus, minus), key=len)
    if fewer and len(fewer) + len(more) >= MOST * len(signs) and len(fewer) <= FEW * len(signs):
        yield Finding(
            "error" if sure else "warning", "gripper sign", _where(subject, dim, fewer),
            f"the command moves the state's {dim_text('state', partner, subject.state_names)} the other way round than "
            f"in the {len(more)} others",
            "look at one of them: open and closed seem mixed up there; leave these episodes out, or turn the sign in a "
            "copy of them",
        )  # fmt: skip


def _gripper_state(subject: Subject, dim: int) -> int | None:
    """The state dimension of a gripper: the one of its name, or of a gripper's; without names one that follows it.

    None where there is none: a robot may not say where its gripper is.
    """
    if subject.state_meanings is not None:
        grippers = [other for other, joint in enumerate(subject.state_meanings) if joint.is_gripper]
        if subject.action_meanings is not None:
            ours = subject.action_meanings[dim]
            same = [other for other, joint in enumerate(subject.state_meanings) if joint.joint == ours.joint]
            if ours.is_gripper or same:
                return same[0] if len(same) == 1 else None
        if grippers:
            return grippers[0] if len(grippers) == 1 else None
    strength = [
        np.median([abs(value) for value in _signs(subject, dim, other).values()] or [0.0])
        if two_values(subject.state[subject.finite, other]) is not None
        else 0.0
        for other in range(subject.state.shape[1])
    ]
    best = int(np.argmax(strength))
    return best if strength[best] > FOLLOWS else None


def _signs(subject: Subject, dim: int, partner: int) -> Mapping[int, float]:
    """By episode in which the command moves: its correlation with the state, at the delay where it is greatest."""
    spread = float(subject.actions[subject.finite, dim].std())
    found: dict[int, float] = {}
    states = dict(_episodes(subject, subject.state[:, partner]))
    for episode, values in _episodes(subject, subject.actions[:, dim]):
        if len(values) > 2 * len(DELAYS) and float(values.std()) > 0.2 * spread:
            command, state = values.astype(np.float64), states[episode].astype(np.float64)
            by_delay = [correlation(command[:-delay], state[delay:]) for delay in DELAYS]
            found[episode] = max(by_delay, key=abs)
    return found


def _episodes(subject: Subject, values: NDArray[np.float32]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """(episode, its finite frames) of values [F]."""
    for number, frames in enumerate(subject.episode_slices()):
        yield int(subject.dataset.episodes[number]), values[frames][subject.finite[frames]]


def _where(subject: Subject, dim: int, episodes: Sequence[int]) -> str:
    return f"{dims_text('action', [dim], subject.action_names)}, {episodes_text(episodes)}"
