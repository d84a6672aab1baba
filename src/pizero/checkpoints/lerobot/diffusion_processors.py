"""The processors around LeRobot's diffusion policies: what they normalise, and with which statistics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from pizero.baseline.lerobot_style import Colours
from pizero.checkpoints.files.json_file import Settings, short
from pizero.checkpoints.lerobot.keys import NORMALIZE, POSTPROCESSOR, PREPROCESSOR, RENAME, UNNORMALIZE, stored_steps
from pizero.checkpoints.lerobot.stats import ACTION, STATE, state_tensors
from pizero.data.norm_stats import LEROBOT_EPSILON, FieldStats, NormStats
from pizero.types import UserError


@dataclass(frozen=True)
class Normaliser:
    """What a saved processor pipeline normalises: mode by kind of feature, statistics by `feature.statistic`."""

    modes: Mapping[str, object]
    features: set[str]
    stats: Mapping[str, Tensor]
    renamed: bool

    def field(self, key: str, size: int) -> dict[str, np.ndarray]:
        """mean, std, min, max, q01, q99 of one feature, each [size], those that are known; none if it is not listed."""
        names = ("mean", "std", "min", "max", "q01", "q99") if key in self.features else ()
        stats = {n: self.stats[f"{key}.{n}"].double().flatten().numpy() for n in names if f"{key}.{n}" in self.stats}
        if wrong := [name for name, value in stats.items() if value.shape != (size,)]:
            raise UserError(
                f"the statistics of {key} are not {size} numbers: {', '.join(wrong)}; copy the checkpoint again"
            )
        return stats


_NORMALISERS = {PREPROCESSOR: NORMALIZE, POSTPROCESSOR: UNNORMALIZE}
_OTHER_STEPS = {RENAME, "to_batch_processor", "device_processor"}


def read_normaliser(folder: Path, name: str) -> Normaliser:
    """Of `<name>.json`, which must hold exactly one; a step that is not known raises UserError."""
    path = folder / f"{name}.json"
    found: Normaliser | None = None
    renamed = False
    for index, step in enumerate(stored_steps(path)):
        where = f"{path}: step {index}"
        if step.name not in {*_OTHER_STEPS, _NORMALISERS[name]} or (found and step.name == _NORMALISERS[name]):
            raise UserError(f"{where} is {short(step.name)}, which LeRobot 0.6.1 does not put there; not supported")
        if step.name == RENAME:
            renamed |= bool(step.config.get("rename_map"))
        if step.name == _NORMALISERS[name]:
            own = Settings(step.config, f"{where}: config")
            if set(own) != {"eps", "features", "norm_map"} or own.real("eps") != LEROBOT_EPSILON:
                raise UserError(f"{own.where}: expected features, norm_map and an eps of {LEROBOT_EPSILON} alone")
            features = set(own.inner("features"))
            found = Normaliser(own.inner("norm_map").values, features, state_tensors(folder, step), False)
    if found is None:
        raise UserError(f"{path} has no normaliser; copy the checkpoint again")
    return replace(found, renamed=renamed)


def image_statistics(before: Normaliser, keys: list[str]) -> tuple[tuple[Colours, ...], tuple[Colours, ...]]:
    """(mean, std) of every camera, such that (pixel - mean) / std is what LeRobot gives its encoder."""
    mode = before.modes.get("VISUAL", "IDENTITY")
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    for key in keys:
        known = before.field(key, 3)
        if mode == "IDENTITY" or not known:  # LeRobot leaves a feature without statistics as it is
            pairs.append((np.zeros(3), np.ones(3)))
        elif mode == "MEAN_STD" and {"mean", "std"} <= known.keys():
            pairs.append((known["mean"], known["std"] + LEROBOT_EPSILON))
        elif mode == "MIN_MAX" and {"min", "max"} <= known.keys():
            low, high = known["min"], _above(known["min"], known["max"])
            pairs.append(((low + high) / 2, (high - low) / 2))
        else:
            raise UserError(f"the normalisation {mode!r} of {key} is not supported, or its statistics are missing")
    mean, std = ([tuple(map(float, pair[index])) for pair in pairs] for index in (0, 1))
    return tuple(mean), tuple(std)  # pyright: ignore[reportReturnType]


def norm_stats(
    state_dim: int, action_dim: int, before: Normaliser, after: Normaliser
) -> tuple[NormStats | None, list[str]]:
    """State as it comes in and action as it goes out; None with a note where our statistics cannot say it."""
    state, action = before.field(STATE, state_dim), after.field(ACTION, action_dim)
    modes = before.modes.get("STATE"), after.modes.get("ACTION")
    needed = {"MEAN_STD": ("mean", "std"), "MIN_MAX": ("min", "max"), "QUANTILES": ("q01", "q99")}
    low_high = needed.get(str(modes[0]))
    required = {"mean", "std", *(low_high or ())}
    if modes[0] != modes[1] or low_high is None or not (required <= state.keys() and required <= action.keys()):
        return None, [
            f"statistics of state ({modes[0]}) and action ({modes[1]}) are unknown: both must be there, and be "
            "normalised in one and the same way, MEAN_STD, MIN_MAX or QUANTILES"
        ]
    if modes[0] == "MEAN_STD":
        return NormStats("zscore", FieldStats(**state), FieldStats(**action), epsilon=LEROBOT_EPSILON), []
    fields = []
    for known in (state, action):  # a range from the least to the greatest value is one of quantiles 0 and 1
        low, high = (known[name] for name in low_high)
        fields.append(FieldStats(**{**known, "q01": low, "q99": _above(low, high)}))
    return NormStats("quantile", *fields, epsilon=0.0), []


def _above(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """`high`, or a little above `low` where the range is 0."""
    return np.where(high == low, low + LEROBOT_EPSILON, high)
