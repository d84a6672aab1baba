"""SO-101: one arm of five joints and a gripper."""

from __future__ import annotations

from pizero.data.embodiments.embodiment import Embodiment

_GRIPPER = 5


def so101() -> Embodiment:
    """A camera on the table and one on the hand, real or the simulator `so101`. State and action: five joints (degrees,
    0 in the middle of their ranges) and the gripper (0 closed, 100 open), as LeRobot records them with
    use_degrees=True; joint targets, relative but for the gripper.
    """
    return Embodiment(
        "so101",
        {"base_0_rgb": "front", "left_wrist_0_rgb": "wrist"},
        state_dim=6,
        action_dim=6,
        relative_mask=(*[True] * _GRIPPER, False),
        grippers=(_GRIPPER,),
    )
