"""What is printed can hold brackets: prompts, paths, names. None of it may be read as markup."""

from __future__ import annotations

import ast
import re
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "pizero"
MAKERS = {"Console", "TextColumn"}
MARKUP = re.compile(r"\[/(bold|dim|italic|red|green|yellow|blue|magenta|cyan)?\]")


def with_markup(text: str) -> list[str]:
    """Calls that make something which reads markup, or shows text with brackets; `Console().width` shows none."""
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call) and (node.args or node.keywords)]
    return [
        ast.unparse(call)
        for call in calls
        if isinstance(call.func, ast.Name)
        and call.func.id in MAKERS
        and not any(keyword.arg == "markup" and ast.unparse(keyword.value) == "False" for keyword in call.keywords)
    ]


def test_nothing_reads_markup() -> None:
    found = {str(path.relative_to(SOURCE)): with_markup(path.read_text()) for path in SOURCE.rglob("*.py")}
    assert {path: calls for path, calls in found.items() if calls} == {}


def test_no_text_has_markup() -> None:
    """It would be shown as it is."""
    assert all(map(MARKUP.search, ("[bold red]x[/]", "[dim]y[/dim]")))
    assert not MARKUP.search("state[13], a [/left]")
    assert [path for path in SOURCE.rglob("*.py") if MARKUP.search(path.read_text())] == []


def test_the_rule_finds_markup() -> None:
    assert with_markup("Console(stderr=True), Console(markup=False), Console().width") == ["Console(stderr=True)"]
    assert with_markup("Console(markup=True)") == ["Console(markup=True)"]
