"""The page of `pizero replay`: an episode's frames, recorded and predicted actions over time, chunks by replan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pizero.report.html import Picture, Section, Table, write_report
from pizero.report.pictures import GROUP_COLOURS, MUTED, WIDTH, film_strip, finish, new_figure, plain, set_title

SHOWN_FRAMES, SHOWN_DIMS = 8, 24


@dataclass(frozen=True)
class Course:
    """An episode of T frames: recorded, played [T, d] in robot units, and the chunks [N, H, d] that were asked for at
    `starts` [N]. names: of the d dimensions. frames: by camera, uint8 [n, h, w, 3] at the times `seconds` [n].
    subtasks: [N] of a policy that writes them, else empty.
    """

    fps: float
    recorded: NDArray[np.float32]
    played: NDArray[np.float32]
    chunks: NDArray[np.float32]
    starts: NDArray[np.int64]
    names: Sequence[str]
    frames: Mapping[str, NDArray[np.uint8]]
    seconds: Sequence[float]
    subtasks: Sequence[str] = ()


def replay_report(path: Path, results: Mapping[str, Any], course: Course) -> None:
    """results: what the JSON file beside the page holds."""
    facts = {
        "episode": str(results["episode"]), "frames": f"{len(course.recorded):,}",
        "seconds": f"{len(course.recorded) / course.fps:.1f}", "replans": str(len(course.starts)),
    }  # fmt: skip
    worst = max(results["dimensions"], key=lambda dim: dim["relative"] or 0.0)
    text = (
        f"Prompt: {results['prompt']!r}. A chunk of {course.chunks.shape[1]} actions was asked for every "
        f"{results['execution_horizon']} frames, with what the robot saw then; the robot was not moved, so errors do "
        f"not add up. Furthest off: {worst['name']}."
    )
    sections = [
        Section("What the policy was asked", text), *_cameras(course), *_subtasks(course),
        Section("Actions over time", "Robot units.", [Picture(_actions(course), "Recorded and predicted actions")]),
        _errors(results),
    ]  # fmt: skip
    write_report(path, title=f"pizero replay: {results['dataset']}", facts=facts, sections=sections)


def _cameras(course: Course) -> Iterator[Section]:
    names = [f"{second:.1f} s" for second in course.seconds]
    pictures = [
        Picture(film_strip(frames, count=SHOWN_FRAMES, names=names), f"Camera {camera}", True)
        for camera, frames in course.frames.items()
    ]
    if pictures:
        yield Section("What the cameras saw", "", pictures)


def _subtasks(course: Course) -> Iterator[Section]:
    """What the policy wrote, one row for replans in a row with the same text."""
    if not course.subtasks:
        return
    rows, seconds = list[list[str]](), course.starts / course.fps
    for second, text in zip(seconds, course.subtasks, strict=True):
        if not rows or rows[-1][1] != (text or "nothing"):
            rows.append([f"{second:.1f} s", text or "nothing"])
    what = "The policy writes what it does now and acts on it; shown from the replan on at which it changed."
    yield Section("What the policy wrote", what, [Table(["from", "subtask"], rows)])


def _errors(results: Mapping[str, Any]) -> Section:
    def text(value: float | None) -> str:
        return "–" if value is None else f"{value:.2f}"

    rows = [
        [dim["name"], f"{dim['error']:.4g}", f"{dim['worst']:.4g} at {dim['worst_second']:.1f} s",
         text(dim["relative"]), text(dim["constant"])]
        for dim in results["dimensions"]
    ]  # fmt: skip
    header = ("", "mean absolute error", "greatest", "in standard deviations", "of a constant action")
    return Section("Error", "In robot units, over the actions that would have been played.", [
        Table(header, rows, numbers=(1, 2, 3, 4))
    ])  # fmt: skip


def _actions(course: Course) -> bytes:
    """A row for each action dimension: recorded, what would have been played, and every chunk as it was predicted."""
    dims = min(course.recorded.shape[1], SHOWN_DIMS)
    row = 1.0
    height = row * dims + 1.25
    figure = new_figure(WIDTH, height)
    colours = list(GROUP_COLOURS.values())
    times = np.arange(len(course.recorded)) / course.fps
    for dim in range(dims):
        axes = figure.add_axes((0.1, (0.4 + row * (dims - 1 - dim)) / height, 0.88, (row - 0.22) / height))
        for start in course.starts / course.fps:
            axes.axvline(start, color=MUTED, linewidth=0.5, alpha=0.35)
        for number, (start, chunk) in enumerate(zip(course.starts, course.chunks, strict=True)):
            ahead = (start + np.arange(len(chunk))) / course.fps
            axes.plot(
                ahead, chunk[:, dim], color=colours[1], linewidth=0.9, alpha=0.55, label=None if number else "chunks"
            )  # fmt: skip
        axes.plot(times, course.recorded[:, dim], color=MUTED, linewidth=2.6, alpha=0.55, label="recorded")
        axes.plot(times, course.played[:, dim], color=colours[0], linewidth=1.2, label="predicted")
        plain(axes)
        axes.set_xlim(0, max(float(times[-1]), 1 / course.fps))
        axes.tick_params(labelsize=7)
        name = course.names[dim]
        axes.set_title(name if len(name) <= 40 else f"{name[:39]}…", fontsize=8, color=MUTED, loc="left", pad=2)
        if dim < dims - 1:
            axes.set_xticklabels([])
        if dim == 0:
            axes.legend(loc="lower right", bbox_to_anchor=(1, 1.0), ncols=3, frameon=False, fontsize=8)
    set_title(figure, "Recorded and predicted actions", "A vertical line: the policy is asked. Seconds")
    return finish(figure, None)
