"""A CSV file in which a person writes what happens when: a line for each piece of an episode.

    episode,from,to,text
    0,0,2.4,pick up the red block
    0,2.4,,put it into the box

from and to are seconds; with the columns from_frame and to_frame they are frames, of which to_frame is the first that
does not belong to it. Without an end a piece lasts to the next one, or to the episode's end.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pizero.data.datasets.files.json_files import as_number, as_whole
from pizero.types import UserError

COLUMNS = (("episode", "from", "to", "text"), ("episode", "from_frame", "to_frame", "text"))


@dataclass(frozen=True)
class Line:
    """start, end: in seconds, or in frames; without an end to the next line of the episode. number: of the line."""

    number: int
    episode: int
    start: float
    end: float | None
    text: str
    seconds: bool


def read_segments(path: Path) -> list[Line]:
    """The lines in their order; commas, semicolons or tabs between the columns. UserError names the line."""
    try:
        rows = list(_rows(path.read_text(encoding="utf-8-sig")))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; expected a CSV file with {','.join(COLUMNS[0])}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a CSV file ({error})") from None
    names = [name.strip().lower() for name in rows[0][1]] if rows else []
    columns = next((columns for columns in COLUMNS if set(columns) <= set(names)), None)
    if columns is None:
        raise UserError(
            f"{path}: expected the columns {','.join(COLUMNS[0])} (seconds), or {','.join(COLUMNS[1])}, in its first "
            f"line; got {','.join(names) or 'nothing'}"
        )
    places = [names.index(name) for name in columns]
    return [_line(path, number, [row[place].strip() for place in places], columns) for number, row in _full(rows, path)]


def renumbered(path: Path, numbers: Mapping[int, int]) -> str:
    """The file's text with other numbers of episodes; lines of an episode that has none are left out."""
    read_segments(path)  # says what is wrong with it
    (_, names), *rows = _rows(path.read_text(encoding="utf-8-sig"))
    place = [name.strip().lower() for name in names].index("episode")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for _, row in rows:
        if (number := numbers.get(as_whole(row[place].strip()) or 0)) is not None:
            writer.writerow([*row[:place], number, *row[place + 1 :]])
    return text.getvalue()


def _rows(text: str) -> Iterator[tuple[int, list[str]]]:
    """Lines that are not empty, with their numbers."""
    first = text.split("\n", 1)[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count))
    for row in reader:
        if any(cell.strip() for cell in row):
            yield reader.line_num, row


def _full(rows: list[tuple[int, list[str]]], path: Path) -> Iterator[tuple[int, list[str]]]:
    """Those after the first."""
    width = len(rows[0][1])
    for number, row in rows[1:]:
        if len(row) != width:
            raise UserError(
                f"{path}, line {number}: got {len(row)} columns, expected {width}; a text with a comma stands in "
                'quotes ("...")'
            )
        yield number, row


def _line(path: Path, number: int, cells: list[str], columns: tuple[str, ...]) -> Line:
    seconds = columns == COLUMNS[0]
    read = as_number if seconds else as_whole
    episode, start, end = as_whole(cells[0]), read(cells[1]), read(cells[2]) if cells[2] else None
    for name, cell, value in zip(columns, cells, (episode, start, end), strict=False):
        if (value is None and (cell or name == "episode")) or (value is not None and value < 0):
            kind = "a number of seconds" if seconds and name != "episode" else "a whole number"
            raise UserError(f"{path}, line {number}: {name} is {cell!r}, expected {kind}, 0 or more")
    if episode is None or start is None or not cells[3]:
        missing = next(name for name, cell in zip(columns, cells, strict=True) if not cell and name != columns[2])
        raise UserError(f"{path}, line {number}: no {missing}")
    if end is not None and end <= start:
        raise UserError(f"{path}, line {number}: it ends at {cells[2]}, not after {cells[1]}, where it begins")
    return Line(number, episode, start, end, " ".join(cells[3].split()), seconds)
