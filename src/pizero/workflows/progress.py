"""What is printed in the terminal: lines as they are, and one look for all progress bars."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

LINE_SECONDS, FIRST_SECONDS = 15.0, 2.0
"""Between two lines about a work that is under way, and before the first, where the output is no terminal."""
_WIDTH = 120
"""Of tables there."""


class _Console(Console):
    """In a file lines are not broken, and do not end in spaces."""

    def print(self, *objects: Any, **options: Any) -> None:
        if self.is_terminal:
            return super().print(*objects, **options)
        if not all(isinstance(each, str | Text) for each in objects):
            with self.capture() as captured:
                super().print(*objects, **options)
            objects, options = (Text("\n".join(line.rstrip() for line in captured.get().splitlines())),), {}
        return super().print(*objects, **{"soft_wrap": True, **options})


def _width() -> int | None:
    """None: as wide as the terminal is, or as COLUMNS says."""
    return None if "COLUMNS" in os.environ or (sys.stderr is not None and sys.stderr.isatty()) else _WIDTH


console = _Console(stderr=True, width=_width(), markup=False, emoji=False)
"""Prompts, paths and names hold brackets and colons that would be read as markup; colours come from `rich.text`."""


def tell(kind: str, text: str) -> None:
    """A line that begins with its kind ("warning", "note", "skipped") in colour."""
    console.print(Text.assemble((kind, "yellow"), f" {text}"))


def tell_notes(notes: Iterable[str], of: str = "") -> None:
    """What was assumed of a dataset, as warnings; `of` names it where there are several."""
    for note in notes:
        tell("warning", f"{of}: {note}" if of else note)


def progress_bar() -> Progress | Lines:
    """A bar whose tasks take `description` and a free `note` field (rate, loss, success); lines where the output is no
    terminal.
    """
    if not console.file.isatty():
        return Lines()
    return Progress(
        TextColumn("{task.description:<22}", markup=False),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left", markup=False),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=console,
        refresh_per_second=4,
    )


@contextmanager
def steps_shown(first: str) -> Iterator[Callable[[str], None]]:
    """Shows what is being done, where nobody knows how much is left: a line that changes, or in a file a line each."""
    if not console.file.isatty():
        console.print(first)
        yield console.print
        return
    with console.status(Text(first)) as status:
        yield lambda text: status.update(Text(text))


@dataclass
class _Task:
    description: str
    total: float | None
    completed: float
    note: str
    first: float
    """What was completed when it began."""
    began: float
    told: float
    """When the last line was, in seconds of `time.monotonic`."""
    shown: tuple[float | None, ...] = ()


class Lines:
    """The same for a log file: a line for each running task, every LINE_SECONDS at most, and one at its end."""

    console = console

    def __init__(self) -> None:
        self._tasks: list[_Task] = []

    def add_task(self, description: str, total: float | None = None, completed: float = 0, note: str = "") -> TaskID:
        now = time.monotonic()
        self._tasks.append(
            _Task(description, total, completed, note, completed, now, now - LINE_SECONDS + FIRST_SECONDS)
        )
        return TaskID(len(self._tasks) - 1)

    def update(
        self,
        task_id: TaskID,
        *,
        completed: float | None = None,
        advance: float = 0,
        total: float | None = None,
        note: str | None = None,
    ) -> None:
        task = self._tasks[task_id]
        task.completed = (task.completed if completed is None else completed) + advance
        task.total = task.total if total is None else total
        task.note = task.note if note is None else note
        if time.monotonic() - task.told >= LINE_SECONDS or task.completed == task.total:
            self._tell(task)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        self.update(task_id, advance=advance)

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        for task in self._tasks:
            if task.completed > task.first:
                self._tell(task)

    def _tell(self, task: _Task) -> None:
        state = (task.completed, task.total)
        if state == task.shown:
            return
        task.told, task.shown = time.monotonic(), state
        self.console.print(_line(task))


def _line(task: _Task) -> str:
    """As in: training 1,200/5,000 (24 %), 0:04:10, 0:13:12 left, loss 0.0471 · 210 samples/s

    What is left is estimated from 1 % on: the first pieces wait for processes that begin.
    """
    elapsed, done = time.monotonic() - task.began, task.completed - task.first
    parts = [f"{task.description} {task.completed:,.0f}"]
    if task.total:
        parts[0] += f"/{task.total:,.0f} ({task.completed / task.total:.0%})".replace("%", " %")
    parts.append(str(timedelta(seconds=round(elapsed))))
    if task.total and done > 0 and task.total > task.completed >= task.total / 100:
        parts.append(f"{timedelta(seconds=round(elapsed * (task.total - task.completed) / done))} left")
    return ", ".join([*parts, *([task.note] if task.note else [])])
