"""An SO-101 arm under a policy server: LeRobot's robot class on one side, pizero's client on the other.

    pizero serve runs/mine                                            on the machine with the model
    python examples/so101.py --port /dev/ttyACM0 --cameras front=0 wrist=2 --task "put the cube into the box"

Cameras have the names of the data that the policy was trained on. The arm never jumps: each target lies within its
joints' ranges and near the one before, the first one near where the arm is. Where the policy is late the arm holds;
late for a second, lost, or after Ctrl-C it stays where it is, powered: support it before you switch it off.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np

from pizero.policy.chunk_executor import ActionLimits, ChunkExecutor, RobotLoop
from pizero.serving.client import PolicyClient

RANGES = {
    "shoulder_pan.pos": (-110, 110), "shoulder_lift.pos": (-100, 100), "elbow_flex.pos": (-96, 96),
    "wrist_flex.pos": (-95, 95), "wrist_roll.pos": (-157, 163), "gripper.pos": (0, 100),
}  # fmt: skip
"""Degrees of the SO-101's joints (its URDF), and per cent of the gripper's opening: LeRobot's use_degrees=True."""
SPEED = 120.0
"""Degrees, or per cent, per second at most."""


def drive(robot: Any, policy: Any, task: str, *, fps: float = 30.0, seconds: float = 60.0, horizon: int = 15) -> None:
    """robot: LeRobot's, connected. policy: a client, or whatever has `infer`. horizon: actions between two questions.

    Returns after `seconds`; raises what stopped it. Either way the last target is where the arm then is.
    """
    names = list(robot.action_features)
    cameras = [name for name, kind in robot.observation_features.items() if isinstance(kind, tuple)]
    low, high = np.array([RANGES.get(name, (-np.inf, np.inf)) for name in names], np.float32).T
    limits = ActionLimits(low.tolist(), high.tolist(), [SPEED / fps] * len(names))
    executor = ChunkExecutor(horizon, asynchronous=True, real_time=True, max_hold=round(fps))
    seen = robot.get_observation()
    last = np.array([seen[name] for name in names], np.float32)
    try:
        with RobotLoop(policy, executor) as loop:
            end, tick = time.monotonic() + seconds, time.monotonic()
            while time.monotonic() < end:
                observation = None
                if loop.needs_observation:  # images are taken for the policy alone
                    seen = robot.get_observation()
                    state = np.array([seen[name] for name in names], np.float32)
                    observation = {"state": state, "images": {name: seen[name] for name in cameras}, "prompt": task}
                last = limits.apply(loop.act(observation), last)
                robot.send_action(dict(zip(names, last.tolist(), strict=True)))
                tick += 1 / fps
                time.sleep(max(tick - time.monotonic(), 0.0))
    finally:
        seen = robot.get_observation()
        robot.send_action({name: float(seen[name]) for name in names})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", required=True, help="of the arm, as lerobot-find-port prints it")
    parser.add_argument("--cameras", nargs="+", required=True, metavar="NAME=INDEX")
    parser.add_argument("--task", required=True)
    parser.add_argument("--server", default="ws://127.0.0.1:8000")
    parser.add_argument("--id", default="arm", help="of the arm's calibration")
    parser.add_argument("--seconds", type=float, default=60.0)
    arguments = parser.parse_args()
    from lerobot.cameras.opencv import OpenCVCameraConfig
    from lerobot.robots.so_follower import SO101Follower, SO101FollowerConfig

    cameras = dict(camera.split("=") for camera in arguments.cameras)
    pictures = {
        name: OpenCVCameraConfig(index_or_path=int(index), fps=30, width=640, height=480)
        for name, index in cameras.items()
    }
    robot = SO101Follower(
        SO101FollowerConfig(
            port=arguments.port, id=arguments.id, cameras=pictures, use_degrees=True, disable_torque_on_disconnect=False
        )
    )
    with PolicyClient(arguments.server) as policy:
        robot.connect()
        try:
            drive(robot, policy, arguments.task, seconds=arguments.seconds)
        except KeyboardInterrupt:
            print("stopped; the arm holds its place")
        finally:
            robot.disconnect()


if __name__ == "__main__":
    main()
