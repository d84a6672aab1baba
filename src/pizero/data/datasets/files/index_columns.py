"""The columns that say where a frame is: read where they are there, else derived, with one note each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pizero.data.datasets.files.numbers import read_known
from pizero.data.datasets.meta.layout import Episode, Layout
from pizero.types import UserError

_COLUMNS = ("frame_index", "timestamp", "task_index")


@dataclass(frozen=True)
class Index:
    """Over all frames [F] of the episodes, one after the other. task_index: positions in the layout's `tasks`.

    rows: of each episode in its data file, in the order of time.
    """

    rows: Mapping[int, NDArray[np.int64]]
    timestamp: NDArray[np.float64]
    task_index: NDArray[np.int64]
    notes: Sequence[str]


def read_index(layout: Layout, episodes: Sequence[Episode], rows: Mapping[int, NDArray[np.int64]]) -> Index:
    """rows: of each episode in its data file, none of them with unknown tasks. UserError where nothing gives a task."""
    files = {path: _read(path) for path in dict.fromkeys(episode.data_path for episode in episodes)}
    ordered: dict[int, NDArray[np.int64]] = {}
    times: list[NDArray[np.float64]] = []
    tasks: list[NDArray[np.int64]] = []
    counts: dict[str, list[int]] = {name: [] for name in ("order", *_COLUMNS)}
    for episode in episodes:
        columns, own = files[episode.data_path], rows[episode.index]
        frames = columns["frame_index"][own]
        counts["frame_index"].append(int(np.isnan(frames).sum()))
        if (np.diff(frames) < 0).any() and len(np.unique(frames)) == len(frames):
            own = own[np.argsort(frames, kind="stable")]
            counts["order"].append(len(own))
        ordered[episode.index] = own
        stamps = columns["timestamp"][own]
        unknown = ~np.isfinite(stamps)
        counts["timestamp"].append(int(unknown.sum()))
        times.append(np.where(unknown, np.arange(len(own)) / layout.fps, stamps))
        said = columns["task_index"][own]
        unsaid = np.isnan(said) if layout.task_ids else np.ones(len(said), np.bool_)
        counts["task_index"].append(int(unsaid.sum()) if layout.task_ids else 0)
        tasks.append(_tasks(layout, episode, said, unsaid))
    notes = [
        note.format(f"{sum(counts[key])} frames of {sum(map(bool, counts[key]))} of {len(episodes)} episodes")
        for key, note in _NOTES.items()
        if any(counts[key])
    ]
    return Index(ordered, np.concatenate(times), np.concatenate(tasks), notes)


_NOTES = {
    "order": "{} are not in the order of their frame_index: they are put in it",
    "frame_index": "frame_index is missing in {}: the order of the rows counts",
    "timestamp": "timestamp is missing in {}: the number counts, not the time stamp",
    "task_index": "task_index is missing in {}: the task that meta/ gives the episode is taken",
}


def _read(path: Path) -> dict[str, NDArray[np.float64]]:
    """[rows] each; NaN where a value is missing."""
    count, columns = read_known(path, _COLUMNS)
    return {
        name: columns[name].scalars().astype(np.float64) if name in columns else np.full(count, np.nan)
        for name in _COLUMNS
    }


def _tasks(layout: Layout, episode: Episode, said: NDArray[np.float64], unsaid: NDArray[np.bool_]) -> NDArray[np.int64]:
    """[frames]: positions in the tasks of the numbers [frames] that are said, and the episode's task for the others."""
    positions = np.zeros(len(said), np.int64)
    if unsaid.any():
        positions[unsaid] = _task_of(layout, episode)
    if layout.task_ids:
        positions[~unsaid] = np.searchsorted(np.array(layout.task_ids, np.int64), said[~unsaid])
    return positions


def index_faults(
    layout: Layout, episodes: Sequence[Episode], rows: Mapping[int, NDArray[np.int64]]
) -> Iterator[tuple[str, Episode, str]]:
    """(kind, episode, what to say) of those whose columns cannot be read, or have tasks that are in no table."""
    files: dict[Path, NDArray[np.float64] | str] = {}
    for episode in episodes:
        path = episode.data_path
        if path not in files:
            try:
                files[path] = _read(path)["task_index"]
            except UserError as error:
                files[path] = f"the file {str(error).removeprefix(f'{path} ')}"
        numbers = files[path]
        if isinstance(numbers, str):
            yield "unreadable data", episode, numbers
            continue
        said = numbers[rows[episode.index]]
        unknown = np.flatnonzero(~np.isnan(said) & ~np.isin(said, layout.task_ids))
        if layout.task_ids and unknown.size:
            text = (
                f"task_index {said[unknown[0]]:g} (frame {unknown[0]}) is not in the table of tasks of meta/, which"
                f" has {len(layout.task_ids)} task{'s' if len(layout.task_ids) > 1 else ''}"
            )
            yield "unknown task", episode, text


def _task_of(layout: Layout, episode: Episode) -> int:
    texts = [text for text in dict.fromkeys(episode.tasks) if text in layout.tasks]
    if len(texts) == 1:
        return layout.tasks.index(texts[0])
    if len(layout.tasks) == 1:
        return 0
    raise UserError(
        f"{layout.root}, episode {episode.index}: nothing says which of {len(layout.tasks)} tasks it is: there is no "
        f"task_index, and meta/ gives the episode {len(texts)} tasks; write task_index, or one task for each episode"
    )
