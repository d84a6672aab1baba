"""Faults of a recording: what was assumed to read it, clock, length of episodes, prompts."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pizero.data.datasets.meta.frame_rate import stamp_unit
from pizero.data.datasets.meta.layout import episodes_text
from pizero.data.doctor.finding import Finding, Subject

JITTER = 0.25
"""Of a frame's time, that a time stamp may be off."""
REGULAR = 0.7
"""Of the steps between time stamps, that must be alike for them to be a clock."""
FEW_GAPS = 1 / 3
"""Of the episodes."""
GAP = 0.75
"""Of a frame's time, by which a time stamp is late where a frame may be missing."""
FEW = 0.05
"""Of the episodes, that may be shorter than a chunk without harm."""


def check_recording(subject: Subject) -> Iterator[Finding]:
    for note in subject.dataset.notes:
        yield Finding("note", "description", "meta", note, "nothing, if that is right; else correct the dataset")
    yield from _clock(subject)
    yield from _lengths(subject)
    yield from _prompts(subject)


def _clock(subject: Subject) -> Iterator[Finding]:
    """Where the clock is one: its steps are mostly alike. Others are reported when the dataset is opened."""
    dataset = subject.dataset
    steps = [np.diff(dataset.timestamp[frames].astype(np.float64)) for frames in subject.episode_slices()]
    period = 1 / dataset.fps
    everywhere = np.concatenate(steps) if steps else np.zeros(0)
    everywhere = everywhere[np.isfinite(everywhere)]
    if not everywhere.size:
        return
    unit = stamp_unit(float(np.median(everywhere)))[0]
    everywhere, steps = everywhere / unit, [found / unit for found in steps]
    median = float(np.median(everywhere))
    if not median > 0 or float((np.abs(everywhere - median) <= JITTER * median).mean()) < REGULAR:
        return
    if abs(median - period) > JITTER * period:
        yield Finding(
            "error", "frame rate", "timestamp",
            f"meta/info.json says fps {dataset.fps:g}, the frames come {1 / median:.4g} per second",
            "correct the one that is wrong: chunks would be played at the wrong speed",
        )  # fmt: skip
        return
    gaps = {
        int(dataset.episodes[number]): float((found - median).max())
        for number, found in enumerate(steps)
        if found.size and (found - median).max() > GAP * median
    }
    if gaps and len(gaps) <= FEW_GAPS * dataset.num_episodes:  # more of them are a clock that is uneven
        worst = max(gaps, key=lambda episode: gaps[episode])
        yield Finding(
            "warning", "gap", episodes_text(gaps),
            f"in {len(gaps)} of {dataset.num_episodes} episodes a time stamp is late; most, by {gaps[worst]:.3g} s "
            f"where frames are {median:.4g} s apart, in episode {worst}",
            "look at it there: if frames were dropped, the robot jumps in the data; leave the episode out",
        )  # fmt: skip


def _lengths(subject: Subject) -> Iterator[Finding]:
    dataset, horizon = subject.dataset, subject.horizon
    short = dataset.episodes[dataset.episode_lengths < horizon].tolist()
    if short:
        yield Finding(
            "warning" if len(short) > FEW * dataset.num_episodes else "note", "short episode", episodes_text(short),
            f"{len(short)} of {dataset.num_episodes} have less than the {horizon} frames of an action chunk, the "
            f"shortest {int(dataset.episode_lengths.min())}",
            "their chunks are mostly padding (the last action repeated): choose a shorter horizon, or leave them out",
        )  # fmt: skip


def _prompts(subject: Subject) -> Iterator[Finding]:
    dataset = subject.dataset
    robot = subject.embodiment
    texts = dataset.prompts(np.arange(dataset.num_frames), robot.prompt_key, robot.default_prompt)
    different = set(texts)
    empty = {text for text in different if not text.strip()}
    if empty:
        episodes = np.unique(dataset.episode_index[[text in empty for text in texts]]).tolist()
        yield Finding(
            "error", "no prompt", episodes_text(episodes), f"the text of {robot.prompt_key!r} is empty",
            "write what the robot does there into the dataset, or give the embodiment a default_prompt",
        )  # fmt: skip
    if len({text.strip() for text in different}) == 1 and not empty:
        text = next(iter(different)).strip()
        yield Finding(
            "note", "one prompt", "all episodes", f"every frame has the prompt {text[:60]!r}",
            "fine for one task; the policy then ignores its prompt",
        )  # fmt: skip
