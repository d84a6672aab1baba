"""lerobot-rollout with one more robot, --robot.type=stand_in: two joints and a camera, without hardware.

It prints how many actions it was sent, and how far from the middle of the board the last one was.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from lerobot.robots.config import RobotConfig
from lerobot.robots.robot import Robot

JOINTS, SHAPE = ("x.pos", "y.pos"), (48, 64, 3)


@RobotConfig.register_subclass("stand_in")
@dataclass
class StandInConfig(RobotConfig):
    pass


class StandIn(Robot):
    config_class, name = StandInConfig, "stand_in"
    observation_features = {**dict.fromkeys(JOINTS, float), "top": SHAPE}  # noqa: RUF012
    action_features = dict.fromkeys(JOINTS, float)
    is_connected = is_calibrated = True

    def __init__(self, config: StandInConfig) -> None:
        super().__init__(config)
        self.sent = 0
        self.places = dict.fromkeys(JOINTS, 256.0)

    def connect(self, calibrate: bool = True) -> None: ...

    def calibrate(self) -> None: ...

    def configure(self) -> None: ...

    def get_observation(self) -> dict[str, Any]:
        return {**self.places, "top": np.full(SHAPE, 200, np.uint8)}

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        self.sent, self.places = self.sent + 1, {name: float(action[name]) for name in JOINTS}
        return action

    def disconnect(self) -> None:
        far = max(abs(place - 256.0) for place in self.places.values())
        print(f"the stand-in was sent {self.sent} actions, the last one {far:.1f} from the middle", flush=True)


if __name__ == "__main__":
    from lerobot.scripts.lerobot_rollout import main

    main()
