"""Robots by name, or described: in Python by `generic` or a module:function, else by a TOML file
(examples/my_arm.toml)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from pizero.data.conversions import Conversion
from pizero.data.embodiments.aloha import aloha, aloha_sim
from pizero.data.embodiments.droid import droid, droid_joint_position
from pizero.data.embodiments.embodiment import Embodiment, Key
from pizero.data.embodiments.generic import generic
from pizero.data.embodiments.libero import libero, libero_sim
from pizero.data.embodiments.metaworld import metaworld, metaworld_mt
from pizero.data.embodiments.pusht import pusht
from pizero.data.embodiments.so101 import so101
from pizero.data.embodiments.tabletop import tabletop
from pizero.files import read_toml
from pizero.plugins import Registry
from pizero.types import UserError

__all__ = [
    "EMBODIMENTS", "Conversion", "Embodiment", "Key", "aloha", "aloha_sim", "droid", "droid_joint_position", "generic",
    "get_embodiment", "libero", "libero_sim", "metaworld", "metaworld_mt", "pusht", "so101",
    "tabletop",
]  # fmt: skip

EMBODIMENTS: dict[str, Callable[[], Embodiment]] = {
    "aloha": aloha,
    "aloha_sim": aloha_sim,
    "droid": droid,
    "droid_joint_position": droid_joint_position,
    "libero": libero,
    "libero_sim": libero_sim,
    "metaworld": metaworld,
    "metaworld_mt": metaworld_mt,
    "pusht": pusht,
    "so101": so101,
    "tabletop": tabletop,
}
_REGISTRY = Registry("embodiment", "pizero.robots", EMBODIMENTS, "a TOML file or module:function")


def get_embodiment(name: str) -> Embodiment:
    """A robot by name (a key of `EMBODIMENTS`, or an entry point of the group pizero.robots), as module:function, or by
    the path of a TOML file. UserError lists the names, or says what is wrong in the file.
    """
    path = Path(name)
    if path.suffix != ".toml":
        robot = _REGISTRY.make(name)
        if not isinstance(robot, Embodiment):
            raise UserError(f"embodiment {name!r}: expected an Embodiment, got a {type(robot).__name__}")
        return robot
    values = read_toml(path)
    try:
        return _described(values, path.stem)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _described(tables: dict[str, Any], name: str) -> Embodiment:
    """The robot that a file's tables describe: [robot] with the fields of `Embodiment`, and [cameras].

    robot.like is the name of a robot whose fields hold where the file says nothing.
    """
    if unknown := sorted(set(tables) - {"cameras", "robot"}):
        raise UserError(f"expected [cameras] and maybe [robot], not {unknown[0]}")
    robot = tables.get("robot", {})
    if not isinstance(robot, dict):
        raise UserError(f"robot must be a table, got {str(robot)[:60]}")
    described = {"name": name, **cast("dict[str, Any]", robot)}
    if "like" in described:
        like = described.pop("like")
        if not isinstance(like, str) or like.endswith(".toml"):
            raise UserError(f"robot.like must be the name of a robot, got {str(like)[:60]}")
        known = get_embodiment(like).to_json()
        for what in ("state_dim", "action_dim"):  # the known robot's widths are not those of a choice
            if f"{what}s" in described:
                del known[what]
        described = known | described
    elif "cameras" not in tables:
        raise UserError("expected [cameras], model camera = robot camera, or a robot.like that has some")
    if "cameras" in tables:
        described["cameras"] = tables["cameras"]
    return Embodiment.from_json(described)
