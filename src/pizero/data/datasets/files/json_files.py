"""JSON as people have it: with a byte order mark, torn at the end, numbers as text, a Git LFS pointer instead."""

from __future__ import annotations

import errno
import json
import math
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from pizero.types import UserError

POINTER = b"version https://git-lfs"
POINTER_ADVICE = "is a Git LFS pointer: run `git lfs pull` in the dataset's folder"


def is_pointer(path: Path) -> bool:
    """Whether Git LFS left a pointer in the file's place; OSError where it cannot be read, or is a pipe or a device."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is no file, but a folder, a device or a pipe")
    if status.st_size >= 1024:
        return False
    return path.read_bytes().startswith(POINTER)


def is_there(path: Path) -> bool:
    """Whether it is a file; a name that no file can have is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object. UserError when the file is none."""
    try:
        if is_pointer(path):
            raise UserError(f"{path} {POINTER_ADVICE}")
        value = json.loads(path.read_bytes())  # bytes: the encoding is found by its mark
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is no readable JSON file ({_one_line(error)})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object")
    return cast("dict[str, Any]", value)


def read_lines(path: Path, notes: list[str]) -> list[tuple[int, dict[str, Any]]]:
    """JSON lines, each an object with its line number. A torn last line is skipped with a note."""
    try:
        if is_pointer(path):
            raise UserError(f"{path} {POINTER_ADVICE}")
        data = path.read_bytes()
        lines = data.decode(json.detect_encoding(data)).split("\n")
    except FileNotFoundError:
        raise UserError(f"{path} is missing; copy or download the dataset again") from None
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is no readable file of JSON lines ({_one_line(error)})") from None
    found: list[tuple[int, dict[str, Any]]] = []
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            value: Any = json.loads(text)
        except (ValueError, RecursionError) as error:
            if number == len(lines) and found:  # a whole file ends with a line break
                notes.append(f"{path}: its last line is torn and skipped; the recording was interrupted")
                break
            raise UserError(f"{path} is no readable file of JSON lines (line {number}: {_one_line(error)})") from None
        if not isinstance(value, dict):
            raise UserError(f"{path}: line {number} is no JSON object; download the dataset again")
        found.append((number, cast("dict[str, Any]", value)))
    return found


def as_number(value: Any) -> float | None:
    """A finite number, also written as text; None for all else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def as_whole(value: Any) -> int | None:
    """A whole number that counts something, also written as 3.0 or "3"; None for all else."""
    number = as_number(value)
    return int(number) if number is not None and number.is_integer() and abs(number) < 2**53 else None


def as_table(value: Any) -> Mapping[str, Any]:
    """An object; an empty one in the place of all else."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
