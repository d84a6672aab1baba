"""Dimensions of a robot's numbers that are chosen, by index or by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from pizero.types import UserError

Dims: TypeAlias = tuple[int | str, ...]
"""Dimensions of a column, or of joined columns: counted from 0, or by their names in the dataset's meta/info.json."""


def check_dims(what: str, dims: Dims, width: int | None) -> None:
    """`width`: how many the robot has, None where it is not known. UserError for a choice that is none."""
    for dim in dims:
        if isinstance(dim, bool) or not isinstance(dim, int | str) or dim == "" or (isinstance(dim, int) and dim < 0):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UserError(f"{what} must be whole numbers from 0 on, or names, got {repr(dim)[:60]}")
        if dims.count(dim) > 1:
            raise UserError(f"{what} names {dim!r} twice")
    if dims and width is not None and width != len(dims):
        raise UserError(f"{what} chooses {len(dims)} dimensions, but {what.removesuffix('s')} says {width}")


def chosen(what: str, dims: Dims, names: Sequence[str] | None, width: int) -> list[int]:
    """The indices that `dims` means in data of `width` dimensions with these names; all of them where it is empty, and
    where the names are the choice itself: a recording of what a policy of the robot was given and answered.

    what: the field, with its robot, for the error. UserError for one that is not there, or that is meant twice.
    """
    if not dims or (names is not None and list(names) == [str(dim) for dim in dims]):
        return list(range(width))
    found = [dim if isinstance(dim, int) else _position(what, dim, names) for dim in dims]
    for dim, index in zip(dims, found, strict=True):
        if index >= width:
            raise UserError(f"{what} names dimension {dim}, but the data has {width}, counted from 0")
        if found.count(index) > 1:
            raise UserError(f"{what} means dimension {index} twice ({dim!r})")
    return found


def _position(what: str, name: str, names: Sequence[str] | None) -> int:
    if names is None:
        raise UserError(f"{what} has the name {name!r}, but meta/info.json does not name the dimensions; give numbers")
    count = list(names).count(name)
    if count != 1:
        there = "is there twice" if count else "is not there"
        raise UserError(f"{what} has the name {name!r}, which {there}; the data has {', '.join(names)}")
    return list(names).index(name)
