"""What meta/info.json says of single columns, in the shapes in which people write it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

Feature = dict[str, Any]


def dimension_names(names: Any) -> tuple[str, ...]:
    """The `names` of a column, flat; empty where there are none.

    Known forms: a list, lists of lists, `{"motors": [...]}` or `{"axes": [...]}`, one list for each part of the robot
    (where two parts share a name, each says its part: "left.joint_1"), and `{name: position}`.
    """
    if isinstance(names, str):
        return (names,)
    if isinstance(names, list):
        parts = [dimension_names(part) for part in cast("list[Any]", names)]
        return sum(parts, ()) if all(parts) else ()
    if not isinstance(names, dict):
        return ()
    table = cast("dict[str, Any]", names)
    if table and all(_is_number(value) for value in table.values()):
        return tuple(sorted(table, key=lambda name: table[name]))
    groups = {str(group): dimension_names(value) for group, value in table.items()}
    if not all(groups.values()):
        return ()
    return _joined(groups)


def _joined(groups: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    flat = [name for names in groups.values() for name in names]
    if len(set(flat)) == len(flat):
        return tuple(flat)
    return tuple(f"{group}.{name}" for group, names in groups.items() for name in names)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
