"""What the robot is doing, in words, at each frame of a dataset: from where people write it.

segments file     CSV with a line for each piece of an episode: meta/subtasks.csv of the dataset, or a file of its own
language columns  LeRobot's: `language_persistent` (a text holds from its time stamp on) and `language_events` (from its
                  frame on), rows of style "subtask"
column of text    any, or `subtask`
subtask_index     numbers of the texts in meta/subtasks.parquet, as older LeRobot wrote them
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from pizero.data.datasets.files.parquet import column_names, read_values
from pizero.data.datasets.files.segments import Line, read_segments, renumbered
from pizero.data.datasets.meta.features import Feature
from pizero.types import UserError

SUBTASKS_PATH, SUBTASKS_TABLE = "meta/subtasks.csv", "meta/subtasks.parquet"
PERSISTENT, EVENTS = "language_persistent", "language_events"
STYLE = "subtask"
"""Of the rows of a language column that are subtasks, and the name of a column of text."""
INDEX = "subtask_index"


class Frames(Protocol):
    """The dataset's side; see `LeRobotDataset`."""

    root: Path
    fps: float
    features: dict[str, Feature]
    episodes: NDArray[np.int64]
    episode_starts: NDArray[np.int64]
    episode_lengths: NDArray[np.int64]
    timestamp: NDArray[np.float64]
    num_frames: int

    def cells(self, key: str, frames: NDArray[np.int64]) -> list[Any]: ...


@dataclass(frozen=True)
class Segment:
    """`text` is what is done in the frames start to end - 1 of an episode, counted from its first."""

    episode: int
    start: int
    end: int
    text: str


@dataclass(frozen=True)
class Subtasks:
    """source: where they were found. segments: in the order of episodes and of time. texts [F]: of each frame, empty
    where there is none; of segments that overlap the one that began last. overlaps: pairs of such segments.
    elsewhere: episodes that the source names and the dataset does not have.
    """

    source: str
    segments: Sequence[Segment]
    texts: Sequence[str]
    overlaps: Sequence[tuple[Segment, Segment]] = ()
    elsewhere: Sequence[int] = ()


def find_subtasks(data: Frames, chosen: str | Path | None = None) -> Subtasks | None:
    """chosen: a segments file (.csv), or a column; None takes what the dataset has, None where it has none.

    UserError where the chosen one is not there or cannot be read.
    """
    if chosen is not None and Path(chosen).suffix == ".csv":
        return _of_lines(data, Path(chosen))
    if chosen is None:
        return _own(data)
    key = str(chosen)
    if key in (PERSISTENT, EVENTS) and key in data.features:
        return _gathered(data, key, _of_rows(data, key))
    if data.features.get(key, {}).get("dtype") == "string":
        return _gathered(data, key, _of_column(data, cast("list[str | None]", _all_cells(data, key))))
    texts = [name for name, feature in data.features.items() if feature.get("dtype") in ("string", "language")]
    raise UserError(
        f"{data.root} has no subtasks {key!r}: give a .csv file, or a column of text; it has {', '.join(texts)}"
    )


def copy_subtasks(data: Frames, folder: Path) -> None:
    """The files of `meta/` that hold subtasks, for a dataset `folder` whose episodes are these, numbered from 0 on."""
    table, lines = data.root / SUBTASKS_TABLE, data.root / SUBTASKS_PATH
    if table.is_file():
        shutil.copyfile(table, folder / SUBTASKS_TABLE)
    if lines.is_file() and np.array_equal(data.episodes, np.arange(len(data.episodes))):
        shutil.copyfile(lines, folder / SUBTASKS_PATH)
    elif lines.is_file():
        numbers = {int(old): new for new, old in enumerate(data.episodes)}
        (folder / SUBTASKS_PATH).write_text(renumbered(lines, numbers), encoding="utf-8")


def _own(data: Frames) -> Subtasks | None:
    if (data.root / SUBTASKS_PATH).is_file():
        return _of_lines(data, data.root / SUBTASKS_PATH)
    for key in (PERSISTENT, EVENTS):
        if key in data.features and (segments := _of_rows(data, key)):
            return _gathered(data, key, segments)
    if data.features.get(STYLE, {}).get("dtype") == "string":
        return find_subtasks(data, STYLE)
    if INDEX in data.features and (data.root / SUBTASKS_TABLE).is_file():
        texts = _numbered(data.root / SUBTASKS_TABLE)
        numbers = _all_cells(data, INDEX)
        return _gathered(data, INDEX, _of_column(data, [texts.get(number) for number in numbers]))
    return None


def _all_cells(data: Frames, key: str) -> list[Any]:
    return data.cells(key, np.arange(data.num_frames))


def _of_column(data: Frames, texts: Sequence[str | None]) -> list[Segment]:
    """Runs of the same text [F]."""
    found: list[Segment] = []
    for episode, start, length in _episodes(data):
        own = [(text or "").strip() for text in texts[start : start + length]]
        edges = [0, *(frame for frame in range(1, length) if own[frame] != own[frame - 1]), length]
        found += [Segment(episode, first, last, own[first]) for first, last in pairwise(edges) if own[first]]
    return found


def _of_rows(data: Frames, key: str) -> list[Segment]:
    """Of a language column. A text holds until the next one, or the episode's end; a row without text ends it."""
    firsts = data.episode_starts if key == PERSISTENT else np.arange(data.num_frames)
    cells = data.cells(key, firsts)  # `language_persistent` is the same in all frames of an episode
    found: list[Segment] = []
    for number, (episode, start, length) in enumerate(_episodes(data)):
        if key == PERSISTENT:
            times = data.timestamp[start : start + length] + 0.01 / data.fps
            rows = [row for row in _rows(cells[number]) if isinstance(row.get("timestamp"), int | float)]
            stamps: list[float] = [row["timestamp"] for row in rows]
            begun = list(zip(np.searchsorted(times, stamps).tolist(), rows, strict=True))
            begun = sorted((pair for pair in begun if pair[0] < length), key=_stamp)
        else:
            begun = [(frame, row) for frame in range(length) for row in _rows(cells[start + frame])]
        texts = [(frame, str(row.get("content") or "").strip()) for frame, row in begun]
        for (first, text), (last, _) in pairwise([*texts, (length, "")]):
            if text:  # two at one frame overlap
                found.append(Segment(episode, first, max(last, first + 1), text))
    return found


def _stamp(begun: tuple[int, Mapping[str, Any]]) -> float:
    return float(begun[1]["timestamp"])


def _rows(cell: Any) -> Iterator[Mapping[str, Any]]:
    """The subtasks of a cell of a language column."""
    for row in cast("Sequence[Any]", cell or ()):
        if isinstance(row, dict) and cast("dict[str, Any]", row).get("style") == STYLE:
            yield cast("dict[str, Any]", row)


def _numbered(path: Path) -> dict[Any, str]:
    names = column_names(path)
    text = next((name for name in (STYLE, "__index_level_0__", "text") if name in names), None)
    if text is None or INDEX not in names:
        raise UserError(f"{path} has not the columns {INDEX} and {STYLE}; it has {', '.join(names)}")
    table = read_values(path, [INDEX, text])
    return dict(zip(table[INDEX], (str(value or "") for value in table[text]), strict=True))


def _of_lines(data: Frames, path: Path) -> Subtasks:
    lengths = {episode: length for episode, _, length in _episodes(data)}
    lines = read_segments(path)
    own = [line for line in lines if line.episode in lengths]
    if lines and not own:
        raise UserError(f"{path} names no episode of {data.root}: its first is episode {lines[0].episode}")
    segments = [_on_frames(line, path, data.fps, lengths[line.episode]) for line in own]
    elsewhere = sorted({line.episode for line in lines} - set(lengths))
    return replace(_gathered(data, str(path), _closed(segments)), elsewhere=elsewhere)


def _on_frames(line: Line, path: Path, fps: float, length: int) -> Segment:
    """The frames from its beginning to before its end, at least one; an open end is -1 until `_closed`."""
    scale = fps if line.seconds else 1.0
    start = ceil(min(line.start * scale - 1e-6, length))
    if start >= length:
        last = f"{length / fps:g} s" if line.seconds else f"frame {length}"
        raise UserError(f"{path}, line {line.number}: it begins at {line.start:g}, where the episode ends at {last}")
    if line.end is None:
        return Segment(line.episode, start, -1, line.text)
    end = ceil(min(line.end * scale - 1e-6, length))
    return Segment(line.episode, start, max(end, start + 1), line.text)


def _closed(segments: Iterable[Segment]) -> list[Segment]:
    """Open ends become the beginning of the next one, or -1 for the episode's end."""
    ordered = sorted(segments, key=lambda segment: (segment.episode, segment.start))
    after = [*ordered, None][1:]
    return [
        replace(one, end=max(two.start, one.start + 1))
        if one.end < 0 and two is not None and two.episode == one.episode
        else one
        for one, two in zip(ordered, after, strict=True)
    ]


def _gathered(data: Frames, source: str, segments: Sequence[Segment]) -> Subtasks:
    places = {episode: (start, length) for episode, start, length in _episodes(data)}
    whole = [replace(one, end=places[one.episode][1]) if one.end < 0 else one for one in segments]
    ordered = sorted(whole, key=lambda segment: (segment.episode, segment.start))
    texts = [""] * data.num_frames
    overlaps: list[tuple[Segment, Segment]] = []
    last: Segment | None = None  # of this episode, the one that ends last
    for segment in ordered:
        if last is not None and last.episode == segment.episode and segment.start < last.end:
            overlaps.append((last, segment))
        if last is None or last.episode != segment.episode or segment.end > last.end:
            last = segment
        first = places[segment.episode][0]
        texts[first + segment.start : first + segment.end] = [segment.text] * (segment.end - segment.start)
    return Subtasks(source, ordered, texts, overlaps)


def _episodes(data: Frames) -> list[tuple[int, int, int]]:
    """(episode, its first frame, its length)."""
    columns = (data.episodes, data.episode_starts, data.episode_lengths)
    return list(zip(*(column.tolist() for column in columns), strict=True))
