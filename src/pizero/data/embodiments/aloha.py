"""ALOHA: two ViperX arms of six joints and a gripper each."""

from __future__ import annotations

from pizero.data.conversions import Conversion
from pizero.data.embodiments.embodiment import Embodiment

_GRIPPERS = (6, 13)
_ARM = (*[True] * 6, False)


def aloha() -> Embodiment:
    """State and action: left joints (6, rad), left gripper (0 closed, 1 open), then the right arm's; joint targets.

    Standard ALOHA data at 50 Hz, converted to what the released models were trained with: four joints turn the other
    way, and the gripper is the angle of its motor; the state gives it by the distance of the fingers, the action by the
    angle over another range. Facts: openpi src/openpi/policies/aloha_policy.py (adapt_to_pi), training/config.py
    (LeRobotAlohaDataConfig).
    """
    return Embodiment(
        "aloha",
        {"base_0_rgb": "cam_high", "left_wrist_0_rgb": "cam_left_wrist", "right_wrist_0_rgb": "cam_right_wrist"},
        state_dim=14,
        action_dim=14,
        relative_mask=_ARM * 2,
        grippers=_GRIPPERS,
        conversions=(
            Conversion((1, 2, 8, 9), model=(0.0, -1.0)),
            Conversion(_GRIPPERS, of="state", curve="aloha_gripper", robot=(0.5476, 1.6296)),
            Conversion(_GRIPPERS, of="action", model=(-0.6213 - 0.5476, 1.4910 - 0.5476)),
        ),
    )


def aloha_sim() -> Embodiment:
    """The simulator `aloha`: one camera from above and one behind each hand. State and action as above, numbers as
    they are. Published datasets of simulated ALOHA have "top" alone, and openpi trains them absolute:
    examples/aloha_sim.toml.
    """
    cameras = {"base_0_rgb": "top", "left_wrist_0_rgb": "left_hand", "right_wrist_0_rgb": "right_hand"}
    return Embodiment("aloha_sim", cameras, state_dim=14, action_dim=14, relative_mask=_ARM * 2, grippers=_GRIPPERS)
