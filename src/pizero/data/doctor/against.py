"""Faults between a dataset and the checkpoint that is to be trained on it, or run on its robot."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pizero.data.doctor.finding import Finding, Subject
from pizero.data.doctor.names import dim_text, dims_text
from pizero.data.norm_stats import NEAR_CONSTANT, FieldStats, compute_norm_stats
from pizero.data.pipeline import Pipeline
from pizero.data.relative_actions import RelativeActions

FAR = 3.0
"""Of the checkpoint's standard deviations, from its mean to the data's; and between both deviations, as a ratio."""


def check_against(subject: Subject, pipeline: Pipeline) -> Iterator[Finding]:
    """`subject` must have the pipeline's embodiment."""
    mismatches = list(_dims(subject, pipeline))
    yield from mismatches
    if not mismatches and subject.finite.any():
        yield from _statistics(subject, pipeline)


def _dims(subject: Subject, pipeline: Pipeline) -> Iterator[Finding]:
    for name, values, expected in (
        ("state", subject.state, pipeline.robot_state_dim), ("action", subject.actions, pipeline.robot_action_dim),
    ):  # fmt: skip
        if values.shape[1] != expected:
            yield Finding(
                "error", "dimensions", name, f"the dataset has {values.shape[1]}, the checkpoint's robot {expected}",
                "give the dataset's own robot with --embodiment, or another checkpoint",
            )  # fmt: skip


def _statistics(subject: Subject, pipeline: Pipeline) -> Iterator[Finding]:
    relative = pipeline.embodiment.relative
    data = _data_stats(subject, relative)
    stats = pipeline.norm_stats
    for name, theirs, found in (("state", stats.state, data[0]), ("action", stats.actions, data[1])):
        far = misfit(theirs, found)
        bad = np.flatnonzero(far > FAR)
        if bad.size and name == "action" and (advice := _other_kind(subject, stats.actions, far, relative)):
            yield Finding("error", "absolute or relative", dims_text(name, bad.tolist(), subject.names(name)), *advice)
        elif bad.size:
            dim = int(bad[0])
            yield Finding(
                "warning", "statistics", dims_text(name, bad.tolist(), subject.names(name)),
                f"the checkpoint's {theirs.mean[dim]:.4g} ± {theirs.std[dim]:.4g} for "
                f"{dim_text(name, dim, subject.names(name))}, the data {found.mean[dim]:.4g} ± {found.std[dim]:.4g}",
                "other units, another robot, or another order of dimensions: train with the data's own statistics",
            )  # fmt: skip


def _data_stats(subject: Subject, relative: RelativeActions | None) -> tuple[FieldStats, FieldStats]:
    """Of state and actions in the model's numbers, without the frames that are not finite."""
    finite = subject.finite
    lengths = [int(finite[frames].sum()) for frames in subject.episode_slices()]
    found = compute_norm_stats(
        subject.model_state[finite], subject.model_actions[finite], "zscore", relative=relative,
        horizon=subject.horizon, episode_lengths=[length for length in lengths if length],
    )  # fmt: skip
    return found.state, found.actions


def misfit(theirs: FieldStats, found: FieldStats) -> NDArray[np.float64]:
    """[d]: the larger of mean distance in deviations and ratio of deviations; 0 where neither moves."""
    dims = min(theirs.dim, found.dim)
    a, b = np.maximum(theirs.std[:dims], NEAR_CONSTANT), np.maximum(found.std[:dims], NEAR_CONSTANT)
    distance = np.abs(theirs.mean[:dims] - found.mean[:dims]) / a
    ratio = np.maximum(a / b, b / a)
    return np.maximum(distance, ratio)


def _other_kind(
    subject: Subject, theirs: FieldStats, far: NDArray[np.float64], relative: RelativeActions
) -> tuple[str, str] | None:
    """(evidence, advice) where the checkpoint's statistics fit the data once its actions are of the other kind."""
    widths = subject.actions.shape[1], subject.state.shape[1]
    masked = bool(relative.index_pairs(*widths))
    other = None if masked else replace(relative, mask=(True,) * min(widths))
    again = misfit(theirs, _data_stats(subject, other)[1])
    bad = far > FAR
    if not (again[bad] < FAR).mean() > 0.5:
        return None
    if masked:
        return (
            "the checkpoint's action statistics fit the data as it is, not made relative",
            "it was trained on absolute actions, or the data is relative already: take the relative mask away",
        )
    return (
        "the checkpoint's action statistics fit the data once it is made relative to the state",
        "it was trained on relative actions: give an embodiment with its relative mask",
    )
