"""JSON of other projects, taken value by value: whatever is missing or of another kind is named in one line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from pizero.files import read_json
from pizero.types import UserError

_LARGEST = 2**31 - 1


class Settings:
    """A JSON object. The getters raise UserError with file and key; `where` is the path for messages."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values, self.where = values, where

    def __contains__(self, name: object) -> bool:
        return name in self.values

    def __iter__(self) -> Iterator[str]:
        return iter(self.values)

    def whole(self, name: str, default: int | None = None) -> int:
        """A whole number, at least 1."""
        value = self._get(name, default)
        if not _is_whole(value) or not 1 <= value <= _LARGEST:
            raise self.wrong(name, "a whole number of at least 1")
        return value

    def real(self, name: str) -> float:
        value = self._get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST:
            raise self.wrong(name, "a number")
        return float(value)

    def flag(self, name: str, default: bool | None = None) -> bool:
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        value = self._get(name, default)
        if not isinstance(value, str):
            raise self.wrong(name, "a text")
        return value

    def sizes(self, name: str) -> tuple[int, ...]:
        """A list of whole numbers, each at least 1."""
        value = self._get(name)
        if not isinstance(value, list) or not all(
            _is_whole(v) and 1 <= v <= _LARGEST for v in cast("list[Any]", value)
        ):
            raise self.wrong(name, "a list of whole numbers")
        return tuple(cast("list[int]", value))

    def inner(self, name: str) -> Settings:
        value = self._get(name)
        if not isinstance(value, dict):
            raise self.wrong(name, "an object")
        return Settings(cast("dict[str, Any]", value), f"{self.where}: {name}")

    def wrong(self, name: str, expected: str) -> UserError:
        """What to raise for a value of another kind."""
        return UserError(f"{self.where}: {name} is {short(self.values.get(name))}, expected {expected}")

    def _get(self, name: str, default: Any = None) -> Any:
        if name not in self.values and default is None:
            raise UserError(f"{self.where} has no {name!r}; copy the checkpoint again")
        return self.values.get(name, default)


def read_object(path: Path) -> Settings:
    """The JSON object in a file; UserError when there is none, or no such file."""
    return Settings(read_json(path), str(path))


def peek(path: Path) -> Mapping[str, Any]:
    """The same for detection: nothing where the file is absent or no JSON object."""
    try:
        return read_object(path).values
    except UserError:
        return {}


def short(value: object, length: int = 60) -> str:
    """A value for a message, in one line of bounded length."""
    if isinstance(value, int | float) and abs(value) > 1e18:
        return "a number beyond all measure"
    text = repr(value) if isinstance(value, str | int | float | bool | None) else type(value).__name__
    return text if len(text) <= length else text[: length - 3] + "..."


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
