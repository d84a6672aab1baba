"""The Sawyer arm of Meta-World."""

from __future__ import annotations

from pizero.data.embodiments.embodiment import Embodiment


def metaworld() -> Embodiment:
    """State: gripper position (3) and opening (1). Action: move of the gripper (3) and its effort (1)."""
    return Embodiment("metaworld", {"base_0_rgb": "corner", "left_wrist_0_rgb": "gripper"}, state_dim=4, action_dim=4)


def metaworld_mt() -> Embodiment:
    """The same arm in the suites MT10 and MT50, with a third camera."""
    cameras = {"base_0_rgb": "corner", "left_wrist_0_rgb": "gripper", "right_wrist_0_rgb": "side"}
    return Embodiment("metaworld_mt", cameras, state_dim=4, action_dim=4)
