"""Faults between action and state: too late, the same, relative where absolute was expected, the gripper's sign."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pizero.data.datasets.layout import episodes_text
from pizero.data.doctor.finding import Finding, Subject
from pizero.data.norm_stats import NEAR_CONSTANT

SHIFTS = tuple(range(-5, 6))
"""Frames by which the state is moved against the action."""
RELATED = 0.7
"""Correlation from which on an action dimension is taken for a position that the state follows."""
DRIVEN = 0.4
"""The same for a step: the correlation with the state's change."""
END = 0.08
"""Of a gripper's range, what counts as open or closed."""


@dataclass(frozen=True)
class Lead:
    """Of one action dimension and its state: the correlation at each of SHIFTS, of action with state, or its change."""

    position: NDArray[np.float64]
    step: NDArray[np.float64]

    @property
    def is_position(self) -> bool:
        return float(self.position.max()) >= max(RELATED, float(self.step.max()))

    @property
    def is_step(self) -> bool:
        return not self.is_position and float(self.step.max()) >= DRIVEN

    def shift(self) -> int:
        """Frames by which the state comes after the action: the best of SHIFTS, where it is clearly better than 0."""
        curve = self.position if self.is_position else self.step
        best = int(curve.argmax())
        unexplained = 1 - curve**2
        zero = SHIFTS.index(0)
        return SHIFTS[best] if curve[best] > 0 and unexplained[best] < 0.8 * unexplained[zero] else 0


def check_motion(subject: Subject) -> Iterator[Finding]:
    pairs = _pairs(subject)
    leads = {pair: _lead(subject, *pair) for pair in pairs if _moves(subject, *pair)}
    yield from _late(leads)
    yield from _same(subject, leads)
    yield from _relative_already(subject, leads)
    yield from _grippers(subject)


def _pairs(subject: Subject) -> list[tuple[int, int]]:
    """(action dimension, state dimension) that belong together: of the relative mask, else those of one number."""
    widths = subject.actions.shape[1], subject.state.shape[1]
    named = subject.embodiment.relative.index_pairs(*widths)
    return named or [(dim, dim) for dim in range(min(widths))]


def _moves(subject: Subject, action: int, state: int) -> bool:
    found = subject.model_actions[subject.finite, action], subject.model_state[subject.finite, state]
    return all(len(values) > 0 and float(values.std()) >= NEAR_CONSTANT for values in found)


def _lead(subject: Subject, action: int, state: int) -> Lead:
    position, step = np.zeros(len(SHIFTS)), np.zeros(len(SHIFTS))
    for index, shift in enumerate(SHIFTS):
        parts: list[NDArray[np.float64]] = []
        for frames in subject.episode_slices():
            usable = subject.finite[frames]
            a, s = subject.model_actions[frames, action][usable], subject.model_state[frames, state][usable]
            rows = np.column_stack([a[:-1], s[:-1], np.diff(s)]).astype(np.float64)
            if len(rows) > abs(shift):
                first, later = max(-shift, 0), max(shift, 0)  # of the action, of the state
                count = len(rows) - abs(shift)
                parts.append(np.column_stack([rows[first : first + count, 0], rows[later : later + count, 1:]]))
        if parts:
            a, s, change = np.concatenate(parts).T
            position[index], step[index] = _correlation(a, s), _correlation(a, change)
    return Lead(position, step)


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size > 0 else 0.0


def _late(leads: dict[tuple[int, int], Lead]) -> Iterator[Finding]:
    shifts = {pair: lead.shift() for pair, lead in leads.items() if lead.is_position or lead.is_step}
    late = {pair: shift for pair, shift in shifts.items() if shift < 0}
    if late and len(late) * 2 > len(shifts):
        frames = -int(np.median(list(late.values())))
        yield Finding(
            "error", "late action", _dims(late),
            f"the action of a frame fits the state of {frames} frames before best",
            "actions must lead: move them by that many frames, or record the command and not the reached position",
        )  # fmt: skip


def _same(subject: Subject, leads: dict[tuple[int, int], Lead]) -> Iterator[Finding]:
    same: list[tuple[int, int]] = []
    for action, state in leads:
        a, s = subject.model_actions[subject.finite, action], subject.model_state[subject.finite, state]
        if float(np.abs(a - s).mean()) < 1e-3 * float(s.std()):
            same.append((action, state))
    if same and len(same) * 2 > len(leads):
        yield Finding(
            "error", "action is state", _dims(same), "the action of a frame equals the state of the same frame",
            "a policy would learn to stand still: take the next frame's state, or the command, as the action",
        )  # fmt: skip


def _relative_already(subject: Subject, leads: dict[tuple[int, int], Lead]) -> Iterator[Finding]:
    if not any(subject.embodiment.relative_mask):
        return
    steps: list[tuple[int, int]] = []
    for (action, state), lead in leads.items():
        moved = subject.model_actions[:, action], subject.model_state[:, state]
        ranges = [np.ptp(values[subject.finite]) for values in moved]
        if lead.is_step and float(ranges[0]) < 0.5 * float(ranges[1]):
            steps.append((action, state))
    if steps and len(steps) * 2 > len(leads):
        yield Finding(
            "error", "relative already", _dims(steps),
            f"embodiment {subject.embodiment.name} makes actions relative, but these already follow the state's change",
            "take the relative mask away, or record absolute targets",
        )  # fmt: skip


def gripper_dimensions(actions: NDArray[np.float32]) -> list[int]:
    """Action dimensions that are nearly always at one of two values, as grippers are."""
    found: list[int] = []
    for dim in range(actions.shape[1]):
        ends = two_ends(actions[:, dim])
        if ends is not None:
            low, high = ends
            reach = END * (high - low)
            at_low, at_high = (float((np.abs(actions[:, dim] - end) <= reach).mean()) for end in ends)
            if at_low + at_high >= 0.9 and min(at_low, at_high) >= 0.05:
                found.append(dim)
    return found


def two_ends(values: NDArray[np.float32]) -> tuple[float, float] | None:
    """The two commonest values that lie apart, lower first; None where there is only one."""
    low, high = float(values.min()), float(values.max())
    if not high - low >= NEAR_CONSTANT:
        return None
    counts, edges = np.histogram(values, bins=20, range=(low, high))
    first = int(counts.argmax())
    rest = counts.copy()
    rest[max(first - 3, 0) : first + 4] = 0
    if not rest.any():
        return None
    centres = (edges[:-1] + edges[1:]) / 2
    ends = sorted((centres[first], centres[int(rest.argmax())]))
    return float(ends[0]), float(ends[1])


def _grippers(subject: Subject) -> Iterator[Finding]:
    actions = subject.actions[subject.finite]
    if not len(actions):
        return
    for dim in subject.embodiment.grippers or gripper_dimensions(actions):
        ends = two_ends(actions[:, dim])
        if ends is None:
            continue
        reach = 2 * END * (ends[1] - ends[0])
        other: list[int] = []
        signs: dict[int, float] = {}
        partner = _gripper_state(subject, dim)
        for number, frames in enumerate(subject.episode_slices()):
            usable = subject.finite[frames]
            values = subject.actions[frames, dim][usable]
            if not len(values):
                continue
            episode = int(subject.dataset.episodes[number])
            away = np.minimum(np.abs(values - ends[0]), np.abs(values - ends[1])) > reach
            if float(away.mean()) > 0.3:
                other.append(episode)
            if partner is not None and float(np.ptp(values)) > reach:
                later = subject.state[frames, partner][usable][1:].astype(np.float64)
                signs[episode] = _correlation(values[:-1].astype(np.float64), later)
        if other:
            yield Finding(
                "error", "gripper range", f"action[{dim}], {episodes_text(other)}",
                f"elsewhere the gripper is at {ends[0]:.3g} or {ends[1]:.3g}, in these episodes at other values",
                "bring all episodes to one range",
            )  # fmt: skip
        yield from _opposite(dim, partner, signs)


def _opposite(dim: int, partner: int | None, signs: dict[int, float]) -> Iterator[Finding]:
    plus = [episode for episode, value in signs.items() if value > 0.3]
    minus = [episode for episode, value in signs.items() if value < -0.3]
    if plus and minus:
        fewer = min(plus, minus, key=len)
        yield Finding(
            "error", "gripper sign", f"action[{dim}], {episodes_text(fewer)}",
            f"the command moves state[{partner}] the other way round than in the {max(len(plus), len(minus))} others",
            "turn its sign in these episodes: open and closed are mixed up",
        )  # fmt: skip


def _gripper_state(subject: Subject, dim: int) -> int | None:
    """The state dimension that goes with a gripper's command: in the most episodes the closest."""
    strength = np.zeros(subject.state.shape[1])
    for frames in subject.episode_slices():
        usable = subject.finite[frames]
        command = subject.actions[frames, dim][usable][:-1].astype(np.float64)
        later = subject.state[frames][usable][1:].astype(np.float64)
        if len(command) > 1:
            strength += [abs(_correlation(command, later[:, other])) for other in range(later.shape[1])]
    best = int(strength.argmax())
    return best if strength[best] > 0.3 * len(subject.dataset.episodes) else None


def _dims(pairs: Sequence[tuple[int, int]] | dict[tuple[int, int], int]) -> str:
    return f"action[{', '.join(str(action) for action, _ in pairs)}]"
