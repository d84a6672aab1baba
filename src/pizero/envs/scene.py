"""Where a robot's positions lie in the picture of a fixed camera, for the scenes that have one straight above."""

from __future__ import annotations

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
