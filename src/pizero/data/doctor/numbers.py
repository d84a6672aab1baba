"""Faults of single columns: not finite, hardly moving, outliers, stored statistics that are not the data's."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pizero.data.doctor.finding import Finding, Subject
from pizero.data.norm_stats import NEAR_CONSTANT

OUTLIER = 5.0
"""Ranges from the 1 % to the 99 % quantile that a value may lie beyond them."""
STATS_TOLERANCE = 0.05
"""Of a standard deviation, between stored and true mean; of itself, between stored and true deviation."""


def check_numbers(subject: Subject) -> Iterator[Finding]:
    for name, values in subject.columns.items():
        yield from _not_finite(subject, name, values)
        usable = values[np.isfinite(values).all(axis=1)]
        if len(usable):
            q01, q99 = np.quantile(usable.astype(np.float64), (0.01, 0.99), axis=0)
            yield from _spreads(name, usable, q99 - q01)
            yield from _outliers(subject, name, values, q01, q99)
            key = subject.embodiment.state_key if name == "state" else subject.embodiment.action_key
            first = 0
            for part in (key,) if isinstance(key, str) else key:
                width = subject.dataset.column(part).shape[1]
                yield from _stored_statistics(subject, name, part, usable[:, first : first + width], first)
                first += width


def _not_finite(subject: Subject, name: str, values: NDArray[np.float32]) -> Iterator[Finding]:
    for dim in np.flatnonzero(~np.isfinite(values).all(axis=0)).tolist():
        bad = np.flatnonzero(~np.isfinite(values[:, dim]))
        episodes = len(np.unique(subject.dataset.episode_index[bad]))
        yield Finding(
            "error", "not finite", f"{name}[{dim}]",
            f"NaN or infinity in {len(bad)} frames of {episodes} episodes, first in {subject.place(int(bad[0]))}",
            "repair these frames, or leave their episodes out",
        )  # fmt: skip


def _spreads(name: str, values: NDArray[np.float32], spread: NDArray[np.float64]) -> Iterator[Finding]:
    deviations = values.astype(np.float64).std(axis=0)
    for dim, (deviation, between) in enumerate(zip(deviations.tolist(), spread.tolist(), strict=True)):
        if deviation < NEAR_CONSTANT:
            yield Finding(
                "warning", "near constant", f"{name}[{dim}]", f"standard deviation {deviation:.2g}",
                "if it should move, the recording is broken; else leave it out of the robot's columns",
            )  # fmt: skip
        elif between < NEAR_CONSTANT:
            moving = float((np.abs(values[:, dim] - np.median(values[:, dim])) > NEAR_CONSTANT).mean())
            yield Finding(
                "warning", "rare motion", f"{name}[{dim}]",
                f"the 1 % and 99 % quantiles are equal, though {100 * moving:.2g} % of the frames differ",
                "quantile normalisation would cut its motion off: use mode zscore, or record more of it",
            )  # fmt: skip


def _outliers(
    subject: Subject, name: str, values: NDArray[np.float32], q01: NDArray[np.float64], q99: NDArray[np.float64]
) -> Iterator[Finding]:
    scale = q99 - q01
    with np.errstate(invalid="ignore"):
        beyond = np.maximum(values - q99, q01 - values) / np.maximum(scale, NEAR_CONSTANT)
    beyond = np.where(np.isfinite(beyond), beyond, 0.0)
    for dim in np.flatnonzero((beyond.max(axis=0) > OUTLIER) & (scale >= NEAR_CONSTANT)).tolist():
        worst = int(beyond[:, dim].argmax())
        count = int((beyond[:, dim] > OUTLIER).sum())
        yield Finding(
            "warning", "outlier", f"{name}[{dim}]",
            f"{count} frames far outside of {q01[dim]:.4g} to {q99[dim]:.4g}, where 98 % lie: "
            f"{values[worst, dim]:.4g} in {subject.place(worst)}",
            "look at that episode; a broken sensor or an emergency stop teaches the policy to jump",
        )  # fmt: skip


def _stored_statistics(
    subject: Subject, name: str, key: str, values: NDArray[np.float32], offset: int
) -> Iterator[Finding]:
    """Of the column `key`, whose dimensions begin at `offset` in the robot's state or action `name`."""
    stored = subject.dataset.stats.get(key)
    if stored is None or not {"mean", "std"} <= set(stored):
        return
    if "count" in stored and int(np.ravel(stored["count"])[0]) != subject.dataset.num_frames:
        return  # of other episodes than those examined
    mean, deviation = (np.asarray(stored[k], dtype=np.float64).ravel() for k in ("mean", "std"))
    if len(mean) != values.shape[1] or len(deviation) != values.shape[1]:
        yield Finding(
            "warning", "stored statistics", name, f"meta/stats.json has {len(mean)} dimensions of {key}, the data "
            f"{values.shape[1]}", "write it again with the dataset's own tool; `pizero` computes its own",
        )  # fmt: skip
        return
    true_mean, true_std = values.astype(np.float64).mean(axis=0), values.astype(np.float64).std(axis=0)
    scale = np.maximum(true_std, NEAR_CONSTANT)
    off = (np.abs(mean - true_mean) / scale > STATS_TOLERANCE) | (
        np.abs(deviation - true_std) / scale > STATS_TOLERANCE
    )
    if (dims := np.flatnonzero(off)).size:
        first = int(dims[0])
        yield Finding(
            "warning", "stored statistics", f"{name}[{', '.join(map(str, (dims + offset).tolist()))}]",
            f"meta/stats.json says {mean[first]:.4g} ± {deviation[first]:.4g} for dimension {first} of {key}, the data "
            f"{true_mean[first]:.4g} ± {true_std[first]:.4g}",
            "other tools will normalise wrongly: write it again; `pizero norm-stats` computes its own",
        )  # fmt: skip
