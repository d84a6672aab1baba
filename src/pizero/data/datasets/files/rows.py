"""Which rows of which data file are an episode's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pizero.data.datasets.files.json_files import is_pointer, is_there
from pizero.data.datasets.files.numbers import read_columns, read_known, value_ranges
from pizero.data.datasets.files.parquet import column_names
from pizero.data.datasets.meta.layout import Episode, episodes_text
from pizero.types import UserError

Rows = NDArray[np.int64]


class RowFinder:
    """Rows of the episodes of a data file, by the file's column of episode numbers.

    Without that column, or where it numbers them otherwise, by what else is certain; `notes` says so.
    """

    def __init__(self, listed: Iterable[int]) -> None:
        self._listed = np.array(sorted(listed), np.int64)
        self._unnumbered: list[int] = []
        self._renumbered: list[int] = []
        self._unlisted: set[int] = set()

    def find(self, path: Path, episodes: Sequence[Episode]) -> dict[int, Rows]:
        """Rows of each, in the file's order; as many as there are. UserError where the file cannot be read."""
        count, columns = read_known(path, ["episode_index"])
        if not columns:
            return self._by_length(count, episodes)
        ids = columns["episode_index"].scalars()
        order = np.argsort(ids, kind="stable")
        ordered = ids[order]
        found: dict[int, Rows] = {}
        for episode in episodes:
            low, high = np.searchsorted(ordered, [episode.index, episode.index + 1])
            found[episode.index] = order[low:high]
        alone = episodes[0] if len(episodes) == 1 else None
        if alone is not None and not len(found[alone.index]) and len(ids) == alone.length and len(np.unique(ids)) == 1:
            self._renumbered.append(alone.index)
            return {alone.index: np.arange(len(ids))}
        different = np.unique(ids[np.isfinite(ids)])
        self._unlisted |= {int(index) for index in different[~np.isin(different, self._listed)]}
        return found

    def notes(self) -> list[str]:
        told: list[str] = []
        if self._unnumbered:
            told.append(f"{episodes_text(self._unnumbered)}: the data has no episode_index, the lengths give the rows")
        if self._renumbered:
            told.append(
                f"{episodes_text(self._renumbered)}: the data file has another episode_index, all its rows are used"
            )
        if self._unlisted:
            told.append(f"the data has {episodes_text(self._unlisted)}, which meta/ does not list: not used")
        return told

    def _by_length(self, rows: int, episodes: Sequence[Episode]) -> dict[int, Rows]:
        """One after the other, where that fits."""
        lengths = [episode.length for episode in episodes]
        self._unnumbered += [episode.index for episode in episodes]
        if len(episodes) == 1:
            return {episodes[0].index: np.arange(rows)}
        if sum(lengths) != rows:
            return {episode.index: np.arange(0) for episode in episodes}
        starts = np.cumsum([0, *lengths])
        return {e.index: np.arange(start, start + e.length) for e, start in zip(episodes, starts[:-1], strict=True)}


def settle(root: Path, episodes: list[Episode], shared: bool, notes: list[str]) -> list[Episode]:
    """The episodes with the data files that really hold them; without the last ones where those are not there at all.

    shared: a file holds several episodes, so that one can be in another file than `meta/` says. What is missing in the
    middle, or is the greater part, is no recording that was interrupted and stays, to be reported as a fault.
    """
    where = _Where(root, episodes) if shared else None
    places = [episode.data_path if where is None else where.find(episode) for episode in episodes]
    moved = [e.index for e, path in zip(episodes, places, strict=True) if path is not None and path != e.data_path]
    if moved:
        notes.append(f"{episodes_text(moved)} {_are(moved)} in another data file than meta/ says, and used from there")
    settled = [replace(e, data_path=path or e.data_path) for e, path in zip(episodes, places, strict=True)]
    last = len(settled)
    while last and (places[last - 1] is None or not _may_hold(settled[last - 1].data_path)):
        last -= 1
    if not last < len(settled) < 2 * last:
        return settled
    lost = [episode.index for episode in settled[last:]]
    notes.append(
        f"{episodes_text(lost)} {_are(lost)} listed in meta/, but the data ends before (the recording was interrupted, "
        f"or the copy is incomplete): the {last} before are used"
    )
    return settled[:last]


def _are(what: Sequence[object]) -> str:
    return "are" if len(what) > 1 else "is"


def _may_hold(path: Path) -> bool:
    """Whether there is a file that can be read, or a pointer to one."""
    if not is_there(path):
        return False
    try:
        column_names(path)
    except UserError:
        return is_pointer(path)
    return True


class _Where:
    """Finds episodes in files by the least and greatest episode number of row groups, which the footers have."""

    def __init__(self, root: Path, episodes: Iterable[Episode]) -> None:
        named = dict.fromkeys(episode.data_path for episode in episodes)
        top = next((path.relative_to(root).parts[0] for path in named if path.is_relative_to(root)), "data")
        more = sorted((root / top).rglob("*.parquet")) if (root / top).is_dir() else []
        self._paths = list(dict.fromkeys([*(path for path in named if is_there(path)), *more]))
        self._ranges: dict[Path, list[tuple[int, int]] | None] = {}

    def find(self, episode: Episode) -> Path | None:
        """Its file; None where no file has it and its own is not there, cannot be read, or has others."""
        own = episode.data_path
        if is_there(own):
            ranges = self._of(own)
            if ranges is None and _may_hold(own):
                return own
            if ranges is not None and _within(episode.index, ranges):
                return own
        if not episode.length:
            return own
        for path in self._paths:
            ranges = self._of(path)
            if path != own and ranges is not None and _within(episode.index, ranges) and _holds(path, episode.index):
                return path
        return None

    def _of(self, path: Path) -> list[tuple[int, int]] | None:
        if path not in self._ranges:
            self._ranges[path] = value_ranges(path, "episode_index")
        return self._ranges[path]


def _within(index: int, ranges: Sequence[tuple[int, int]]) -> bool:
    return any(low <= index <= high for low, high in ranges)


def _holds(path: Path, index: int) -> bool:
    return bool((read_columns(path, ["episode_index"])["episode_index"].scalars() == index).any())
