"""What a robot's numbers mean to people: their units, and where positions lie in the picture of a camera from above."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Scene:
    """A camera that looks straight down. left, right, top, bottom: the position, in robot units, at the picture's
    edges; the first two dimensions of an action are the position to go to.
    """

    camera: str
    left: float
    right: float
    top: float
    bottom: float

    def to_picture(self, x: float, y: float) -> tuple[float, float]:
        """A position -> shares of the picture's width and height, from its upper left corner."""
        return (x - self.left) / (self.right - self.left), (y - self.top) / (self.bottom - self.top)

    def to_robot(self, across: float, down: float) -> tuple[float, float]:
        """The inverse."""
        return self.left + across * (self.right - self.left), self.top + down * (self.bottom - self.top)


TABLETOP = Scene("top", -1.1, 1.1, 1.1, -1.1)
SCENES = {"tabletop": TABLETOP, "pusht": Scene("top", 0.0, 512.0, 0.0, 512.0)}
"""By the name of the embodiment."""
ACTION_UNITS: dict[str, tuple[str, ...]] = {
    "tabletop": (*["half tables"] * 3, "half turns", "1 closes"),
    "pusht": ("px", "px"),
    "metaworld": (*["cm a step"] * 3, "1 closes"),
    "so101": (*["°"] * 5, "% open"),
    "aloha_sim": (*["rad"] * 6, "share open", *["rad"] * 6, "share open"),
    "libero_sim": (*["5 cm a step"] * 3, *["0.5 rad a step"] * 3, "1 closes"),
}
"""Of the dimensions of an action, by the name of the embodiment."""


def with_units(robot: str, names: Sequence[str]) -> tuple[str, ...]:
    """Names of an action's dimensions with the units that an embodiment has, as they are where none are known."""
    units = ACTION_UNITS.get(robot, ())
    if len(units) != len(names):
        return tuple(names)
    return tuple(f"{name} ({unit})" for name, unit in zip(names, units, strict=True))
