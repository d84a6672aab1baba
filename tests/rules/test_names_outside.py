"""What benchmarks and examples import from the package exists there: no tool checks their types."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = [path for folder in ("benchmarks", "examples") for path in sorted((ROOT / folder).rglob("*.py"))]


def missing(tree: ast.AST) -> list[str]:
    """The modules and names of ``pizero`` that ``tree`` imports and that do not exist."""
    wrong: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "pizero":
            wrong += [
                f"{node.module}.{alias.name}" for alias in node.names if not _exists(str(node.module), alias.name)
            ]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.split(".")[0] == "pizero"]
            wrong += [name for name in names if not _exists(name)]
    return wrong


def _exists(module: str, name: str | None = None) -> bool:
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "pizero":
            raise
        return False
    if name is None or hasattr(found, name):
        return True
    return _exists(f"{module}.{name}")


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_of_scripts_exist(path: Path) -> None:
    assert missing(ast.parse(path.read_text())) == []


def test_the_rule_finds_a_missing_name() -> None:
    text = "import pizero.nowhere\nfrom pizero.model import attention, nothing\nfrom pizero.gone import x\n"
    assert missing(ast.parse(text)) == ["pizero.nowhere", "pizero.model.nothing", "pizero.gone.x"]
