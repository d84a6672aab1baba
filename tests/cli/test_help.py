"""`--help`: what it imports, and lines that end where the terminal does and nowhere else."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys

import pytest

from pizero.cli.help_text import fold, paragraphs
from pizero.cli.main import COMMANDS

WIDTH, END = 80, "-- end --"
CALLS = [*([name] for name in COMMANDS), *(["bench", name] for name in ("inference", "int8", "tokens"))]
HEAVY = {"torch", "numpy", "scipy", "pyarrow", "av", "PIL", "matplotlib", "gymnasium", "huggingface_hub", "websockets"}


ALL = f"""
import sys
from contextlib import suppress
from pizero.cli.main import main, run
sys.argv = ["pizero", "--help"]
with suppress(SystemExit):
    main()
assert "tyro" not in sys.modules
for call in {CALLS}:
    print("{END}")
    with suppress(SystemExit):
        run(call[0], [*call[1:], "--help"])
print("{END}")
print(*{HEAVY} & set(sys.modules))
"""


def printed(code: str, *arguments: str, **environment: str) -> str:
    """Of a process of its own, into a pipe."""
    inherited = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, encoding="utf-8", check=True,
        env=inherited | {"PYTHONIOENCODING": "utf-8"} | environment,
    ).stdout  # fmt: skip


@pytest.fixture(scope="module")
def everything() -> list[str]:
    """The help of pizero, of each call, and what is imported then."""
    return printed(ALL, COLUMNS=str(WIDTH)).split(f"{END}\n")


def test_help_imports_nothing_heavy(everything: list[str]) -> None:
    """What is imported is how long it takes."""
    assert everything[-1].strip() == ""


@pytest.mark.parametrize("number", range(len(CALLS)), ids=[" ".join(call) for call in CALLS])
def test_lines_end_where_the_terminal_does(number: int, everything: list[str]) -> None:
    lines = everything[number + 1].splitlines()
    assert lines[0].startswith(f"usage: pizero {' '.join(CALLS[number])} ")
    assert max(map(len, lines)) <= WIDTH
    outside = [line for line in lines if not line.startswith(tuple("╭│╰"))]
    within = [line[2:-2].rstrip() for line in lines if line.startswith("│")]
    assert within
    assert early_ends(outside, WIDTH, " ") + early_ends(within, WIDTH - 4, "") == []


def early_ends(lines: list[str], width: int, indent: str) -> list[str]:
    """Lines that had room for the first word of the next one, which belongs to the same paragraph."""
    return [
        line
        for line, after in itertools.pairwise(lines)
        if line and after and not (indent and after.startswith(indent))
        and (indent or after.startswith("    ")) and not re.fullmatch(r"-\S+( \S+)*", line)
        and len(line) + 1 + len(after.split()[0]) <= width
    ]  # fmt: skip


def test_help_in_a_file_is_80_columns_wide() -> None:
    for arguments in (["--help"], ["train", "--help"]):
        shown = printed("from pizero.cli.main import main; main()", *arguments)
        assert max(map(len, shown.splitlines())) <= WIDTH
        assert "\x1b" not in shown


def test_a_paragraph_is_one_line() -> None:
    docstring = """First: a
    b; then
    --c d.

    Examples: e
              f

    g
    (h)
    """
    assert paragraphs(docstring) == "First: a b; then --c d.\n\nExamples: e\n          f\n\ng (h)"


def test_a_folded_line_stays_within_its_indentation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "10")
    assert fold("  aa bb cc dd") == "  aa bb cc\n  dd"
    assert fold("  aa bb cc dd", 2) == "  aa bb cc\n    dd"
    assert fold("a-very-long-word b") == "a-very-long-word\nb"
    assert fold("aa bb cc d") == "aa bb cc d"
