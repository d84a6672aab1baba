"""DROID: a Franka arm of seven joints with a Robotiq gripper, at 15 Hz."""

from __future__ import annotations

from dataclasses import replace

from pizero.data.embodiments.embodiment import Embodiment


def droid() -> Embodiment:
    """State: joints (7, rad), gripper (0 open, 1 closed). Action: joint velocities (7), gripper; as recorded.

    openpi's robot clips actions to [-1, 1] and takes a gripper above 0.5 as closed. Facts: openpi docs/norm_stats.md,
    examples/droid, src/openpi/policies/droid_policy.py, training/config.py (LeRobotDROIDDataConfig).
    """
    return Embodiment(
        "droid",
        {"base_0_rgb": "exterior_image_1_left", "left_wrist_0_rgb": "wrist_image_left"},
        state_dim=8,
        action_dim=8,
        state_key=("joint_position", "gripper_position"),
        action_key="actions",
        image_prefix="",
        grippers=(7,),
    )


def droid_joint_position() -> Embodiment:
    """The same with joint targets (7, rad) as actions, learned relative to the joints: openpi's RLDSDroidDataConfig."""
    return replace(droid(), name="droid_joint_position", relative_mask=(*[True] * 7, False))
