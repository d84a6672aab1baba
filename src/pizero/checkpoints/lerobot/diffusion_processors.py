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
from pizero.checkpoints.lerobot.stats import (
    ACTION,
    IDENTITY,
    STATE,
    Feature,
    UnknownError,
    state_tensors,
    stats_in_modes,
)
from pizero.data.norm_stats import LEROBOT_EPSILON, NormStats
from pizero.types import UserError


@dataclass(frozen=True)
class Normaliser:
    """What a saved processor pipeline normalises: mode by kind of feature, statistics by `feature.statistic`."""

    modes: Mapping[str, object]
    features: set[str]
    stats: Mapping[str, Tensor]
    renamed: bool

    def feature(self, key: str, size: int) -> Feature:
        """The statistics of a feature of `size` numbers; none of one that is not listed. UserError for other sizes."""
        found = {name: value.flatten() for name, value in Feature.of(self.stats, key).known.items()}
        if wrong := sorted(name for name, value in found.items() if value.shape != (size,)):
            raise UserError(
                f"the statistics of {key} are not {size} numbers: {', '.join(wrong)}; copy the checkpoint again"
            )
        return Feature(key, found if key in self.features else {})


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
    mode = before.modes.get("VISUAL", IDENTITY)
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    for key in keys:
        feature = before.feature(key, 3)
        if mode == IDENTITY or not feature.known:  # LeRobot leaves a feature without statistics as it is
            pairs.append((np.zeros(3), np.ones(3)))
            continue
        try:
            low, high = feature.range(mode, LEROBOT_EPSILON)
        except UnknownError as error:
            raise UserError(f"the normalisation {mode!r} of {key} cannot be used: {error}") from None
        high = np.where(high == low, low + LEROBOT_EPSILON, high)
        pairs.append(((low + high) / 2, (high - low) / 2))
    mean, std = ([tuple(map(float, pair[index])) for pair in pairs] for index in (0, 1))
    return tuple(mean), tuple(std)  # pyright: ignore[reportReturnType]


def norm_stats(
    state_dim: int, action_dim: int, before: Normaliser, after: Normaliser
) -> tuple[NormStats | None, list[str]]:
    """State as it comes in and action as it goes out; None with a note where they are unknown."""
    state, action = before.feature(STATE, state_dim), after.feature(ACTION, action_dim)
    modes = before.modes.get("STATE", IDENTITY), after.modes.get("ACTION", IDENTITY)
    try:
        return stats_in_modes(state, action, modes, LEROBOT_EPSILON), []
    except UnknownError as error:
        return None, [f"the statistics of state ({modes[0]}) and action ({modes[1]}) are unknown: {error}"]
