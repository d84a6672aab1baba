"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import json
import os
import platform
import re
import secrets
import shutil
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, cast

from pizero.types import UserError

_LARGEST_JSON = 16 << 20
_LARGEST_TOML = 1 << 20


def cache_folder() -> Path:
    """Where downloads and decoded frames are kept: the environment variable PIZERO_CACHE, or ~/.cache/pizero."""
    return Path(os.environ.get("PIZERO_CACHE", Path.home() / ".cache" / "pizero")).expanduser()


def lies_inside(path: Path, folder: Path) -> bool:
    """Whether a path, made of what a file says, names something in a folder. Links in the folder may lead out of it."""
    found = Path(os.path.abspath(path))
    return found != Path(os.path.abspath(folder)) and found.is_relative_to(os.path.abspath(folder))


def read_file(path: Path, largest: int) -> bytes:
    """All of a file of at most `largest` bytes; UserError for a larger one.

    OSError when there is none, or something else: a folder, a device or a pipe, which may never end, or a link to one.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("this is no file, but a folder, a device or a pipe")
    with path.open("rb") as file:
        content = file.read(largest + 1)
    if len(content) > largest:
        raise UserError(f"{path} is larger than any file of this kind; it is not read")
    return content


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file, with or without a byte order mark.

    UserError when there is none: no such file, another content, a key twice, more than 16 MB, nested without end.
    """
    try:
        values: Any = json.loads(read_file(path, _LARGEST_JSON).decode("utf-8-sig"), object_pairs_hook=_distinct)
    except UserError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise UserError(f"{path} cannot be read as JSON ({reason}); copy it again") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds a {type(values).__name__} where a JSON object is expected; copy it again")
    return cast("dict[str, Any]", values)


def read_toml(path: Path) -> dict[str, Any]:
    """The tables in a TOML file that a user wrote, with or without a byte order mark. UserError when there are none."""
    import tomllib  # of Python 3.11; what runs an export needs 3.10

    text = ""
    try:
        text = read_file(path, _LARGEST_TOML).decode("utf-8-sig")
        values = tomllib.loads(text)
    except UserError:
        raise
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in UTF-8; save it in that encoding") from error
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        number = re.search(r"at line (\d+)", reason)
        line = "".join(text.splitlines()[int(number[1]) - 1 :][:1]) if number else ""
        hint = f"; {_QUOTES}" if re.search(r'"[^"]*\\', line) else ""
        raise UserError(f"{path} cannot be read as TOML ({reason}){hint}") from error
    if (wrong := next((value for value in _texts(values) if _DRIVE.match(value)), None)) is not None:
        raise UserError(f"{path} has the path {wrong!r}; {_QUOTES}")
    return values


_QUOTES = r"in double quotes \ begins a special character: write a path in single quotes, 'C:\data', or with /"
_DRIVE = re.compile(r"[A-Za-z]:[^ ]*[\b\t\n\f\r]")
"""What "C:\\temp" is where its one backslash made a tab of the t."""


def _texts(values: Any) -> Iterator[str]:
    """All texts among the values of a table, however deep."""
    if isinstance(values, str):
        yield values
    elif isinstance(values, dict | list):
        table = cast("dict[str, Any] | list[Any]", values)
        for value in table.values() if isinstance(table, dict) else table:
            yield from _texts(value)


@contextmanager
def values_of(where: Path | str) -> Iterator[None]:
    """Inside, values of another kind than expected (a list for a number, a missing key) are one UserError."""
    try:
        yield
    except UserError:
        raise
    except KeyError as error:
        raise UserError(f"{where} has no {str(error)[:100]}; complete it, or copy it again") from error
    except (TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{where} holds a value of another kind than expected ({reason}); copy it again") from error


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"the key {name[:60]!r} is there twice")
        values[name] = value
    return values


def partial_path(path: Path) -> Path:
    """A new hidden name beside `path` for what will be renamed to it; nothing is there yet, but the folder is.

    What processes that are dead left at such names for the same `path` is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path)
    return path.with_name(f".{path.name}.partial-{os.getpid()}-{_machine()}-{secrets.token_hex(4)}")


def remove_leftovers(path: Path) -> None:
    """Removes what processes of this machine that are dead left at names of `partial_path`."""
    pattern = re.compile(rf"{re.escape(f'.{path.name}.partial-')}(\d+)-{_machine()}-[0-9a-f]{{8}}")
    names = os.listdir(path.parent) if path.parent.is_dir() else []
    for name in names:
        match = pattern.fullmatch(name)
        if match and not is_running(int(match[1])):
            _remove(path.with_name(name))


def check_writable(folder: Path) -> None:
    """Makes the folder if need be; UserError where nothing can be written into it."""
    try:
        trial = partial_path(folder / "trial")
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error}); choose another folder") from error


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file under a temporary name beside it, then renames."""
    partial = partial_path(path)
    try:
        with partial.open("xb") as file:
            file.write(content)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder` that gets its name at the end, or goes when anything fails.

    UserError when there is something at the name already, or its parent cannot be written. A full disk is one too.
    """
    folder = folder.absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists already; choose another name, it will not be overwritten")
    try:
        partial = partial_path(folder)
        partial.mkdir()
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error})") from error
    try:
        yield partial
        if folder.is_dir():
            folder.rmdir()  # empty; Windows gives no name that is taken
        partial.replace(folder)
    except OSError as error:
        raise UserError(f"{folder} could not be written ({error}); nothing is left of it") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def is_running(process: int) -> bool:
    """Whether a process of this machine runs, anybody's; where that cannot be asked, it does."""
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


@cache
def _machine() -> str:
    """Marks process ids of this machine, beside others and containers that write to the same folder."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    return f"{zlib.crc32(f'{platform.node()} {space}'.encode()):08x}"


def _remove(path: Path) -> None:
    """A file or a folder, as far as that is possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
