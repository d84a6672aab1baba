"""Numeric columns over all frames of the episodes, and the episodes in which one is no row of d numbers a frame."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pizero.data.datasets.files.numbers import Numbers, read_known
from pizero.data.datasets.meta.features import Feature, dimension_names, number_keys
from pizero.data.datasets.meta.layout import Episode
from pizero.types import UserError

Rows = Mapping[int, NDArray[np.int64]]
"""Of each episode, in its data file."""
_ACTED_ON = {"state", "states", "action", "actions"}


@dataclass(frozen=True)
class BadColumn:
    """A column that is no row of d numbers a frame in an episode."""

    kind: str
    episode: Episode
    text: str


class NumberColumns:
    """Columns of numbers of the data files, kept until they are taken. `widths`: numbers a frame, by column.

    A width is what most rows have; where two are as frequent, that of info.json.
    """

    def __init__(self, features: Mapping[str, Feature], keys: Sequence[str] | None = None) -> None:
        """keys: the columns to look at; None for those that are named as states or actions."""
        numeric = number_keys(features)
        self._keys = [key for key in numeric if (_ACTED_ON & set(key.split(".")) if keys is None else key in keys)]
        self._features = features
        self._kept: dict[str, dict[Path, Numbers]] = {}
        self.widths: dict[str, int] = {}

    def examine(self, episodes: Sequence[Episode], rows: Rows) -> list[BadColumn]:
        """Reads the columns of these episodes; what is wrong in which, each column of an episode once."""
        self._kept = {key: {} for key in self._keys}
        found: list[BadColumn] = []
        for path in dict.fromkeys(episode.data_path for episode in episodes):
            try:
                columns = read_known(path, self._keys)[1]
            except UserError as error:
                text = f"the file {str(error).removeprefix(f'{path} ')}"
                found += [BadColumn("unreadable data", e, text) for e in episodes if e.data_path == path]
                continue
            for key, numbers in columns.items():
                self._kept[key][path] = numbers
        damaged = {bad.episode.index for bad in found}
        episodes = [episode for episode in episodes if episode.index not in damaged]
        for key, files in self._kept.items():
            known = [(e, files[e.data_path], rows[e.index]) for e in episodes if e.data_path in files]
            width = self._width(key, [(numbers, own) for _, numbers, own in known])
            if width is not None:
                self.widths[key] = width
            found += self._bad(key, width or 0, known)
            if files:
                text = f"column {key!r} is not there, or holds no numbers, as it does in other files"
                found += [BadColumn("missing column", e, text) for e in episodes if e.data_path not in files]
        return found

    def take(self, key: str, episodes: Sequence[Episode], rows: Rows) -> NDArray[np.float32] | None:
        """float32 [frames, d] of a column that was examined, once; None of others."""
        files = self._kept.pop(key, None)
        if files is None or key not in self.widths or any(episode.data_path not in files for episode in episodes):
            return None
        values = np.empty((sum(episode.length for episode in episodes), self.widths[key]), np.float32)
        start = 0
        for episode in episodes:
            end = start + episode.length
            values[start:end] = files[episode.data_path].take(rows[episode.index], self.widths[key])
            start = end
        return values

    def notes(self) -> Iterator[str]:
        """Where info.json has another width than the data."""
        for key, width in self.widths.items():
            said = self._said(key)
            if said and said != width:
                yield f"meta/info.json says {said} numbers of {key!r}, the data has {width}: the data counts"

    def _said(self, key: str) -> int:
        """By info.json; 0 where it does not say."""
        shape: list[int] = self._features[key]["shape"]
        return math.prod(shape) if shape else 0

    def _width(self, key: str, known: Sequence[tuple[Numbers, NDArray[np.int64]]]) -> int | None:
        counts: Counter[int] = Counter()
        for numbers, own in known:
            usable = own[~numbers.nulls[own]]
            different, times = np.unique(numbers.widths[usable], return_counts=True)
            counts.update(dict(zip(different.tolist(), times.tolist(), strict=True)))
        if not counts:
            return None
        said = self._said(key)
        return max(counts, key=lambda width: (counts[width], width == said))

    def _bad(
        self, key: str, width: int, known: Sequence[tuple[Episode, Numbers, NDArray[np.int64]]]
    ) -> Iterator[BadColumn]:
        for episode, numbers, own in known:
            null = np.flatnonzero(numbers.nulls[own])
            other = np.flatnonzero((numbers.widths[own] != width) & ~numbers.nulls[own])
            if null.size:
                row = int(own[null[0]])
                values = numbers.flat[numbers.starts[row] : numbers.starts[row] + numbers.widths[row]]
                text = f"{self._null(key, width, values)} is null in {_place(own, null)}"
                yield BadColumn("null values", episode, text)
            if other.size:
                has = int(numbers.widths[own[other[0]]])
                text = f"column {key!r} has {has} numbers in {_place(own, other)}, where others have {width}"
                yield BadColumn("number of values", episode, text)

    def _null(self, key: str, width: int, row: NDArray[Any]) -> str:
        """The column, or the dimension of it in which a row has its first null."""
        names = dimension_names(self._features[key].get("names"))
        missing = np.flatnonzero(np.isnan(row)) if row.dtype.kind == "f" else np.zeros(0, np.int64)
        if len(row) != width or not missing.size or width == 1:
            return f"column {key!r}"
        dim = int(missing[0])
        return f"{names[dim] if len(names) == width else f'dimension {dim}'} of column {key!r}"


def _place(rows: NDArray[np.int64], positions: NDArray[np.int64]) -> str:
    """ "row 60 of the file, frame 0 of the episode (and 29 more)"."""
    more = f" (and {len(positions) - 1} more)" if len(positions) > 1 else ""
    return f"row {rows[positions[0]]} of the file, frame {positions[0]} of the episode{more}"
