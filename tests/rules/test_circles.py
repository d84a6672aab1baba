"""No module imports itself by way of others: function-level and annotations-only imports count too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from test_layering import MODULES, SOURCE, imported


def name_of(path: Path) -> str:
    parts = ("pizero", *path.relative_to(SOURCE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def circles(imports: Mapping[str, Iterable[str]]) -> set[frozenset[str]]:
    """Groups of modules each of which reaches every other one."""
    reached = {name: _reached(imports, name) for name in imports}
    within = {name: frozenset(other for other in reached[name] if name in reached[other]) for name in imports}
    return {group for group in within.values() if group}


def _reached(imports: Mapping[str, Iterable[str]], start: str) -> set[str]:
    found, waiting = set[str](), [start]
    while waiting:
        new = set(imports[waiting.pop()]) - found
        found |= new
        waiting += new
    return found


def test_no_imports_in_circles() -> None:
    assert circles({name_of(path): imported(path) for path in MODULES}) == set()


def test_the_rule_finds_circles() -> None:
    imports = {"a": ["b"], "b": ["c"], "c": ["b", "d"], "d": [], "e": ["e"]}
    assert circles(imports) == {frozenset({"b", "c"}), frozenset({"e"})}


def test_imports_in_functions_and_for_annotations_count(tmp_path: Path) -> None:
    text = (
        "from typing import TYPE_CHECKING\nfrom pizero.envs import offscreen\n"
        "if TYPE_CHECKING:\n    from pizero.data.loader import Loader\n"
        "def f():\n    from pizero.envs import make_env\n    import pizero.files\n"
    )
    (tmp_path / "module.py").write_text(text)
    assert imported(tmp_path / "module.py") == {
        "pizero.envs.offscreen", "pizero.data.loader", "pizero.envs", "pizero.files",
    }  # fmt: skip
