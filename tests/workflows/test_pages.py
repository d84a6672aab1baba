"""The code of README and docs: commands that exist with these options, and code that runs.

A block of code without a mark is run, here or in one of the tests that `RUN` names. A mark is a comment before it,
`<!-- not run: why -->`: its commands, options, scripts and targets are looked at all the same.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import tyro

from pizero.cli.main import COMMANDS
from pizero.configs.presets import PRESETS, ModelName, get_preset

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<why>[^>]+) -->\n)?```(?P<kind>\w*)\n(?P<code>.*?)^```", re.MULTILINE | re.DOTALL
)
RUN = {
    "from_openpi.md": "test_moving_pages.py",
    "from_lerobot.md": "test_moving_pages.py",
    "simulators.md": "test_plugins.py",
    "tour.md": "test_tour.py",
    "README.md": "test_tour.py",
    "install.md": "test_completion.py",
}
"""Pages whose blocks are run, and by which test."""
NOT_CODE = ("text", "csv", "yaml")
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
EXTRAS = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
OTHERS = re.compile(r"(lerobot-\w+|ray|python -m (lerobot|lerobot_policy_pizero)\S*) ")
"""Programs of other projects, whose options are not ours to check."""


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    kind: str
    code: str
    why: str | None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(page.name, text[: found.start()].count("\n") + 1, found["kind"], found["code"], found["why"])
        for found in BLOCK.finditer(text)
    ]


BLOCKS = [block for page in PAGES for block in blocks(page)]


def commands(code: str) -> list[str]:
    """One a line, or several that end in a backslash; what stands three blanks or a # after it explains it."""
    lines = re.sub(r"\\\n\s*", "", code).splitlines()
    found = [re.split(r"   | #|  #", line.strip())[0].strip() for line in lines]
    return [re.sub(r" > \S+$", "", command) for command in found if command]


def test_every_block_is_run_or_says_why_not() -> None:
    left = [str(b) for b in BLOCKS if b.kind not in NOT_CODE and b.why is None and b.page not in RUN]
    assert left == []
    assert all(list((ROOT / "tests").rglob(test)) for test in RUN.values())
    named = {path for b in BLOCKS for path in re.findall(r"tests/[\w/]+(?:\.py)?", b.why or "")}
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.kind == ""], ids=str)
def test_commands_exist(block: Block) -> None:
    assert wrong_commands(block.code) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_within_sentences_exist(page: Path) -> None:
    text = BLOCK.sub("", page.read_text())
    found = [" ".join(code.split()) for code in re.findall(r"`(pizero [a-z][^`]*)`", text)]
    assert [wrong for command in found for wrong in wrong_options(command)] == []


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.kind in ("python", "toml")], ids=str)
def test_code_is_code(block: Block, tmp_path: Path) -> None:
    """And what it imports from the package is there. A preset without a robot of its own is one."""
    if block.kind == "toml":
        values = tomllib.loads(block.code)
        if values.get("like") in PRESETS and values.get("embodiment", "own") == "own":
            (tmp_path / "preset.toml").write_text(block.code)
            kind: ModelName = "diffusion" if "objective" in values.get("model", {}) else "pi0"
            assert get_preset(str(tmp_path / "preset.toml"), kind).train.steps > 0
        return
    for node in ast.walk(ast.parse(block.code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pizero"):
            module = importlib.import_module(str(node.module))
            assert all(hasattr(module, alias.name) for alias in node.names)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pizero":
            assert hasattr(importlib.import_module("pizero"), node.attr)


def wrong_commands(code: str) -> list[str]:
    wrong: list[str] = []
    for command in commands(code):
        if command.startswith("make "):
            wrong += [] if command.split()[1] in TARGETS else [command]
        elif command.startswith("pip install"):
            wrong += [extra for extra in re.findall(r"\[([\w,]+)\]", command) if extra not in EXTRAS]
        elif (script := re.match(r"python (benchmarks/\S+)", command)) is not None:
            source = (ROOT / script[1]).read_text() if (ROOT / script[1]).is_file() else ""
            options = re.findall(r"--([\w-]+)", command)
            wrong += [command for o in options if o not in source and o.replace("-", "_") not in source]
            wrong += [] if source else [command]
        elif "pizero " in command and not OTHERS.match(command):
            wrong += wrong_options(command[command.index("pizero ") :], whole="|" not in command)
        elif not OTHERS.match(command):
            wrong.append(command)
    return wrong


def wrong_options(command: str, whole: bool = False) -> list[str]:
    """whole: it must be one that could be run; else options that the command does not have are wrong, and no more."""
    _, name, *arguments = shlex.split(command)
    if name in ("--help", "--version"):
        return []
    if name not in COMMANDS:
        return [command]
    module = importlib.import_module(f"pizero.cli.{name.replace('-', '_')}")
    if whole:
        with quiet() as shown:
            try:
                tyro.cli(module.Arguments, args=arguments, prog=f"pizero {name}")
            except SystemExit as stopped:
                if stopped.code:
                    return [f"{command}: {shown.getvalue()}"]
        return []
    given = {argument.split("=")[0] for argument in arguments if argument.startswith("--")}
    return [f"{command}: {option}" for option in given if option not in options_of(name)]


KNOWN: dict[str, str] = {}


def options_of(name: str) -> str:
    """All of a command's help, that of what comes after it too (`bench inference`)."""
    if name not in KNOWN:
        module = importlib.import_module(f"pizero.cli.{name.replace('-', '_')}")
        parts = [[], ["inference"], ["int8"], ["tokens"]] if name == "bench" else [[]]
        with quiet() as shown:
            for part in parts:
                with contextlib.suppress(SystemExit):
                    tyro.cli(module.Arguments, args=[*part, "--help"], prog=f"pizero {name}")
        KNOWN[name] = shown.getvalue()
    return KNOWN[name]


@contextlib.contextmanager
def quiet() -> Iterator[io.StringIO]:
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
        yield shown


def test_wrong_commands_are_found() -> None:
    wrong = [
        "make nothing",
        "pizero fly",
        "pizero train --no-such x",
        "python benchmarks/none.py",
        "rm -rf /",
        "pip install '.[y]'",
    ]
    assert [bool(wrong_commands(command)) for command in wrong] == [True] * len(wrong)
    right = "pizero evaluate RUN --env tabletop      explained --here\npizero train data \\\n    --output r  # why\n"
    assert wrong_commands(right) == []
    assert wrong_options("pizero evaluate --env tabletop --subtasks WHO") == []
    assert wrong_options("pizero evaluate --environment x")
