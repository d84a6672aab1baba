"""Whether a policy will act as it was trained to: what would explain its errors on recorded chunks, and the answer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pizero.data.doctor.open_loop import Replay
from pizero.data.embodiments import Embodiment
from pizero.data.norm_stats import NEAR_CONSTANT

State = Literal["yes", "open", "doubt", "no"]
"""open: it cannot be known here."""

CLEARLY = 0.6
"""Of the error, and of the yardstick's, that another reading must leave at most to explain it: a policy that has
learned little fits less badly whenever its actions become smaller.
"""
GOOD, USELESS = 0.5, 0.9
"""Of a yardstick's error: up to the first a policy fits, from the second on it has learned nothing."""
DEGREES = 180 / math.pi


@dataclass(frozen=True)
class Answer:
    """To one part of the question. aspect: statistics, prompt, cameras, images, units, chunk, actions ..."""

    aspect: str
    state: State
    text: str


@dataclass(frozen=True)
class Explanation:
    """Read in another way the predictions fit. before, after: mean error in standard deviations of the recording.
    least: the yardstick's.
    """

    aspect: str
    text: str
    before: float
    after: float
    least: float

    @property
    def is_clear(self) -> bool:
        return self.after <= CLEARLY * min(self.before, self.least)

    def answer(self) -> Answer:
        falls = f"the error falls from {self.before:.2f} to {self.after:.2f} standard deviations"
        return Answer(self.aspect, "no", f"{self.text}: {falls}")


def mean_error(
    recorded: NDArray[np.float32], predicted: NDArray[np.float32], padded: NDArray[np.bool_], dims: Sequence[int]
) -> float:
    """Mean absolute error of these dimensions of [N, H, d] in the recording's standard deviations; NaN if none moves.

    padded [N, H]: steps that do not count.
    """
    inside = ~padded
    spread = recorded[inside][:, list(dims)].std(axis=0)
    moving = spread >= NEAR_CONSTANT
    if not inside.any() or not moving.any():
        return math.nan
    error = np.abs(predicted[inside][:, list(dims)] - recorded[inside][:, list(dims)]).mean(axis=0)
    return float((error[moving] / spread[moving]).mean())


@dataclass(frozen=True)
class Yardstick:
    """What a policy must be better than: one constant action, and standing still where actions are targets.

    still [N, d]: the states that the actions start from; NaN where none is known.
    """

    still: NDArray[np.float32]

    @classmethod
    def of(cls, robot: Embodiment, states: NDArray[np.float32], width: int) -> Yardstick:
        """states [N, ds]: at the chunks' starts. Without a relative mask, actions may be targets by their number."""
        pairs = robot.relative.index_pairs(width, states.shape[1]) or [
            (i, i) for i in range(min(width, states.shape[1]))
        ]
        still = np.full((len(states), width), np.nan, np.float32)
        for dim, state in pairs:
            still[:, dim] = states[:, state]
        return cls(still)

    def error(self, recorded: NDArray[np.float32], padded: NDArray[np.bool_], dims: Sequence[int]) -> float:
        """The smaller of the two `mean_error`, dimension by dimension."""
        inside = ~padded
        median = np.median(recorded[inside], axis=0) if inside.any() else np.zeros(recorded.shape[2])
        still = np.where(np.isnan(self.still), median, self.still)[:, None]
        errors = [
            [mean_error(recorded, np.broadcast_to(guess, recorded.shape), padded, [dim]) for dim in dims]
            for guess in (median.astype(np.float32), still.astype(np.float32))
        ]
        best = [min(pair) for pair in zip(*errors, strict=True) if not math.isnan(pair[0])]
        return sum(best) / len(best) if best else math.nan


def other_readings(
    played: Replay, states: NDArray[np.float32], robot: Embodiment, grippers: Iterable[int]
) -> Iterator[Explanation]:
    """Those that fit clearly better. states [N, ds]: at the chunks' starts, in robot units. grippers: of the action."""
    width = played.recorded.shape[2]
    hands = sorted({*grippers, *robot.grippers})
    joints = [dim for dim in range(width) if dim not in hands]
    least = Yardstick.of(robot, states, width)
    found = [
        *_relative(played, least, states, robot, joints), *_units(played, least, joints, hands),
        *_signs(played, least, hands), *_speeds(played, least, list(range(width))),
    ]  # fmt: skip
    best: dict[str, Explanation] = {}
    for explanation in found:
        known = best.get(explanation.aspect)
        if explanation.is_clear and (known is None or explanation.after < known.after):
            best[explanation.aspect] = explanation
    yield from best.values()


def conclusion(answers: Sequence[Answer]) -> tuple[State, str]:
    """(state, sentence) over all answers."""
    wrong = [answer.aspect for answer in answers if answer.state == "no"]
    doubts = [answer.aspect for answer in answers if answer.state == "doubt"]
    if wrong:
        return "no", f"it will not evaluate as it trained: {', '.join(wrong)}"
    if doubts:
        return "doubt", f"doubtful whether it will evaluate as it trained: {', '.join(doubts)}"
    return "yes", "it will evaluate as it trained, as far as recorded episodes show"


def _changed(
    played: Replay, least: Yardstick, predicted: NDArray[Any], dims: Sequence[int], aspect: str, text: str
) -> Iterator[Explanation]:
    if dims:
        before = mean_error(played.recorded, played.predicted, played.padded, dims)
        after = mean_error(played.recorded, predicted, played.padded, dims)
        yield Explanation(aspect, text, before, after, least.error(played.recorded, played.padded, dims))


def _relative(
    played: Replay, least: Yardstick, states: NDArray[np.float32], robot: Embodiment, joints: Sequence[int]
) -> Iterator[Explanation]:
    width, state_width = played.recorded.shape[2], states.shape[1]
    same = [(dim, dim) for dim in joints if dim < state_width]
    pairs = robot.relative.index_pairs(width, state_width) or same
    if not pairs:
        return
    dims = [dim for dim, _ in pairs]
    for sign, text in (
        (1, "its actions are relative, and nothing adds the state"),
        (-1, "its actions are absolute, and the state is added all the same"),
    ):
        predicted = played.predicted.copy()
        predicted[..., dims] += sign * states[:, None, [state for _, state in pairs]]
        yield from _changed(played, least, predicted, dims, "relative", text)


def _units(played: Replay, least: Yardstick, joints: Sequence[int], hands: Sequence[int]) -> Iterator[Explanation]:
    for dims, factor, text in (
        (joints, DEGREES, "it gives radians, the robot's joints are in degrees"),
        (joints, 1 / DEGREES, "it gives degrees, the robot's joints are in radians"),
        (hands, 100.0, "its gripper goes from 0 to 1, the robot's from 0 to 100"),
        (hands, 0.01, "its gripper goes from 0 to 100, the robot's from 0 to 1"),
    ):
        yield from _changed(played, least, played.predicted * np.float32(factor), dims, "units", text)


def _signs(played: Replay, least: Yardstick, hands: Sequence[int]) -> Iterator[Explanation]:
    for dim in hands:
        values = played.recorded[~played.padded][:, dim]
        predicted = played.predicted.copy()
        predicted[..., dim] = values.min() + values.max() - predicted[..., dim]
        yield from _changed(played, least, predicted, [dim], "gripper", f"gripper {dim} opens where it should close")


def _speeds(played: Replay, least: Yardstick, dims: Sequence[int]) -> Iterator[Explanation]:
    """Chunks of another frame rate: the same motion in half, or twice, the steps."""
    horizon = played.recorded.shape[1]
    every, half = slice(0, horizon, 2), slice(0, (horizon + 1) // 2)
    for at, shown, text in (
        (every, half, "its chunks move twice as fast as the recording: trained at half the frame rate"),
        (half, every, "its chunks move half as fast as the recording: trained at twice the frame rate"),
    ):
        recorded, padded = played.recorded[:, at], played.padded[:, at]
        before = mean_error(recorded, played.predicted[:, at], padded, dims)
        after = mean_error(recorded, played.predicted[:, shown], padded, dims)
        yield Explanation("chunk", text, before, after, least.error(recorded, padded, dims))
