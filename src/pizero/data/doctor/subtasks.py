"""Faults of a dataset's subtasks: episodes without any, overlaps, pieces that are too short or too long to be one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from pizero.data.datasets.meta.layout import episodes_text
from pizero.data.datasets.subtasks import Segment, Subtasks
from pizero.data.doctor.finding import Finding, Subject

SHORT, LONG = 0.3, 60.0
"""Seconds. A policy hardly hears a shorter one; a longer one is rather a task than a subtask."""
UNUSUAL = 8.0
"""Times the median length, from which on a piece is long for its dataset; in the other direction it is short."""
GAP = 0.02
"""Share of the frames that may have no text in episodes that have some."""


def check_subtasks(subject: Subject) -> Iterator[Finding]:
    """Nothing of a dataset that has none."""
    found = subject.dataset.subtasks
    if found is None:
        return
    yield from _missing(subject, found)
    yield from _overlaps(found)
    yield from _lengths(subject, found)
    yield from _spellings(found)


def _missing(subject: Subject, found: Subtasks) -> Iterator[Finding]:
    dataset = subject.dataset
    if found.elsewhere:
        yield Finding(
            "warning", "subtasks of no episode", episodes_text(found.elsewhere),
            f"{found.source} names {len(found.elsewhere)} episodes that the dataset does not have",
            "correct their numbers: nothing of it is used",
        )  # fmt: skip
    without = sorted(set(dataset.episodes.tolist()) - {segment.episode for segment in found.segments})
    if without:
        yield Finding(
            "warning", "no subtask", episodes_text(without),
            f"{len(without)} of {dataset.num_episodes} episodes have none in {found.source}",
            "write them, or leave the episodes out: a policy learns its words from the others alone",
        )  # fmt: skip
    empty = np.array([not text for text in found.texts]) & ~np.isin(dataset.episode_index, without)
    if empty.mean() > GAP:
        some = np.unique(dataset.episode_index[empty]).tolist()
        yield Finding(
            "note", "frames without subtask", episodes_text(some),
            f"{100 * empty.mean():.0f} % of all frames; the first: {subject.place(int(np.argmax(empty)))}",
            "nothing, if the robot does nothing there; else close the gaps",
        )  # fmt: skip


def _overlaps(found: Subtasks) -> Iterator[Finding]:
    if found.overlaps:
        one, two = found.overlaps[0]
        yield Finding(
            "warning", "subtasks overlap", episodes_text({pair[0].episode for pair in found.overlaps}),
            f"{len(found.overlaps)} times; the first: {one.text[:40]!r} (frames {one.start} to {one.end - 1}) and "
            f"{two.text[:40]!r} (from {two.start}) in episode {one.episode}",
            "the one that begins last counts: end the other one there",
        )  # fmt: skip


def _lengths(subject: Subject, found: Subtasks) -> Iterator[Finding]:
    seconds = np.array([segment.end - segment.start for segment in found.segments]) / subject.dataset.fps
    if not seconds.size:
        return
    median = float(np.median(seconds))
    short = np.flatnonzero((seconds < SHORT) | (seconds * UNUSUAL < median))
    long = np.flatnonzero((seconds > LONG) | (seconds > UNUSUAL * median))
    for name, rows, worst, advice in (
        ("short subtask", short, np.argmin, "join it with its neighbour, if it is a slip of the annotation"),
        ("long subtask", long, np.argmax, "divide it, if the robot does several things there"),
    ):
        if rows.size:
            example: Segment = found.segments[int(rows[worst(seconds[rows])])]
            yield Finding(
                "note", name, episodes_text({found.segments[row].episode for row in rows.tolist()}),
                f"{rows.size} of {seconds.size}, where the median is {median:.3g} s; the worst: {example.text[:40]!r}, "
                f"{(example.end - example.start) / subject.dataset.fps:.3g} s, at frame {example.start} of episode "
                f"{example.episode}",
                advice,
            )  # fmt: skip


def _spellings(found: Subtasks) -> Iterator[Finding]:
    """The same words, written otherwise."""
    counts = Counter(segment.text for segment in found.segments)
    alike: dict[str, list[str]] = {}
    for text in counts:
        alike.setdefault(" ".join(text.lower().strip(" .!").split()), []).append(text)
    several = [texts for texts in alike.values() if len(texts) > 1]
    if several:
        texts = sorted(several[0], key=lambda text: -counts[text])
        yield Finding(
            "note", "spellings of subtasks", found.source,
            f"{len(several)} subtasks are written in more than one way, such as "
            + " and ".join(f"{text[:40]!r} ({counts[text]})" for text in texts[:2]),
            "write them alike: a policy has to learn each spelling",
        )  # fmt: skip
