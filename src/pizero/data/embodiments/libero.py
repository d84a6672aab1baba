"""LIBERO: a simulated Franka arm that is moved by steps of its hand."""

from __future__ import annotations

from dataclasses import replace

from pizero.data.embodiments.embodiment import Embodiment


def libero() -> Embodiment:
    """State: hand position (3), axis-angle (3), both fingers (2). Action: step of the hand (6), gripper (-1 opens).

    The actions are steps already, so none is made relative. (openpi's π0 for LIBERO does so all the same, in the first
    six dimensions: `like = "libero"` with that relative_mask.) The released datasets hold both images turned by 180
    degrees from what the simulator renders, and so must be what a robot sends. Facts: openpi
    src/openpi/policies/libero_policy.py, training/config.py (LeRobotLiberoDataConfig), examples/libero.
    """
    return Embodiment(
        "libero",
        {"base_0_rgb": "image", "left_wrist_0_rgb": "wrist_image"},
        state_dim=8,
        action_dim=7,
        state_key="state",
        action_key="actions",
        image_prefix="",
        grippers=(6,),
    )


def libero_sim() -> Embodiment:
    """The same robot in datasets that are recorded here in LIBERO's simulator, with LeRobot's usual columns."""
    return replace(
        libero(), name="libero_sim", state_key=Embodiment.state_key, action_key=Embodiment.action_key,
        image_prefix=Embodiment.image_prefix,
    )  # fmt: skip
