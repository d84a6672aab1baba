"""Norm statistics of a LeRobot policy: the tensors beside its processors, used as the processors say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pizero.checkpoints.files.safetensors_file import SafetensorsWeights
from pizero.checkpoints.lerobot.keys import NORMALIZE, UNNORMALIZE, Step
from pizero.data.norm_stats import LEROBOT_EPSILON, FieldStats, Mode, NormStats, StatsError

Floats: TypeAlias = NDArray[np.float64]

STATE, ACTION, IDENTITY = "observation.state", "action", "IDENTITY"
MODES: dict[str, Mode] = {"MEAN_STD": "zscore", "QUANTILES": "quantile"}
"""Modes that our statistics have too."""
_RANGES = {"QUANTILES": ("q01", "q99"), "MIN_MAX": ("min", "max"), "QUANTILE10": ("q10", "q90")}
"""Modes that scale a range to [-1, 1], and its ends."""
_FIELDS = tuple(field.name for field in fields(FieldStats))


class UnknownError(Exception):
    """A fact that the folder does not give, or that cannot be carried; the text becomes a note."""


@dataclass(frozen=True)
class Feature:
    """The statistics of one feature that a processor holds, by name: mean, std, min, max and quantiles, [d] each."""

    key: str
    known: Mapping[str, Floats]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], key: str) -> Feature:
        """tensors: by `feature.statistic`, as `state_tensors` gives them."""
        names = {*_FIELDS, *(end for ends in _RANGES.values() for end in ends)}
        found = {name: tensors[f"{key}.{name}"] for name in names if f"{key}.{name}" in tensors}
        return cls(key, {name: np.asarray(value.double().numpy()) for name, value in found.items()})

    @property
    def stats(self) -> FieldStats:
        """UnknownError without mean and std, StatsError where these are no statistics."""
        if not {"mean", "std"} <= self.known.keys():
            raise UnknownError(f"the processors hold no mean and std of {self.key}")
        return FieldStats(**{name: value for name, value in self.known.items() if name in _FIELDS})

    def range(self, mode: object, epsilon: float = 0.0) -> tuple[Floats, Floats]:
        """(low, high), [d] each: what `mode` scales to [-1, 1]. epsilon: added to a deviation.

        UnknownError for a mode that LeRobot does not have and where statistics of it are missing.
        """
        if mode == IDENTITY:
            dim = len(next(iter(self.known.values()), np.zeros(0)))
            return -np.ones(dim), np.ones(dim)
        names = ("mean", "std") if mode == "MEAN_STD" else _RANGES.get(str(mode))
        if names is None:
            raise UnknownError(f"the mode {mode} is not known")
        if not set(names) <= self.known.keys():
            raise UnknownError(f"the processors hold no {' and '.join(names)} of {self.key}")
        low, high = (self.known[name] for name in names)
        return (low - (high + epsilon), low + (high + epsilon)) if mode == "MEAN_STD" else (low, high)

    def as_quantiles(self, mode: object, epsilon: float = 0.0) -> FieldStats:
        """With the ends of `range` as q01 and q99: mode quantile then makes what `mode` makes."""
        low, high = self.range(mode, epsilon)
        return replace(self.stats, q01=low, q99=high)


def stats_in_modes(state: Feature, action: Feature, modes: tuple[object, object], epsilon: float) -> NormStats:
    """State as it comes in and action as it goes out, normalised as LeRobot's `modes` of the two do.

    In a mode of ours where both have it; else both as ranges that give the same numbers. UnknownError where nothing is
    normalised, and as `Feature` has it.
    """
    if modes == (IDENTITY, IDENTITY):
        raise UnknownError("nothing is normalised")
    ranges = state.as_quantiles(modes[0], epsilon), action.as_quantiles(modes[1])
    if modes[0] == modes[1] and modes[0] in MODES:
        return NormStats(MODES[str(modes[0])], state.stats, action.stats, epsilon, "lerobot")
    return NormStats("quantile", *ranges, epsilon, "lerobot")


def read_norm_stats(
    folder: Path, values: Mapping[str, Any], before: Mapping[str, Step], after: Mapping[str, Step], notes: list[str]
) -> NormStats:
    """Two modes of state and action become one, by ranges that give the same numbers."""
    try:
        return _read_norm_stats(folder, values, before, after, notes)
    except StatsError as error:
        raise UnknownError(f"those of the processors cannot be used ({error})") from error


def _read_norm_stats(
    folder: Path, values: Mapping[str, Any], before: Mapping[str, Step], after: Mapping[str, Step], notes: list[str]
) -> NormStats:
    if NORMALIZE not in before or UNNORMALIZE not in after:
        raise UnknownError("there are no processors with a step that normalises")
    steps = before[NORMALIZE], after[UNNORMALIZE]
    maps = [step.config.get("norm_map", {}) for step in steps]
    modes = maps[0].get("STATE", IDENTITY), maps[1].get("ACTION", IDENTITY)
    if maps[0].get("ACTION", IDENTITY) != modes[1]:
        raise UnknownError("the two processors normalise the actions in different modes")
    if maps[0].get("VISUAL", IDENTITY) != IDENTITY:
        raise UnknownError("images are normalised by statistics, which is not carried")
    selected = steps[0].config.get("normalize_observation_keys")
    if selected is not None and STATE not in selected:
        raise UnknownError("the state is not normalised")
    epsilons = {float(step.config.get("eps", LEROBOT_EPSILON)) for step in steps}
    tensors = [state_tensors(folder, step) for step in steps]
    actions = [Feature.of(found, ACTION) for found in tensors]
    if len(epsilons) > 1 or actions[0].stats.to_json() != actions[1].stats.to_json():
        raise UnknownError("the two processors hold different statistics of the actions or epsilons")
    own, dim = width_of(values.get("output_features"), ACTION), actions[0].stats.dim
    if own is not None and own != dim:
        raise UnknownError(f"the statistics have {dim} action dimensions, config.json {own}")
    stats = stats_in_modes(Feature.of(tensors[0], STATE), actions[1], modes, epsilons.pop())
    if modes[0] != modes[1] or modes[0] not in MODES:
        notes.append(
            f"LeRobot normalises the state by {modes[0]} and the actions by {modes[1]}; both are kept as ranges "
            "(mode quantile) that give the same numbers"
        )
    return stats


def state_tensors(folder: Path, step: Step) -> Mapping[str, Tensor]:
    """Of a step of a processor in this folder: statistics by `feature.statistic`; none where it has no such file."""
    return {} if step.state_file is None else SafetensorsWeights(folder, step.state_file)


def width_of(features: Mapping[str, Any] | None, key: str) -> int | None:
    return int(features[key]["shape"][0]) if features and key in features else None
