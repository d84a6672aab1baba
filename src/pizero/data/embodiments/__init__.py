"""Robots by name, or described: in Python by `generic`, else by a TOML file (examples/my_arm.toml)."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path

from pizero.data.embodiments.embodiment import Embodiment
from pizero.data.embodiments.generic import generic
from pizero.data.embodiments.metaworld import metaworld
from pizero.data.embodiments.pusht import pusht
from pizero.data.embodiments.tabletop import tabletop
from pizero.types import UserError

__all__ = ["EMBODIMENTS", "Embodiment", "generic", "get_embodiment", "metaworld", "pusht", "tabletop"]

EMBODIMENTS: dict[str, Callable[[], Embodiment]] = {
    "metaworld": metaworld,
    "pusht": pusht,
    "tabletop": tabletop,
}


def get_embodiment(name: str) -> Embodiment:
    """A robot by name, or by the path of a TOML file. UserError lists the names, or says what is wrong in the file."""
    if name in EMBODIMENTS:
        return EMBODIMENTS[name]()
    path = Path(name)
    if path.suffix != ".toml":
        raise UserError(f"unknown embodiment {name!r}; expected one of {', '.join(EMBODIMENTS)}, or a TOML file")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as TOML ({' '.join(str(error).split())})") from error
    unknown = sorted(set(values) - {"cameras", "robot"})
    cameras, robot = values.get("cameras"), values.get("robot", {})
    if unknown or not isinstance(cameras, dict) or not isinstance(robot, dict):
        raise UserError(f"{path}: expected [cameras] and maybe [robot]" + (f", not {unknown[0]}" if unknown else ""))
    try:
        return Embodiment.from_json({"name": path.stem, **robot, "cameras": cameras})
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
