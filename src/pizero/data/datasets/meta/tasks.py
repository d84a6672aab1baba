"""The instructions of a dataset, and how its columns number them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pizero.data.datasets.files.json_files import as_whole, read_lines
from pizero.data.datasets.files.parquet import column_names, read_values
from pizero.data.datasets.meta.episode_table import Described
from pizero.data.datasets.meta.info import TASKS_LINES, TASKS_PATH
from pizero.types import UserError

_TEXT_COLUMNS = ("task", "__index_level_0__", "tasks", "text", "instruction")
"""The text is the table's pandas index, which some writers left unnamed or named otherwise."""


def read_tasks(root: Path, episodes: Sequence[Described], notes: list[str]) -> tuple[list[str], list[int]]:
    """(texts, the numbers that the data's columns give them); no numbers where no table is there."""
    if (root / TASKS_PATH).is_file():
        entries = _from_table(root / TASKS_PATH, notes)
    elif (root / TASKS_LINES).is_file():
        entries = _from_lines(root / TASKS_LINES, notes)
    else:
        entries = []
    numbered = dict(entries)
    if numbered:
        order = sorted(numbered)
        return [numbered[index] for index in order], order
    texts = list(dict.fromkeys(text for episode in episodes for text in episode.tasks))
    if texts:
        notes.append("meta/ has no table of tasks: the tasks that it lists with the episodes are used")
    else:
        notes.append("meta/ has no task at all: every prompt is empty unless the robot has a default_prompt")
    return texts or [""], []


def _from_table(path: Path, notes: list[str]) -> list[tuple[int, str]]:
    names = column_names(path)
    column = next((name for name in _TEXT_COLUMNS if name in names), None)
    if column is None:
        raise UserError(f"{path} has no column 'task'; it has {', '.join(names)}")
    table = read_values(path, [name for name in ("task_index", column) if name in names])
    return _entries(path, table.get("task_index"), table[column], notes)


def _from_lines(path: Path, notes: list[str]) -> list[tuple[int, str]]:
    lines = [line for _, line in read_lines(path, notes)]
    texts = [next((line[name] for name in _TEXT_COLUMNS if name in line), None) for line in lines]
    return _entries(path, [line.get("task_index") for line in lines], texts, notes)


def _entries(path: Path, said: Sequence[Any] | None, texts: Sequence[Any], notes: list[str]) -> list[tuple[int, str]]:
    indices = [as_whole(value) for value in said] if said is not None else [None] * len(texts)
    if texts and all(index is None for index in indices):
        notes.append(f"{path} does not number its tasks: their order counts")
        indices = list(range(len(texts)))
    for row, index in enumerate(indices):
        if index is None:
            raise UserError(f"{path}: task {row} has no task_index; number it as the data does")
    entries = [
        (index, text if isinstance(text, str) else "")
        for index, text in zip(indices, texts, strict=True)
        if index is not None
    ]
    last = dict(entries)
    several = {index for index, text in entries if text != last[index]}
    notes += [f"{path} gives task {index} several texts: the last counts, {last[index]!r}" for index in sorted(several)]
    return entries
