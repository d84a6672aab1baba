"""Values of a robot's description, as JSON and TOML give them, made into those of `Embodiment`; or one line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeAlias, cast

from pizero.data.conversions import Conversion
from pizero.types import UserError

Reader: TypeAlias = Callable[[object, str], Any]
"""(value, what to call it) -> the field's own type; UserError for another."""


def _refuse(value: object, where: str, expected: str) -> NoReturn:
    raise UserError(f"{where} must be {expected}, got {str(value)[:60]}")


def _text(value: object, where: str) -> str:
    return value if isinstance(value, str) else _refuse(value, where, "a text")


def _flag(value: object, where: str) -> bool:
    return value if isinstance(value, bool) else _refuse(value, where, "true or false")


def _whole(value: object, where: str) -> int:
    return value if type(value) is int else _refuse(value, where, "a whole number")


def _width(value: object, where: str) -> int | None:
    return None if value is None else _whole(value, where)


def _number(value: object, where: str) -> float:
    if type(value) is float or (type(value) is int and abs(value) < 1 << 1000):
        return float(value)
    _refuse(value, where, "a number")


def _list(read: Reader, things: str) -> Reader:
    def read_all(value: object, where: str) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple):
            _refuse(value, where, f"a list of {things}")
        return tuple(read(item, f"{where}[{index}]") for index, item in enumerate(cast("list[object]", value)))

    return read_all


def _key(value: object, where: str) -> Any:
    if not value:
        _refuse(value, where, "the name of a column, or a list of some")
    return _text(value, where) if isinstance(value, str) else _list(_text, "columns")(value, where)


def _cameras(value: object, where: str) -> dict[str, str]:
    if not isinstance(value, Mapping):
        _refuse(value, where, "a table: model camera = robot camera")
    table = cast("Mapping[object, object]", value)
    return {_text(name, where): _text(robot, f"{where}.{name}") for name, robot in table.items()}


def _conversion(value: object, where: str) -> Conversion:
    if not isinstance(value, Mapping):
        _refuse(value, where, "a table with dims, robot, model")
    table = cast("Mapping[str, object]", value)
    for key in table:
        if key not in _CONVERSION:
            raise UserError(f"{where}: unknown key {str(key)[:60]!r}; expected some of {', '.join(_CONVERSION)}")
    if "dims" not in table:
        raise UserError(f"{where}: no 'dims'; name the dimensions, counted from 0")
    read = {key: _CONVERSION[key](item, f"{where}.{key}") for key, item in table.items()}
    try:
        return Conversion(**read)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _dimension(value: object, where: str) -> int | str:
    return value if isinstance(value, str) else _whole(value, where)


_FLAGS, _WHOLES, _NUMBERS = _list(_flag, "true and false"), _list(_whole, "whole numbers"), _list(_number, "numbers")
_CONVERSION: dict[str, Reader] = {
    "dims": _WHOLES, "of": _text, "robot": _NUMBERS, "model": _NUMBERS, "curve": _text,
}  # fmt: skip
READERS: dict[str, Reader] = {
    "name": _text, "cameras": _cameras, "state_dim": _width, "action_dim": _width,
    "relative_mask": _FLAGS, "state_indices": _WHOLES, "grippers": _WHOLES,
    "conversions": _list(_conversion, "tables"), "state_key": _key, "action_key": _key, "prompt_key": _text,
    "image_prefix": _text, "default_prompt": _text, "state_dims": _list(_dimension, "whole numbers or names"),
    "action_dims": _list(_dimension, "whole numbers or names"),
}  # fmt: skip
"""By field of `Embodiment`."""
