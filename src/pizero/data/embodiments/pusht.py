"""The disc of PushT."""

from __future__ import annotations

from pizero.data.embodiments.embodiment import Embodiment


def pusht() -> Embodiment:
    """A camera above the board and one that follows the disc. State: position (2). Action: position to go to (2).

    All in pixels of the board, 0 to 512, y down. The model learns the way from the disc to where it is to go.
    """
    cameras = {"base_0_rgb": "top", "left_wrist_0_rgb": "ego"}
    return Embodiment("pusht", cameras, state_dim=2, action_dim=2, relative_mask=(True, True))
