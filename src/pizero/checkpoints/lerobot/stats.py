"""Norm statistics of a LeRobot policy: the tensors beside its processors, used as the processors say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from pizero.checkpoints.files.safetensors_file import SafetensorsWeights
from pizero.checkpoints.lerobot.keys import NORMALIZE, UNNORMALIZE, Step
from pizero.data.norm_stats import LEROBOT_EPSILON, FieldStats, Mode, NormStats, StatsError

STATE, ACTION = "observation.state", "action"
MODES: dict[str, Mode] = {"MEAN_STD": "zscore", "QUANTILES": "quantile"}
_RANGES = {"QUANTILES": ("q01", "q99"), "MIN_MAX": ("min", "max"), "QUANTILE10": ("q10", "q90")}
"""Modes that scale a range to [-1, 1], and its ends."""
_STATISTICS = ("mean", "std", "q01", "q99", "min", "max")


class UnknownError(Exception):
    """A fact that the folder does not tell, or that cannot be carried; the text becomes a note."""


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
    modes = {STATE: maps[0].get("STATE", "IDENTITY"), ACTION: maps[1].get("ACTION", "IDENTITY")}
    if maps[0].get("ACTION", "IDENTITY") != modes[ACTION]:
        raise UnknownError("the two processors normalise the actions in different modes")
    if wrong := [mode for mode in modes.values() if mode not in {"IDENTITY", *MODES, *_RANGES}]:
        raise UnknownError(f"the mode {wrong[0]} is not known")
    if set(modes.values()) == {"IDENTITY"}:
        raise UnknownError("nothing is normalised")
    if maps[0].get("VISUAL", "IDENTITY") != "IDENTITY":
        raise UnknownError("images are normalised by statistics, which is not carried")
    selected = steps[0].config.get("normalize_observation_keys")
    if selected is not None and STATE not in selected:
        raise UnknownError("the state is not normalised")
    epsilons = {float(step.config.get("eps", LEROBOT_EPSILON)) for step in steps}
    tensors = [state_tensors(folder, step) for step in steps]
    actions = [_field(found, ACTION) for found in tensors]
    if len(epsilons) > 1 or actions[0].to_json() != actions[1].to_json():
        raise UnknownError("the two processors hold different statistics of the actions or epsilons")
    own = width_of(values.get("output_features"), ACTION)
    if own is not None and own != actions[0].dim:
        raise UnknownError(f"the statistics have {actions[0].dim} action dimensions, config.json {own}")
    state, epsilon = _field(tensors[0], STATE), epsilons.pop()
    if len(set(modes.values())) == 1 and modes[STATE] in MODES:
        return NormStats(MODES[modes[STATE]], state, actions[0], epsilon, "lerobot")
    notes.append(
        f"LeRobot normalises the state by {modes[STATE]} and the actions by {modes[ACTION]}; both are kept as ranges "
        "(mode quantile) that give the same numbers"
    )
    state = _as_range(state, tensors[0], STATE, modes[STATE], epsilon)
    return NormStats("quantile", state, _as_range(actions[0], tensors[1], ACTION, modes[ACTION], 0), epsilon, "lerobot")


def _as_range(stats: FieldStats, tensors: Mapping[str, Tensor], key: str, mode: str, epsilon: float) -> FieldStats:
    """With a q01 and a q99 that a range's scaling to [-1, 1] makes what `mode` makes. epsilon: added to a deviation."""
    if mode == "MEAN_STD":
        return replace(stats, q01=stats.mean - (stats.std + epsilon), q99=stats.mean + (stats.std + epsilon))
    if mode == "IDENTITY":
        return replace(stats, q01=-np.ones(stats.dim), q99=np.ones(stats.dim))
    names = [f"{key}.{end}" for end in _RANGES[mode]]
    if not set(names) <= set(tensors):
        raise UnknownError(f"the processors hold no {' and '.join(_RANGES[mode])} of {key}")
    low, high = (np.asarray(tensors[name].double().numpy()) for name in names)
    return replace(stats, q01=low, q99=high)


def state_tensors(folder: Path, step: Step) -> Mapping[str, Tensor]:
    """Of a step of a processor in this folder: statistics by `feature.statistic`; none where it has no such file."""
    return {} if step.state_file is None else SafetensorsWeights(folder, step.state_file)


def _field(tensors: Mapping[str, Tensor], key: str) -> FieldStats:
    found = {name: tensors[f"{key}.{name}"] for name in _STATISTICS if f"{key}.{name}" in tensors}
    if not {"mean", "std"} <= found.keys():
        raise UnknownError(f"the processors hold no mean and std of {key}")
    return FieldStats(**{name: np.asarray(value.double().numpy()) for name, value in found.items()})


def width_of(features: Mapping[str, Any] | None, key: str) -> int | None:
    return int(features[key]["shape"][0]) if features and key in features else None
