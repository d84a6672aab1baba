"""Texts of `--help`: a docstring's paragraphs reach tyro as one line each, and are broken where they are printed."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import itertools
import shutil
import textwrap
from typing import Any, TextIO, get_args, get_type_hints


def join_paragraphs(arguments: Any) -> None:
    """Prepares a command's dataclass, or a union of them, for tyro.

    tyro keeps a docstring's line break where the next line is indented or begins with no letter, so every one below a
    field, and joins other lines. Here each paragraph becomes one line; an indented line, as of examples, stays alone.
    """
    for kind in _dataclasses(arguments):
        kind.__doc__ = paragraphs(kind.__doc__ or "")
        texts = _below_fields(kind)
        for field in dataclasses.fields(kind):
            if field.name in texts:
                field.metadata = {**field.metadata, "help": paragraphs(texts[field.name])}  # type: ignore[assignment]


def paragraphs(docstring: str) -> str:
    """The docstring with a line for each paragraph and each indented line."""
    lines: list[str] = []
    for line in inspect.cleandoc(docstring).splitlines():
        if lines and lines[-1] and line and not line.startswith(" "):
            lines[-1] += f" {line}"
        else:
            lines.append(line)
    return "\n".join(lines)


def fold(line: str, hang: int = 0) -> str:
    """A line broken between words so that it fits the terminal, later parts indented as it is, and by `hang` more."""
    width = shutil.get_terminal_size().columns
    if len(line) <= width:
        return line
    indent = " " * (len(line) - len(line.lstrip()) + hang)
    return textwrap.fill(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


class Folded(io.TextIOBase):
    """A stream whose lines are folded; those with colours are of a fitting width already."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        lines = [line if "\x1b" in line else fold(line) for line in text.split("\n")]
        return self._stream.write("\n".join(lines))

    def isatty(self) -> bool:
        return self._stream.isatty()

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._stream.encoding

    def flush(self) -> None:
        self._stream.flush()


def _dataclasses(kind: Any) -> list[type]:
    """Those in a type, in their fields' types too."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        parts = get_type_hints(kind).values()
        return [kind, *(found for part in parts for found in _dataclasses(part))]
    return [found for part in get_args(kind) for found in _dataclasses(part)]


def _below_fields(kind: type) -> dict[str, str]:
    """The docstrings below the fields of a dataclass and of those that it derives from."""
    texts: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(each):
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(each))).body
        assert isinstance(tree, ast.ClassDef)
        for field, below in itertools.pairwise(tree.body):
            match field, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    texts[name] = text
    return texts
