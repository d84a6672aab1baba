"""Faults between action and state: too late, the same, relative where absolute was expected."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pizero.data.doctor.finding import Finding, Subject
from pizero.data.doctor.names import dims_text
from pizero.data.doctor.pairing import FITS, Pair
from pizero.data.doctor.signals import LAGS, correlation, gone, shifted, two_values
from pizero.data.norm_stats import NEAR_CONSTANT

DRIVEN = 0.4
"""Correlation from which on an action is taken for a step that the state makes."""
EXPLAINED = 0.9
"""Of the action's variance, by the state of earlier frames, where the action is late."""
CLEARLY = 0.5
"""Of what the state of the same frame leaves unexplained: an earlier frame must leave less than that."""
EPISODES = 0.8
"""Of the episodes in which the action moves, that must each be late on their own."""


@dataclass(frozen=True)
class Lead:
    """Of a pair, over all episodes, at each of LAGS: the share of the action's variance that the state explains, and
    the correlation of the action with the state's change.

    late [E]: frames by which the action is late in each episode where it moves.
    """

    explained: NDArray[np.float64]
    change: NDArray[np.float64]
    late: Sequence[int]

    @property
    def is_target(self) -> bool:
        return float(self.explained.max()) >= FITS and float(self.explained.max()) >= float(self.change.max()) ** 2

    @property
    def is_step(self) -> bool:
        return not self.is_target and float(self.change.max()) >= DRIVEN

    def frames_late(self) -> int:
        """The frames that all agree on, or 0."""
        late = _late(self.explained)
        agree = sum(found > 0 for found in self.late)
        return late if late and self.late and agree >= EPISODES * len(self.late) else 0


def _late(explained: NDArray[np.float64]) -> int:
    """How many frames earlier the state that explains the action best lies, where that is certain; else 0."""
    best = int(explained.argmax())
    at_once = float(explained[LAGS.index(0)])
    certain = explained[best] >= EXPLAINED and 1 - explained[best] < CLEARLY * (1 - at_once)
    return max(-LAGS[best], 0) if certain else 0


def check_motion(subject: Subject, pairs: Iterable[Pair]) -> Iterator[Finding]:
    leads = {pair: _lead(subject, pair) for pair in pairs if pair.how != "other" and _moves(subject, pair)}
    yield from _late_actions(subject, leads)
    yield from _same(subject, leads)
    yield from _relative_already(subject, leads)


def _moves(subject: Subject, pair: Pair) -> bool:
    found = subject.model_actions[subject.finite, pair.action], subject.model_state[subject.finite, pair.state]
    return all(len(values) > 0 and float(values.std()) >= NEAR_CONSTANT for values in found)


def _lead(subject: Subject, pair: Pair) -> Lead:
    """Of a pair by name its units may differ: then correlation counts, else the state itself must be the action."""
    parts: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
    for frames in subject.episode_slices():
        usable = subject.finite[frames]
        a, s = subject.model_actions[frames, pair.action][usable], subject.model_state[frames, pair.state][usable]
        if len(a) > len(LAGS) + 1:
            rows = np.column_stack([s[:-1], np.diff(s)]).astype(np.float64)
            parts.append((a[:-1, None].astype(np.float64), rows))
    if not parts:
        return Lead(np.zeros(len(LAGS)), np.zeros(len(LAGS)), ())
    explained, change = np.zeros(len(LAGS)), np.zeros(len(LAGS))
    for index, lag in enumerate(LAGS):
        a, s = (np.concatenate(values) for values in zip(*(shifted(*part, lag) for part in parts), strict=True))
        explained[index] = _explained(a, s[:, :1], pair.named)
        change[index] = correlation(a[:, 0], s[:, 1])
    spread = np.concatenate([a for a, _ in parts]).std()
    moving = [(a, s[:, :1]) for a, s in parts if a.std() > 0.2 * spread]
    late = [_late(np.array([_explained(*shifted(a, s, lag), pair.named) for lag in LAGS])) for a, s in moving]
    return Lead(explained, change, late)


def _explained(a: NDArray[np.float64], s: NDArray[np.float64], in_any_units: bool) -> float:
    """a, s [n, 1]."""
    if in_any_units:
        return max(correlation(a[:, 0], s[:, 0]), 0.0) ** 2
    return float(gone(a, s)[0, 0])


def _late_actions(subject: Subject, leads: Mapping[Pair, Lead]) -> Iterator[Finding]:
    targets = {pair: lead.frames_late() for pair, lead in leads.items() if pair.how == "target" and lead.is_target}
    late = {pair: frames for pair, frames in targets.items() if frames}
    if late and len(late) * 2 > len(targets):
        frames = int(np.median(list(late.values())))
        yield Finding(
            "error", "late action", _dims(subject, late),
            f"the action of a frame is the state of {frames} frame{'s' if frames > 1 else ''} before, not one to come",
            f"record the command and not the reached position; or, in a copy, take the action from {frames + 1} frames "
            "later in the episode",
        )  # fmt: skip


def _same(subject: Subject, leads: Mapping[Pair, Lead]) -> Iterator[Finding]:
    same: list[Pair] = []
    positions = [pair for pair in leads if pair.how in ("target", "unknown")]
    for pair in positions:
        a = subject.model_actions[subject.finite, pair.action].astype(np.float64)
        s = subject.model_state[subject.finite, pair.state].astype(np.float64)
        if float(np.abs(a - s).mean()) < min(1e-3 * float(s.std()), 0.25 * _mean_step(subject, pair.state)):
            same.append(pair)
    if not same:
        return
    joints = [pair for pair in positions if not _is_gripper(subject, pair.action)] or positions
    if sum(pair in same for pair in joints) >= 0.9 * len(joints):
        yield Finding(
            "error", "action is state", _dims(subject, same),
            "the action of a frame equals the state of the same frame",
            "the first action of a chunk then stands still: take the command, or in a copy the next frame's state",
        )  # fmt: skip
    else:
        yield Finding(
            "note", "state repeats action", _dims(subject, same),
            "the state equals the action of the same frame, and not so for the other dimensions",
            "if the robot repeats its command there, the policy sees nothing that it measured",
        )  # fmt: skip


def _mean_step(subject: Subject, dim: int) -> float:
    """By how much the state changes from frame to frame: slow or resting, the next frame's state is nearly the same."""
    values = (subject.model_state[frames, dim][subject.finite[frames]] for frames in subject.episode_slices())
    steps = np.concatenate([np.abs(np.diff(own.astype(np.float64))) for own in values])
    return float(steps.mean()) if steps.size else np.inf


def _is_gripper(subject: Subject, action: int) -> bool:
    if subject.action_meanings is not None and subject.action_meanings[action].is_gripper:
        return True
    return action in subject.embodiment.grippers or two_values(subject.actions[subject.finite, action]) is not None


def _relative_already(subject: Subject, leads: Mapping[Pair, Lead]) -> Iterator[Finding]:
    masked = subject.embodiment.relative.index_pairs(subject.actions.shape[1], subject.state.shape[1])
    of_mask = [lead for pair, lead in leads.items() if (pair.action, pair.state) in masked]
    steps: list[Pair] = []
    for pair, lead in leads.items():
        moved = subject.model_actions[:, pair.action], subject.model_state[:, pair.state]
        ranges = [np.ptp(values[subject.finite]) for values in moved]
        if (pair.action, pair.state) in masked and lead.is_step and float(ranges[0]) < 0.5 * float(ranges[1]):
            steps.append(pair)
    if steps and len(steps) * 2 > len(of_mask):
        yield Finding(
            "error", "relative already", _dims(subject, steps),
            f"embodiment {subject.embodiment.name} makes actions relative, but these already follow the state's change",
            "take the relative mask away, or record absolute targets",
        )  # fmt: skip


def _dims(subject: Subject, pairs: Iterable[Pair]) -> str:
    return dims_text("action", sorted(pair.action for pair in pairs), subject.action_names)
