"""What long work says where nobody watches: lines in a file, whole and without escape codes."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.progress import Progress
from rich.table import Table

from pizero.workflows import progress
from pizero.workflows.progress import Lines, console, progress_bar, steps_shown


class Clock:
    """Stands still until it is told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    out = io.StringIO()
    monkeypatch.delenv("COLUMNS", raising=False)
    console.file = out
    yield out
    console.file = None  # type: ignore[assignment]  # standard error again


def test_a_line_every_so_many_seconds(clock: Clock, log: io.StringIO) -> None:
    with progress_bar() as bars:
        bar = bars.add_task("training", total=5000, completed=1000, note="")
        for step in range(1001, 1101):
            clock.now += 1
            bars.update(bar, completed=step, note=f"loss {1 / step:.4f}")
    lines = log.getvalue().splitlines()
    assert lines[0] == "training 1,002/5,000 (20 %), 0:00:02, 1:06:38 left, loss 0.0010"
    assert len(lines) == 1 + 98 // 15 + 1
    assert lines[-1].startswith("training 1,100/5,000 (22 %), 0:01:40, 1:05:00 left")


def test_short_work_is_one_line(clock: Clock, log: io.StringIO) -> None:
    with progress_bar() as bars:
        first, second = (bars.add_task(name, total=total, note="") for name, total in (("reading", 2), ("idle", None)))
        for _ in range(2):
            bars.advance(first)
        bars.update(second, total=7)
        clock.now += 60
    assert log.getvalue() == "reading 2/2 (100 %), 0:00:00\n"


def test_work_of_unknown_length(clock: Clock, log: io.StringIO) -> None:
    with progress_bar() as bars:
        bar = bars.add_task("layers", note="")
        for _ in range(3):
            clock.now += 20
            bars.update(bar, advance=1, note="vision.0")
    times = ("0:00:20", "0:00:40", "0:01:00")
    assert log.getvalue().splitlines() == [f"layers {n}, {at}, vision.0" for n, at in enumerate(times, 1)]


def test_what_was_reached_is_told_when_it_ends_early(clock: Clock, log: io.StringIO) -> None:
    def interrupted() -> None:
        with progress_bar() as bars:
            bars.update(bars.add_task("episodes", total=10, note=""), completed=4)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert log.getvalue() == "episodes 4/10 (40 %), 0:00:00, 0:00:00 left\n"


def test_steps_are_lines(log: io.StringIO) -> None:
    with steps_shown("opening") as show:
        show("writing [a]")
    assert log.getvalue() == "opening\nwriting [a]\n"


def test_lines_in_a_file_are_whole(log: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    long = "checkpoint: " + "folder/" * 40
    console.print(long)
    table = Table()
    table.add_column("a")
    table.add_row("word " * 22)
    monkeypatch.setattr(console, "width", progress._width())
    console.print(table)
    assert log.getvalue().splitlines()[0] == long
    assert "word " * 22 in log.getvalue()
    plain = Table("a", "much longer", box=None)
    plain.add_row("[b]", "c")
    console.print(plain)
    assert log.getvalue().splitlines()[-2:] == [" a    much longer", " [b]  c"]
    assert not any(line.endswith(" ") for line in log.getvalue().splitlines())


def test_a_terminal_has_a_bar(log: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(progress_bar(), Lines)
    monkeypatch.setattr(log, "isatty", lambda: True)
    assert isinstance(progress_bar(), Progress)


def test_a_command_in_a_log_file(tmp_path: Path) -> None:
    code = (
        "from pizero.workflows import progress; progress.LINE_SECONDS = progress.FIRST_SECONDS = 0.0\n"
        "from pizero.cli.main import run\n"
        f"run('collect', ['tabletop', '--output', {str(tmp_path / 'd')!r}, '--episodes', '3', '--image-size', '28'])\n"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr
    assert shown.count("recording episodes") == 3
    assert "recording episodes 3/3 (100 %)" in shown
    assert "\x1b" not in shown
