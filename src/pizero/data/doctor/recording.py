"""Faults of a recording: what was assumed to read it, clock, length of episodes, prompts."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pizero.data.datasets.layout import episodes_text
from pizero.data.doctor.finding import Finding, Subject

JITTER = 0.25
"""Of a frame's time, that a time stamp may be off."""
FEW = 0.05
"""Of the episodes, that may be shorter than a chunk without harm."""


def check_recording(subject: Subject) -> Iterator[Finding]:
    for note in subject.dataset.notes:
        yield Finding("note", "description", "meta", note, "nothing, if that is right; else correct the dataset")
    yield from _clock(subject)
    yield from _lengths(subject)
    yield from _prompts(subject)


def _clock(subject: Subject) -> Iterator[Finding]:
    dataset = subject.dataset
    steps = [np.diff(dataset.timestamp[frames].astype(np.float64)) for frames in subject.episode_slices()]
    period = 1 / dataset.fps
    everywhere = np.concatenate(steps) if steps else np.zeros(0)
    if not everywhere.size:
        return
    median = float(np.median(everywhere))
    if abs(median - period) > JITTER * period:
        rate = f"{1 / median:.4g} per second" if median > 0 else "with a clock that stands still"
        yield Finding(
            "error", "frame rate", "timestamp", f"meta/info.json says fps {dataset.fps:g}, the frames come {rate}",
            "correct fps, or the time stamps: chunks would be played at the wrong speed",
        )  # fmt: skip
        return
    gaps = {
        int(dataset.episodes[number]): float(np.abs(found - period).max())
        for number, found in enumerate(steps)
        if found.size and np.abs(found - period).max() > JITTER * period
    }
    if gaps:
        worst = max(gaps, key=lambda episode: gaps[episode])
        yield Finding(
            "warning", "gap", episodes_text(gaps),
            f"time stamps are not {period:.4g} s apart; at worst {gaps[worst]:.3g} s off, in episode {worst}",
            "frames were dropped while recording: cut the episode there, or leave it out",
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
