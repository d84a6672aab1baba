"""What is told in the terminal: lines as they are, and one look for all progress bars."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

console = Console(stderr=True, markup=False, emoji=False)
"""Prompts, paths and names hold brackets and colons that would be read as markup; colours come from `rich.text`."""


def tell(kind: str, text: str) -> None:
    """A line that begins with its kind ("warning", "note", "left out") in colour."""
    console.print(Text.assemble((kind, "yellow"), f" {text}"))


def tell_notes(notes: Iterable[str], of: str = "") -> None:
    """What was assumed of a dataset, as warnings; `of` names it where there are several."""
    for note in notes:
        tell("warning", f"{of}: {note}" if of else note)


def progress_bar() -> Progress:
    """A bar whose tasks take `description` and a free `note` field (rate, loss, success)."""
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
