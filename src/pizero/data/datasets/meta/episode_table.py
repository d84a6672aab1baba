"""The episodes as `meta/` lists them: lines of JSON up to v2.1, parquet tables in v3.0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pizero.data.datasets.files.json_files import as_number, as_whole, read_lines
from pizero.data.datasets.files.parquet import column_names, read_values
from pizero.data.datasets.meta.info import EPISODES_FOLDER, EPISODES_LINES, Info
from pizero.data.datasets.meta.layout import episodes_text
from pizero.types import UserError


@dataclass(frozen=True)
class Clip:
    """An episode's part of a camera's video. place: what the path is made of. start, end: seconds, None if unknown."""

    place: Mapping[str, int]
    start: float | None
    end: float | None


@dataclass(frozen=True)
class Described:
    """An episode as described. length: None if unknown. place: what its data file's path is made of. clips: by column;
    a camera without any place is not among them.
    """

    index: int
    length: int | None
    tasks: tuple[str, ...]
    place: Mapping[str, int]
    clips: Mapping[str, Clip]


def read_episodes(root: Path, info: Info, videos: Sequence[str], notes: list[str]) -> list[Described]:
    """All episodes by their number, each once; videos: the columns that are videos. UserError where none is listed."""
    lines = (root / EPISODES_LINES).is_file() or info.is_old
    found = _from_lines(root, info, videos, notes) if lines else _from_tables(root, videos, notes)
    by_index = {episode.index: episode for episode in found}
    if len(by_index) < len(found):
        notes.append(f"meta/ lists {len(found) - len(by_index)} episodes twice: the later entry counts")
    return [by_index[index] for index in sorted(by_index)]


def _from_lines(root: Path, info: Info, videos: Sequence[str], notes: list[str]) -> list[Described]:
    found: list[Described] = []
    path = root / EPISODES_LINES
    for number, line in read_lines(path, notes):
        index = as_whole(line.get("episode_index"))
        if index is None:
            raise UserError(f"{path}: line {number} has no episode_index; download the dataset again")
        chunk = index // info.chunk_size
        place = {"episode_index": index, "episode_chunk": chunk, "chunk_index": chunk, "file_index": index}
        clips = dict.fromkeys(videos, Clip(place, 0.0, None))
        found.append(Described(index, _length(line.get("length")), _texts(line.get("tasks")), place, clips))
    return found


def _from_tables(root: Path, videos: Sequence[str], notes: list[str]) -> list[Described]:
    paths = sorted((root / EPISODES_FOLDER).rglob("*.parquet"))
    if not paths:
        raise UserError(f"{root / EPISODES_FOLDER} holds no parquet file; copy or download the dataset again")
    tables: list[dict[str, list[Any]]] = []
    damaged: list[UserError] = []
    for path in paths:
        try:
            there = column_names(path)
            tables.append(read_values(path, [name for name in _columns(videos) if name in there]))
        except UserError as error:
            damaged.append(error)
    if not tables:
        raise damaged[0]
    notes += [f"{error}; its episodes are skipped" for error in damaged]
    rows = [
        {name: values[row] for name, values in table.items()}
        for table in tables
        for row in range(max(map(len, table.values()), default=0))
    ]
    return _from_rows(root, rows, videos, notes)


def _from_rows(root: Path, rows: list[dict[str, Any]], videos: Sequence[str], notes: list[str]) -> list[Described]:
    found: list[Described] = []
    guessed: dict[str, list[int]] = {}
    before: dict[str, Mapping[str, int]] = {}
    for number, row in enumerate(rows):
        index = as_whole(row.get("episode_index"))
        if index is None:
            raise UserError(f"{root / EPISODES_FOLDER}: row {number} has no episode_index; download the dataset again")
        data = _place(row, "data", index) or before.get("data")
        if _place(row, "data", index) is None:
            guessed.setdefault("data file", []).append(index)
        data = data or {"chunk_index": 0, "file_index": 0}
        before["data"] = data
        clips: dict[str, Clip] = {}
        for key in videos:
            place = _place(row, f"videos/{key}", index)
            if place is None and key in before:
                place = before[key]
                guessed.setdefault(f"file of {key}", []).append(index)
            if place is not None:
                before[key] = place
                start, end = (as_number(row.get(f"videos/{key}/{name}_timestamp")) for name in ("from", "to"))
                clips[key] = Clip({**place, "episode_index": index}, start, end)
        place = {**data, "episode_index": index}
        found.append(Described(index, _row_length(row), _texts(row.get("tasks")), place, clips))
    for what, episodes in guessed.items():
        notes.append(f"meta/episodes does not say the {what} of {episodes_text(episodes)}: it is taken to be the last")
    return found


def _columns(videos: Sequence[str]) -> list[str]:
    columns = ["episode_index", "length", "tasks", "dataset_from_index", "dataset_to_index"]
    columns += [f"data/{name}" for name in ("chunk_index", "file_index")]
    for key in videos:
        columns += [f"videos/{key}/{name}" for name in ("chunk_index", "file_index", "from_timestamp", "to_timestamp")]
    return columns


def _place(row: Mapping[str, Any], prefix: str, index: int) -> dict[str, int] | None:
    chunk, file = (as_whole(row.get(f"{prefix}/{name}")) for name in ("chunk_index", "file_index"))
    if file is None:
        return None
    return {"chunk_index": chunk or 0, "episode_chunk": chunk or 0, "file_index": file, "episode_index": index}


def _row_length(row: Mapping[str, Any]) -> int | None:
    length = _length(row.get("length"))
    if length is None:
        start, end = (as_whole(row.get(f"dataset_{name}_index")) for name in ("from", "to"))
        length = None if start is None or end is None else _length(end - start)
    return length


def _length(said: Any) -> int | None:
    length = as_whole(said)
    return length if length is not None and length >= 0 else None


def _texts(said: Any) -> tuple[str, ...]:
    values = cast("list[Any]", said) if isinstance(said, list) else [said]
    return tuple(value for value in values if isinstance(value, str))
