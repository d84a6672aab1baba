"""Normalisation statistics: computed exactly, saved as JSON together with the mode they are meant for.

Statistics of plain columns are over all frames. Statistics of relative actions are over every step of every action
chunk (the action minus the state at the chunk's start; past the episode's end the last action repeats), because that is
what the model is trained on; openpi has the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast, get_args

import numpy as np
from numpy.typing import NDArray

from pizero.data.doctor.names import dims_text
from pizero.data.relative_actions import RelativeActions
from pizero.data.window_stats import QUANTILES, Windows
from pizero.files import read_json, values_of, write_bytes
from pizero.types import Convention, UserError

Mode: TypeAlias = Literal["zscore", "quantile"]
Floats: TypeAlias = NDArray[np.float64]

EPSILON = 1e-6
LEROBOT_EPSILON = 1e-8
NEAR_CONSTANT = 1e-4
"""A spread below this, in the data's own units, counts as none."""
_LEROBOT_ONLY = ("count", "q10", "q50", "q90")
"""Statistics that nothing here is normalised with."""


class StatsError(UserError):
    """Statistics that nothing can be normalised with."""


@dataclass(frozen=True)
class FieldStats:
    """Statistics of one field, each [d] float64. Only mean and std are always known: a foreign file may lack others."""

    mean: Floats
    std: Floats
    q01: Floats | None = None
    q99: Floats | None = None
    min: Floats | None = None
    max: Floats | None = None

    def __post_init__(self) -> None:
        for name, value in self._known().items():
            if value.ndim != 1 or value.shape != self.mean.shape:
                raise StatsError(f"norm stats: {name} has shape {value.shape}, expected one number for each dimension")
            if not np.isfinite(value).all():
                raise StatsError(f"norm stats: {name} holds NaN or infinity; compute the statistics again")

    @property
    def dim(self) -> int:
        return self.mean.shape[0]

    def spread(self, mode: Mode) -> Floats:
        """[d]: std, or q99 - q01."""
        if mode == "zscore":
            return self.std
        if self.q01 is None or self.q99 is None:
            raise StatsError("norm stats: mode 'quantile' needs q01 and q99, which are missing; compute them again")
        return self.q99 - self.q01

    def to_json(self) -> dict[str, list[float]]:
        return {name: value.tolist() for name, value in self._known().items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> FieldStats:
        """Raises UserError when mean or std is missing or an unknown key is there."""
        data = {name: value for name, value in data.items() if value is not None}
        known = [field.name for field in fields(cls)]
        if not {"mean", "std"} <= data.keys() or not data.keys() <= set(known):
            raise StatsError(f"norm stats: got keys {sorted(data)}, expected mean and std, maybe more of {known}")
        return cls(**{k: np.asarray(v, dtype=np.float64) for k, v in data.items()})

    def _known(self) -> dict[str, Floats]:
        values = {field.name: cast("Floats | None", getattr(self, field.name)) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class NormStats:
    """Statistics of state and actions (relative where the embodiment says so) and how to normalise with them."""

    mode: Mode
    state: FieldStats
    actions: FieldStats
    epsilon: float = EPSILON
    convention: Convention = "openpi"

    def __post_init__(self) -> None:
        for what, value, known in (("mode", self.mode, Mode), ("convention", self.convention, Convention)):
            if value not in get_args(known):
                raise StatsError(f"norm stats: got {what} {value!r}, expected one of {get_args(known)}")
        if not 0 <= self.epsilon < float("inf"):
            raise StatsError(f"norm stats: epsilon is {self.epsilon}, expected a small number from 0 on")
        for name, stats in (("state", self.state), ("actions", self.actions)):
            if (stats.spread(self.mode) + self.epsilon < 0).any():
                raise StatsError(f"norm stats: {name} has a negative spread (std, or q99 - q01); compute them again")

    def save(self, path: Path | str) -> None:
        """Writes JSON; the file appears whole or not at all."""
        data = {"mode": self.mode, "epsilon": self.epsilon, "convention": self.convention}
        stats = {"state": self.state.to_json(), "actions": self.actions.to_json()}
        write_bytes(Path(path), json.dumps(data | {"norm_stats": stats}, indent=1).encode())

    @classmethod
    def load(
        cls, path: Path | str, mode: Mode | None = None, keys: tuple[str, str] = ("observation.state", "action")
    ) -> NormStats:
        """Reads our file, openpi's norm_stats.json or LeRobot's stats.json; the latter two do not say their mode.

        mode: of a file that does not say it; another than the file's is refused. keys: state and actions in LeRobot's.
        """
        stored = read_json(Path(path))
        stats, names = stored.get("norm_stats"), ("state", "actions")
        if stats is None and set(keys) <= stored.keys():
            stats, names = stored, keys
        if not isinstance(stats, dict) or not set(names) <= stats.keys():
            raise UserError(
                f"norm stats: {path} has neither norm_stats/state and norm_stats/actions nor LeRobot's "
                f"{' and '.join(keys)}; is it another file?"
            )
        found = stored.get("mode", mode)
        if found is None:
            raise UserError(
                f'norm stats: {path} does not say its mode; add "mode": "zscore" or "mode": "quantile" to it'
            )
        if mode is not None and found != mode:
            raise UserError(f"norm stats: {path} was made for mode {found!r}, but {mode!r} was asked for")
        try:
            with values_of(path):
                of_field = [cast("Mapping[str, Any]", stats[name]) for name in names]
                state, actions = (
                    FieldStats.from_json({k: v for k, v in values.items() if k not in _LEROBOT_ONLY})
                    for values in of_field
                )
                epsilon, convention = float(stored.get("epsilon", EPSILON)), stored.get("convention", "openpi")
                return cls(found, state, actions, epsilon, convention)
        except StatsError as error:
            raise StatsError(f"{path} cannot be used ({error})") from error

    def fitted(self, state_dim: int, action_dim: int) -> NormStats:
        """The same for a robot of so many dimensions.

        UserError when there are fewer, or when one that the robot lacks moves. Some of openpi's files are padded.
        """
        cut: list[FieldStats] = []
        for name, stats, dim in (("state", self.state, state_dim), ("action", self.actions, action_dim)):
            if stats.dim < dim or (stats.std[dim:] >= NEAR_CONSTANT).any():
                raise UserError(
                    f"norm stats have {stats.dim} {name} dimensions, the robot {dim}: they are another robot's; "
                    "leave them out, or compute them with pizero norm-stats"
                )
            cut.append(FieldStats.from_json({key: value[:dim] for key, value in stats.to_json().items()}))
        return replace(self, state=cut[0], actions=cut[1])

    def in_convention(self, convention: Convention) -> NormStats:
        """Statistics that normalise in `convention` as these do in theirs; what the epsilons differ by goes into them.

        Exact on the way in; on the way out a z-score's scale is 1e-8 off, in the data's units.
        """
        if convention == self.convention:
            return self
        epsilon = EPSILON if convention == "openpi" else LEROBOT_EPSILON

        def moved(stats: FieldStats) -> FieldStats:
            if self.mode == "zscore":
                return replace(stats, std=stats.std + (self.epsilon - epsilon))
            assert stats.q01 is not None  # spread() refuses statistics without quantiles
            spread = stats.spread("quantile")
            if convention == "lerobot":
                return replace(stats, q99=stats.q01 + (spread + self.epsilon))
            return replace(stats, q99=stats.q01 + (np.where(spread == 0, self.epsilon, spread) - epsilon))

        return NormStats(self.mode, moved(self.state), moved(self.actions), epsilon, convention)


def field_stats(values: NDArray[np.floating[Any]]) -> FieldStats:
    """Exact statistics of `values` [n, d] over n. Raises UserError when a value is NaN or infinite."""
    if values.ndim != 2 or not len(values):
        raise UserError(f"norm stats: got values of shape {values.shape}, expected [n, d] with n of at least 1")
    bad = np.flatnonzero(~np.isfinite(values).all(axis=0))
    if bad.size:
        raise UserError(f"norm stats: dimensions {bad.tolist()} hold NaN or infinity; repair or drop those frames")
    found: list[tuple[float, ...]] = []
    for column in values.T:  # one after the other: less memory, and faster
        exact = column.astype(np.float64)
        q01, q99 = np.quantile(exact, QUANTILES)
        found.append((exact.mean(), exact.std(), q01, q99, exact.min(), exact.max()))
    return FieldStats(*np.array(found, dtype=np.float64).T.copy())


def compute_norm_stats(
    state: NDArray[np.floating[Any]],
    actions: NDArray[np.floating[Any]],
    mode: Mode,
    *,
    relative: RelativeActions | None = None,
    horizon: int = 1,
    episode_lengths: Sequence[int] | None = None,
) -> NormStats:
    """Statistics of state [F, ds] and actions [F, da], all episodes one after the other.

    With `relative`, the statistics of its dimensions are over action chunks of `horizon` steps that start at every
    frame, so `episode_lengths` (frames, summing to F) is needed; see `window_stats`.
    """
    if len(state) != len(actions):
        raise UserError(f"norm stats: got {len(state)} states and {len(actions)} actions, expected as many of each")
    stats = NormStats(mode, field_stats(state), field_stats(actions))
    pairs = [] if relative is None else relative.index_pairs(actions.shape[1], state.shape[1])
    if not pairs:
        return stats
    if episode_lengths is None or sum(episode_lengths) != len(actions):
        raise UserError(f"norm stats: relative actions need episode lengths that sum to the {len(actions)} frames")
    windows = Windows.of(episode_lengths, horizon)
    merged = {name: np.array(value) for name, value in stats.actions.to_json().items()}
    for action_index, state_index in pairs:
        for name, value in windows.stats(actions[:, action_index], state[:, state_index]).items():
            merged[name][action_index] = value
    return NormStats(mode, stats.state, FieldStats(**merged))


def near_constant_dimensions(
    stats: NormStats, state_names: Sequence[str] | None = None, action_names: Sequence[str] | None = None
) -> list[str]:
    """A line for all dimensions whose spread is (almost) nothing in one way, with what to do about it.

    state_names, action_names: of the dimensions; they are numbered where there are none.
    """
    lines: list[str] = []
    label = "standard deviation" if stats.mode == "zscore" else "range from the 1 % to the 99 % quantile"
    for name, values, names in (("state", stats.state, state_names), ("action", stats.actions, action_names)):
        spread = values.spread(stats.mode)
        median = float(np.median(spread))
        kinds: dict[str, list[int]] = {}
        for index, value in enumerate(spread.tolist()):
            if value < NEAR_CONSTANT and values.std[index] >= NEAR_CONSTANT:
                advice = "though they do move, rarely: use mode 'zscore', or they are cut off"
            elif value < NEAR_CONSTANT:
                advice = f"nearly constant: check the recording, or leave them out with {name}_dims in the robot file"
            elif value < 1e-3 * median:
                advice = (
                    f"the others' median is {median:.3g}: parked joints and other units look so; leave parked ones out "
                    f"with {name}_dims in the robot file"
                )
            else:
                continue
            kinds.setdefault(advice, []).append(index)
        for advice, dims in kinds.items():
            least, greatest = f"{spread[dims].min():.3g}", f"{spread[dims].max():.3g}"
            between = least if least == greatest else f"{least} to {greatest}"
            lines.append(f"{dims_text(name, dims, names)}: {label} {between}, {advice}")
    return lines
