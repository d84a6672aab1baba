"""The built-in table-top scene."""

from __future__ import annotations

from pizero.data.embodiments.embodiment import Embodiment


def tabletop() -> Embodiment:
    """A camera above the table and one on the hand. State: position (3), cosine and sine of the yaw, opening, touch.

    Action: the pose to go to, position (3) and yaw / pi, and the gripper; absolute.
    """
    return Embodiment("tabletop", {"base_0_rgb": "top", "left_wrist_0_rgb": "ego"}, state_dim=7, action_dim=5)
