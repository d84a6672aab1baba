"""Faults of single columns: not finite, hardly moving, outliers, stored statistics that are not the data's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pizero.data.datasets.meta.layout import episodes_text
from pizero.data.doctor.finding import Finding, Subject
from pizero.data.doctor.names import dim_text, dims_text
from pizero.data.norm_stats import NEAR_CONSTANT
from pizero.data.robot_columns import action_indices, state_indices

OUTLIER = 5.0
"""Ranges from the 1 % to the 99 % quantile that a value may lie beyond them."""
TINY, NOISE, ROUGH = 1e-3, 3e-2, 0.2
"""Of the usual spread: below the first a dimension is parked; below the second where it is rough as noise."""
ROOM = 32
"""State and action dimensions of the released models."""
STATS_TOLERANCE = 0.05
"""Of a standard deviation, between stored and true mean; of itself, between stored and true deviation."""


def check_numbers(subject: Subject) -> Iterator[Finding]:
    for name, values in subject.columns.items():
        yield from _not_finite(subject, name, values)
        usable = values[np.isfinite(values).all(axis=1)]
        if len(usable):
            q01, q99 = np.quantile(usable.astype(np.float64), (0.01, 0.99), axis=0)
            yield from _spreads(subject, name, usable, q99 - q01)
            yield from _outliers(subject, name, values, q01, q99)
    for key in _columns(subject):
        yield from _stored_statistics(subject, key)


def check_widths(subject: Subject) -> Iterator[Finding]:
    """Of the columns: what meta/info.json says, and what the released models have room for."""
    dataset = subject.dataset
    for key in _columns(subject):
        said: object = dataset.features[key].get("shape")
        width = dataset.column(key).shape[1]
        if said is not None and said not in (width, [width], [1, width]):
            yield Finding(
                "warning", "width", key, f"meta/info.json says shape {said}, the data has {width} numbers a frame",
                "the data counts here; correct shape and names in meta/info.json for other tools",
            )  # fmt: skip
    for name, values in subject.columns.items():
        if values.shape[1] > ROOM:
            yield Finding(
                "warning", "many dimensions", name,
                f"{values.shape[1]} dimensions; the released models have room for {ROOM}",
                f"choose some by name or number with {name}_dims in the robot file, or train with --preset small, "
                "which has room for all",
            )  # fmt: skip


def _columns(subject: Subject) -> list[str]:
    """Of the robot, each once."""
    keys = subject.embodiment.state_key, subject.embodiment.action_key
    return list(dict.fromkeys(part for key in keys for part in ((key,) if isinstance(key, str) else key)))


def _not_finite(subject: Subject, name: str, values: NDArray[np.float32]) -> Iterator[Finding]:
    dims = np.flatnonzero(~np.isfinite(values).all(axis=0)).tolist()
    if dims:
        bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
        episodes = np.unique(subject.dataset.episode_index[bad]).tolist()
        yield Finding(
            "error", "not finite", dims_text(name, dims, subject.names(name)),
            f"NaN or infinity in {len(bad)} frames of {len(episodes)} episodes ({episodes_text(episodes)}), first in "
            f"{subject.place(int(bad[0]))}", "repair these frames, or leave their episodes out",
        )  # fmt: skip


def _spreads(
    subject: Subject, name: str, values: NDArray[np.float32], between: NDArray[np.float64]
) -> Iterator[Finding]:
    """One finding for all dimensions of a kind. between [d]: from the 1 % to the 99 % quantile."""
    names = subject.names(name)
    deviations = values.astype(np.float64).std(axis=0)
    moving = deviations >= NEAR_CONSTANT
    often = between[moving & (between >= NEAR_CONSTANT)]
    usual = float(np.median(often)) if len(often) else 0.0
    small = deviations > (np.inf if moving.any() else 1e-2 * deviations.max())  # in units in which all is small
    still = np.flatnonzero(~moving & ~small).tolist()
    often_moving = np.flatnonzero(moving & (between >= NEAR_CONSTANT)).tolist()
    parked = [dim for dim in often_moving if _parked(subject, name, dim, float(between[dim]), usual)]
    without = _without(subject, name, {*still, *parked})
    if still:
        yield Finding(
            "warning", "near constant", dims_text(name, still, names),
            f"standard deviation {_range_text(deviations[still])}",
            f"if they should move, the recording is broken; else leave them out: {without}",
        )  # fmt: skip
    if small.any():
        yield Finding(
            "warning", "small units", dims_text(name, np.flatnonzero(small).tolist(), names),
            f"all dimensions move by less than {NEAR_CONSTANT:g}: standard deviation {_range_text(deviations[small])}",
            "so small a spread counts as none when it is normalised: give the robot file a conversion to larger units",
        )  # fmt: skip
    rare = np.flatnonzero(moving & (between < NEAR_CONSTANT)).tolist()
    if rare:
        share = [float((np.abs(values[:, dim] - np.median(values[:, dim])) > NEAR_CONSTANT).mean()) for dim in rare]
        yield Finding(
            "warning", "rare motion", dims_text(name, rare, names),
            "the 1 % and 99 % quantiles are equal, though "
            f"{_range_text(100 * np.array(share))} % of the frames differ",
            "quantile normalisation would cut its motion off: use mode zscore, or record more of it",
        )  # fmt: skip
    if parked:
        yield Finding(
            "warning", "hardly moves", dims_text(name, parked, names),
            f"98 % of the frames lie within {_range_text(between[parked])}, those of the other dimensions within "
            f"{usual:.2g}",
            "if the joint was parked, its noise is blown up to a whole motion when it is normalised (with quantiles "
            f"most of all): leave it out: {without}; if its units are others, nothing",
        )  # fmt: skip


def _without(subject: Subject, name: str, dims: set[int]) -> str:
    """What to write into the robot file to leave dimensions out: the numbers of the rest, in the columns."""
    find = state_indices if name == "state" else action_indices
    width = subject.columns[name].shape[1]
    indices = find(subject.dataset, subject.embodiment) or list(range(width))
    rest = [indices[dim] for dim in range(width) if dim not in dims]
    text = f"{name}_dims = {rest}" if rest else f"{name}_dims"
    return f"{text} in the robot file" + (" (the robot then holds them on its own)" if name == "action" else "")


def _range_text(values: NDArray[np.float64]) -> str:
    least, greatest = f"{values.min():.2g}", f"{values.max():.2g}"
    return least if least == greatest else f"{least} to {greatest}"


def _parked(subject: Subject, name: str, dim: int, between: float, usual: float) -> bool:
    """Whether a dimension moves by so little beside the others that it is noise. Grippers have units of their own."""
    meanings = subject.state_meanings if name == "state" else subject.action_meanings
    if between >= NOISE * usual or (meanings is not None and meanings[dim].is_gripper):
        return False
    return between < TINY * usual or _roughness(subject, subject.columns[name][:, dim]) > ROUGH


def _roughness(subject: Subject, values: NDArray[np.float32]) -> float:
    """1 for noise, near 0 for a movement: half the mean squared step, of the variance within episodes."""
    steps = variance = 0.0
    for frames in subject.episode_slices():
        own = values[frames][subject.finite[frames]].astype(np.float64)
        if len(own) > 1:
            steps += float((np.diff(own) ** 2).sum()) / 2
            variance += float(((own - own.mean()) ** 2).sum())
    return steps / variance if variance > 0 else 0.0


def _outliers(
    subject: Subject, name: str, values: NDArray[np.float32], q01: NDArray[np.float64], q99: NDArray[np.float64]
) -> Iterator[Finding]:
    names = subject.names(name)
    scale = q99 - q01
    with np.errstate(invalid="ignore"):
        beyond = np.maximum(values - q99, q01 - values) / np.maximum(scale, NEAR_CONSTANT)
    beyond = np.where(np.isfinite(beyond), beyond, 0.0)
    dims = np.flatnonzero((beyond.max(axis=0) > OUTLIER) & (scale >= NEAR_CONSTANT)).tolist()
    if dims:
        worst_dim = max(dims, key=lambda dim: float(beyond[:, dim].max()))
        worst = int(beyond[:, worst_dim].argmax())
        count = int((beyond[:, dims] > OUTLIER).any(axis=1).sum())
        yield Finding(
            "warning", "outlier", dims_text(name, dims, names),
            f"{count} frame{'s' if count > 1 else ''} far outside of where 98 % lie; "
            f"{dim_text(name, worst_dim, names)} is {values[worst, worst_dim]:.4g} in {subject.place(worst)}, else "
            f"{q01[worst_dim]:.4g} to {q99[worst_dim]:.4g}",
            "look at that episode; a broken sensor or an emergency stop teaches the policy to jump",
        )  # fmt: skip


def _stored_statistics(subject: Subject, key: str) -> Iterator[Finding]:
    """Of a whole column, whatever the robot chooses of it."""
    stored: dict[str, Any] = subject.dataset.stats.get(key) or {}
    if not {"mean", "std"} <= set(stored):
        return
    if "count" in stored and int(np.ravel(stored["count"])[0]) != subject.dataset.num_frames:
        return  # of other episodes than those examined
    values = subject.dataset.column(key)
    values = values[np.isfinite(values).all(axis=1)]
    if not len(values):
        return
    mean, deviation = (np.asarray(stored[k], dtype=np.float64).ravel() for k in ("mean", "std"))
    if len(mean) != values.shape[1] or len(deviation) != values.shape[1]:
        yield Finding(
            "warning", "stored statistics", key, f"meta/stats.json has {len(mean)} dimensions of it, the data "
            f"{values.shape[1]}", "write it again with the dataset's own tool; `pizero` computes its own",
        )  # fmt: skip
        return
    true_mean, true_std = values.astype(np.float64).mean(axis=0), values.astype(np.float64).std(axis=0)
    scale = np.maximum(true_std, NEAR_CONSTANT)
    off = (np.abs(mean - true_mean) / scale > STATS_TOLERANCE) | (
        np.abs(deviation - true_std) / scale > STATS_TOLERANCE
    )
    if (dims := np.flatnonzero(off)).size:
        first, names = int(dims[0]), subject.dataset.names(key)
        yield Finding(
            "warning", "stored statistics", dims_text(key, dims.tolist(), names),
            f"meta/stats.json says {mean[first]:.4g} ± {deviation[first]:.4g} for {dim_text(key, first, names)}, the "
            f"data {true_mean[first]:.4g} ± {true_std[first]:.4g}",
            "other tools will normalise wrongly: write it again; `pizero norm-stats` computes its own",
        )  # fmt: skip
