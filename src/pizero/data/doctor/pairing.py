"""Which state dimension an action dimension goes with: by the names in meta/info.json, else by what the numbers do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pizero.data.doctor.finding import Finding, Subject
from pizero.data.doctor.names import Meaning, dim_text, dims_text
from pizero.data.doctor.signals import LAGS, correlation, gone, shifted
from pizero.data.norm_stats import NEAR_CONSTANT

FITS = 0.7
"""Share of an action's variance that is gone once its own state is taken away: from here on it is its target."""
MISFITS = 0.5
FEW_EPISODES = 0.7
"""Of the episodes in which the action moves, that must say the same."""
SAME_JOINT = 0.95
"""Correlation from which on two dimensions are one movement in other units."""

LOOKED_AT = 200
"""Episodes, evenly over the dataset, in which actions are looked for in the state."""

How = Literal["target", "speed", "other", "unknown"]
"""target: the action is where the state is to go. speed: it is how fast the state is to change. other: by their names
both are the same, and no position.
"""


@dataclass(frozen=True)
class Pair:
    """named: by the names of meta/info.json; else by the robot's mask, by how both move or, unknown, by number."""

    action: int
    state: int
    how: How
    named: bool


@dataclass(frozen=True)
class Fit:
    """best [da, ds]: `gone` of each pair over all frames. episodes [da]: share of episodes that agree with `state`.

    state [da]: the best state dimension.
    """

    best: NDArray[np.float64]
    state: NDArray[np.int64]
    episodes: NDArray[np.float64]


def measure_fit(subject: Subject) -> Fit:
    widths: tuple[int, int] = subject.actions.shape[1], subject.state.shape[1]
    slices = subject.episode_slices()
    number = min(LOOKED_AT, len(slices))
    chosen: list[int] = np.unique(np.linspace(0, len(slices) - 1, number).round().astype(np.int64)).tolist()
    parts: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
    for frames in (slices[episode] for episode in chosen):
        usable = subject.finite[frames]
        if int(usable.sum()) > len(LAGS):
            parts.append((
                subject.model_actions[frames][usable].astype(np.float64),
                subject.model_state[frames][usable].astype(np.float64),
            ))  # fmt: skip
    if not parts:
        return Fit(np.zeros(widths), np.zeros(widths[0], dtype=np.int64), np.zeros(widths[0]))
    whole = np.full(widths, -np.inf)
    for lag in LAGS:
        a, s = (np.concatenate(values) for values in zip(*(shifted(*part, lag) for part in parts), strict=True))
        whole = np.maximum(whole, gone(a, s))
    best = np.asarray(whole.argmax(axis=1), dtype=np.int64)
    spread = np.concatenate([a for a, _ in parts]).std(axis=0)
    moving = np.array([a.std(axis=0) > 0.2 * spread for a, _ in parts])
    found = np.array([np.max([gone(*shifted(a, s, lag)) for lag in LAGS], axis=0) for a, s in parts])  # [E, da, ds]
    votes = found[:, np.arange(widths[0]), best] >= found.max(axis=2) - 0.1
    share = np.asarray((votes & moving).sum(axis=0) / np.maximum(moving.sum(axis=0), 1), dtype=np.float64)
    return Fit(whole, best, share)


def find_pairs(subject: Subject, fit: Fit) -> list[Pair]:
    """At most one for each action dimension; none where it is not known what it goes with."""
    named = _by_name(subject)
    pairs: list[Pair] = []
    taken = {pair.state for pair in named.values() if pair.how == "target"}
    both = subject.action_meanings is not None and subject.state_meanings is not None
    masked = dict(subject.embodiment.relative.index_pairs(subject.actions.shape[1], subject.state.shape[1]))
    for action in range(subject.actions.shape[1]):
        own = masked.get(action, action)
        best = int(fit.state[action])
        sure = fit.best[action, best] >= FITS and fit.episodes[action] >= FEW_EPISODES and best not in taken
        if action in named:
            pairs.append(named[action])
        elif action in masked and fit.best[action, own] >= MISFITS and not (sure and _better(fit, action, best, own)):
            pairs.append(Pair(action, own, "target", named=False))
        elif sure:
            pairs.append(Pair(action, best, "target", named=False))
        elif action in masked or (not both and own < subject.state.shape[1]):
            pairs.append(Pair(action, own, "unknown", named=False))
    return pairs


def _by_name(subject: Subject) -> dict[int, Pair]:
    found: dict[int, Pair] = {}
    if subject.action_meanings is None or subject.state_meanings is None:
        return found
    for action, wanted in enumerate(subject.action_meanings):
        same = [dim for dim, state in enumerate(subject.state_meanings) if state.joint == wanted.joint]
        alike = [dim for dim in same if wanted.same_quantity(subject.state_meanings[dim])]
        if not wanted.named or wanted.quantity == "effort":
            continue
        if len(alike) == 1:
            found[action] = Pair(action, alike[0], "other" if wanted.quantity == "speed" else "target", named=True)
        elif not alike and wanted.quantity == "speed" and len(same) == 1:
            found[action] = Pair(action, same[0], "speed", named=True)
    return found


def check_pairing(
    subject: Subject, fit: Fit, pairs: Sequence[Pair], *, relative_already: bool = False
) -> Iterator[Finding]:
    """A relative mask that takes another joint's state away, or that of another quantity.

    relative_already: it is known that the actions are no targets.
    """
    masked = subject.embodiment.relative.index_pairs(subject.actions.shape[1], subject.state.shape[1])
    right = {pair.action: pair for pair in pairs if pair.how in ("target", "other") and _sure(pair, fit)}
    if not masked:
        yield from _other_numbers(subject, right)
        return
    wrong = {
        action: (state, right[action].state)
        for action, state in masked
        if action in right and _better(fit, action, right[action].state, state)
    }
    if wrong:
        by_name = all(right[action].named for action in wrong)
        yield Finding(
            "error", "state of another joint", dims_text("action", wrong, subject.action_names),
            "the mask takes another joint's state away: "
            + "; ".join(_told(subject, fit, action, *states) for action, states in list(wrong.items())[:4])
            + (", by their names" if by_name else ", by how they move"),
            f"write into the robot file: state_indices = {_indices(subject, right)}",
        )  # fmt: skip
    meanings = subject.action_meanings, subject.state_meanings
    other = [action for action, state in masked if action not in wrong and _other_quantity(meanings, action, state)]
    if other:
        mask = [on and action not in other for action, on in enumerate(subject.embodiment.relative_mask)]
        yield Finding(
            "error", "another quantity than the state", dims_text("action", other, subject.action_names),
            "a speed or effort is made relative to a position, by their names",
            f"write into the robot file: relative_mask = {str(mask).lower()}",
        )  # fmt: skip
    rest = [(action, state) for action, state in masked if action not in wrong and action not in other]
    if not relative_already:
        yield from _relative_without_use(subject, [pair for pair in rest if _wider(subject, fit, *pair)])


def _relative_without_use(subject: Subject, pairs: Sequence[tuple[int, int]]) -> Iterator[Finding]:
    """pairs: where the mask makes actions spread more, or hardly less."""
    slopes = {action: _slope(subject, action, state) for action, state in pairs}
    units = {action: slope for action, slope in slopes.items() if slope is not None}
    if units:
        first = next(iter(units))
        yield Finding(
            "error", "units of the state", dims_text("action", units, subject.action_names),
            f"made relative to the state, which has other units: {dim_text('action', first, subject.action_names)} "
            f"moves by {units[first]:.3g} where its state moves by 1",
            "give the robot file a conversion of the one (docs/data.md), or set relative_mask to false there",
        )  # fmt: skip
    rest = [action for action, _ in pairs if action not in units]
    if rest:
        yield Finding(
            "warning", "relative is wider", dims_text("action", rest, subject.action_names),
            "less their state these actions spread more than as they are: it is not where they start from",
            "set relative_mask to false for them, or name the state that they start from in state_indices",
        )  # fmt: skip


def _other_numbers(subject: Subject, right: dict[int, Pair]) -> Iterator[Finding]:
    """Without a mask: what one would have to say."""
    other = {action: pair for action, pair in right.items() if pair.state != action}
    if other and len(right) * 2 > subject.actions.shape[1]:
        told = "; ".join(_goes_with(subject, action, pair.state) for action, pair in list(other.items())[:4])
        yield Finding(
            "note", "state in another order", dims_text("action", other, subject.action_names), told,
            "nothing as it is; a relative_mask in the robot file needs "
            f"state_indices = {_indices(subject, right, subject.actions.shape[1])}",
        )  # fmt: skip


def _better(fit: Fit, action: int, right: int, said: int) -> bool:
    """Whether one state is clearly what the action starts from, and another clearly not."""
    unexplained = 1 - fit.best[action, [right, said]]
    return right != said and float(unexplained[1]) > 3 * float(unexplained[0]) + 0.05


def _sure(pair: Pair, fit: Fit) -> bool:
    return fit.best[pair.action, pair.state] >= (MISFITS if pair.named else FITS)


def _indices(subject: Subject, right: dict[int, Pair], length: int | None = None) -> list[int]:
    """state_indices for the robot's mask: what was found, else what it says, else the nearest number."""
    robot = subject.embodiment
    said = dict(robot.relative.index_pairs(subject.actions.shape[1], subject.state.shape[1]))
    last = subject.state.shape[1] - 1
    return [
        right[action].state if action in right else min(said.get(action, action), last)
        for action in range(len(robot.relative_mask) if length is None else length)
    ]


def _told(subject: Subject, fit: Fit, action: int, said: int, right: int) -> str:
    shares = [max(100 * float(fit.best[action, state]), 0.0) for state in (right, said)]
    return (
        f"{_goes_with(subject, action, right)} (which explains {shares[0]:.0f} % of it), not with "
        f"{dim_text('state', said, subject.state_names)} ({shares[1]:.0f} %)"
    )


def _goes_with(subject: Subject, action: int, state: int) -> str:
    ours, theirs = dim_text("action", action, subject.action_names), dim_text("state", state, subject.state_names)
    return f"{ours} goes with {theirs}" if ours != theirs else f"{ours} goes with the state of that name"


def _other_quantity(
    meanings: tuple[Sequence[Meaning] | None, Sequence[Meaning] | None], action: int, state: int
) -> bool:
    actions, states = meanings
    if actions is None or states is None or actions[action].quantity not in ("speed", "effort"):
        return False
    return not actions[action].same_quantity(states[state])


def _wider(subject: Subject, fit: Fit, action: int, state: int) -> bool:
    """Whether taking the state away makes the action spread more; or hardly less, and both are the same movement."""
    values = subject.model_actions[subject.finite, action], subject.model_state[subject.finite, state]
    if min(float(value.std()) for value in values) < NEAR_CONSTANT:
        return False
    return fit.best[action, state] < (0 if _slope(subject, action, state) is None else MISFITS)


def _slope(subject: Subject, action: int, state: int) -> float | None:
    """By how much the action moves where the state moves by 1; None unless both are the same movement."""
    parts: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
    for frames in subject.episode_slices():
        usable = subject.finite[frames]
        if int(usable.sum()) > len(LAGS):
            values = subject.model_actions[frames, action][usable], subject.model_state[frames, state][usable]
            parts.append((values[0].astype(np.float64), values[1].astype(np.float64)))
    found: list[tuple[float, float]] = []
    for lag in LAGS if parts else ():
        a, s = (np.concatenate(values) for values in zip(*(shifted(*part, lag) for part in parts), strict=True))
        strength = correlation(a, s)
        found.append((abs(strength), strength * float(a.std()) / max(float(s.std()), 1e-12)))
    best = max(found, default=(0.0, 0.0))
    return best[1] if best[0] > SAME_JOINT else None
