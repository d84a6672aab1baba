"""Imports go one way (docs/architecture.md), nothing happens at import, and files stay readable."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Set
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "pizero"
MODULES = sorted(SOURCE.rglob("*.py"))

LAYERS = (
    {"types", "files", "processes", "plugins"},
    {"model", "baseline", "data", "envs"},
    {"engine", "exported"},
    {"policy"},
    {"checkpoints"},
    {"train", "export"},
    {"evaluation", "serving", "report"},
    {"workflows", "configs", "cli"},
)
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}
WITHIN = {
    ("files", "types"),
    ("processes", "types"),
    ("plugins", "types"),
    ("workflows", "configs"),
    ("cli", "workflows"),
    ("cli", "configs"),
}
"""Imports between parts of one layer."""
BASELINE_MAY_USE = {"pizero.model.action_model", "pizero.model.flow_matching", "pizero.model.layers"}

FILE_LINES, FUNCTION_LINES, CONFIG_FIELDS = 400, 60, 25
LONGER = {"train_policy": 80}
"""Functions that tell one story from top to bottom; in two they would hand on all their parameters."""
PARAMETERS = 8
MORE_PARAMETERS = {
    "load_policy": 15,  # public, keyword-only, and what a user may give in any combination
}
PI0_LINES, CLOSURE_FILES, CLOSURE_LINES = 300, 12, 2_020


def part_of(path: Path) -> str:
    relative = path.relative_to(SOURCE)
    return relative.parts[0].removesuffix(".py")


@functools.cache
def imported(path: Path) -> frozenset[str]:
    """Modules of the package that a file imports anywhere, annotations-only imports included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            given = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = {name for name in given if module_path(name) is not None}
            names |= modules if modules == given else {node.module, *modules}
    return frozenset(name for name in names if name.startswith("pizero.") and module_path(name) is not None)


def module_path(name: str) -> Path | None:
    base = SOURCE.joinpath(*name.split(".")[1:])
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


def violations(part: str, names: Set[str]) -> list[str]:
    found = []
    for name in sorted(names):
        other = name.split(".")[1]
        if other == part or LEVEL[other] < LEVEL[part] or (part, other) in WITHIN:
            continue
        if part == "baseline" and name in BASELINE_MAY_USE:
            continue
        found.append(name)
    return found


@pytest.mark.parametrize("path", [p for p in MODULES if p.parent != SOURCE or p.stem in LEVEL], ids=str)
def test_imports_go_one_way(path: Path) -> None:
    assert violations(part_of(path), imported(path)) == []


def test_the_rule_finds_a_wrong_import() -> None:
    assert violations("model", {"pizero.data.images"}) == ["pizero.data.images"]
    assert violations("data", {"pizero.policy.policy", "pizero.types"}) == ["pizero.policy.policy"]


def test_only_the_benchmark_knows_ablations() -> None:
    users = {str(path.relative_to(SOURCE)) for path in MODULES if "pizero.engine.ablation" in imported(path)}
    assert users == {"cli/bench.py", "workflows/bench_inference.py"}


def test_the_model_needs_torch_and_types_only() -> None:
    allowed = {"torch", "pizero", "__future__", *sys.stdlib_module_names}
    for path in (SOURCE / "model").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert {name.split(".")[0] for name in names} <= allowed, path


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """Without those of `*args` and `**kwargs`, and without a method's self."""
    given = function.args
    names = [argument.arg for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return [name for name in names if name not in ("self", "cls")]


def test_parameters_are_counted() -> None:
    method = ast.parse("def f(self, a, /, b, *args, c=1, **more): ...").body[0]
    assert isinstance(method, ast.FunctionDef)
    assert parameters(method) == ["a", "b", "c"]


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_sizes(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno + 1 <= LONGER.get(node.name, FUNCTION_LINES), node.name
            assert len(parameters(node)) <= MORE_PARAMETERS.get(node.name, PARAMETERS), node.name
        if isinstance(node, ast.ClassDef) and node.name.endswith("Config"):
            assert sum(isinstance(item, ast.AnnAssign) for item in node.body) <= CONFIG_FIELDS, node.name


def test_the_model_fits_in_one_sitting() -> None:
    start = SOURCE / "model" / "pi0.py"
    assert len(start.read_text().splitlines()) <= PI0_LINES
    closure, waiting = set[Path](), [start]
    while waiting:
        path = waiting.pop()
        if path not in closure:
            closure.add(path)
            waiting += [found for name in imported(path) if (found := module_path(name)) is not None]
    closure = {path for path in closure if path.name != "__init__.py"}
    assert len(closure) <= CLOSURE_FILES, sorted(closure)
    assert sum(len(path.read_text().splitlines()) for path in closure) <= CLOSURE_LINES


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, pizero; print('torch' in sys.modules, 'numpy' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["False", "False"]
