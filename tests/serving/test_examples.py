"""The examples that drive robots: objects that speak LeRobot's and ROS's interfaces, and a policy or its server."""

from __future__ import annotations

import dataclasses
import importlib.util
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from serving_helpers import make_policy

from pizero.data.embodiments import generic
from pizero.data.norm_stats import FieldStats, NormStats
from pizero.model.config import small_config
from pizero.model.pi0 import Pi0
from pizero.policy.chunk_executor import PolicyLateError
from pizero.policy.policy import ModelPolicy
from pizero.serving.client import PolicyClient

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Arm:
    """An SO-101 as LeRobot's robot class shows it, whose joints are at once where they are sent."""

    joints = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
    action_features = {f"{joint}.pos": float for joint in joints}  # noqa: RUF012
    observation_features = {**action_features, "front": (48, 64, 3)}  # noqa: RUF012

    def __init__(self) -> None:
        self.places = dict.fromkeys(self.action_features, 10.0)
        self.sent: list[dict[str, float]] = []

    def get_observation(self) -> dict[str, Any]:
        return {**self.places, "front": np.zeros((48, 64, 3), np.uint8)}

    def send_action(self, action: dict[str, float]) -> dict[str, float]:
        assert set(action) == set(self.action_features)
        self.places = dict(action)
        self.sent.append(action)
        return action


class Sends:
    """A policy that wants one place for all joints, after so many answers fails."""

    def __init__(self, place: float, answers: int = 1_000) -> None:
        self.place, self.answers, self.asked = place, answers, list[dict[str, Any]]()

    def infer(self, observation: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(observation)
        if len(self.asked) > self.answers:
            raise RuntimeError("the server is gone")
        return {"actions": np.full((30, 6), self.place, np.float32)}


def test_so101_goes_there_within_its_ranges_and_speed() -> None:
    arm, policy = Arm(), Sends(500.0)
    load("so101").drive(arm, policy, "wave", fps=200.0, seconds=1.2)
    assert policy.asked[0]["prompt"] == "wave"
    assert policy.asked[0]["state"].tolist() == [10.0] * 6
    assert policy.asked[0]["images"]["front"].shape == (48, 64, 3)
    path = np.array([[action[name] for name in arm.action_features] for action in arm.sent])
    assert np.abs(np.diff(np.vstack([[10.0] * 6, path]), axis=0)).max() <= 120.0 / 200 + 1e-4
    assert (path.max(axis=0) <= [110, 100, 96, 95, 163, 100]).all()
    assert path[-1].tolist() == path[-2].tolist()  # at the end it is sent where it is
    assert path[-1].max() > 60


def test_so101_stays_where_it_is_when_the_policy_fails() -> None:
    arm = Arm()
    with pytest.raises(RuntimeError, match="gone"):
        load("so101").drive(arm, Sends(40.0, answers=1), "wave", fps=100.0, seconds=5.0)
    assert arm.sent[-1] == arm.sent[-2]


def test_so101_stops_when_the_policy_is_late() -> None:
    class Late(Sends):
        def infer(self, observation: dict[str, Any]) -> dict[str, Any]:
            time.sleep(1.6 if self.asked else 0.0)
            return super().infer(observation)

    arm = Arm()
    with pytest.raises(PolicyLateError):
        load("so101").drive(arm, Late(40.0), "wave", fps=50.0, seconds=5.0, horizon=29)
    assert arm.sent[-1] == arm.sent[-2]


def test_so101_plays_what_a_server_answers(serve: Any) -> None:
    stats = NormStats("zscore", FieldStats(np.zeros(6), np.ones(6)), FieldStats(np.full(6, 30.0), np.full(6, 0.01)))
    robot = generic({"base_0_rgb": "front"}, state_dim=6, action_dim=6)
    pipeline = dataclasses.replace(
        make_policy().pipeline, embodiment=robot, norm_stats=stats, cameras=("base_0_rgb",), state_dim=6, action_dim=6
    )
    config = small_config(
        "nano", vocab_size=259, prompt_length=40, cameras=("base_0_rgb",), state_dim=6, action_dim=6
    )  # fmt: skip
    torch.manual_seed(0)  # with other random weights guided chunks of two steps may drift away
    server, arm = serve(policy=ModelPolicy(Pi0(config).eval(), pipeline, num_steps=2)), Arm()
    with PolicyClient(server.uri) as client, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it may be late on a busy machine
        load("so101").drive(arm, client, "wave", fps=30.0, seconds=1.0, horizon=3)
    assert 14 < arm.places["wrist_roll.pos"] < 31  # on the way to 30, by 4 degrees a step


# ---------------------------------------------------------------- ROS 2


def joint_state(**places: float) -> SimpleNamespace:
    return SimpleNamespace(name=list(places), position=list(places.values()))


def picture(encoding: str, width: int = 5, padding: int = 3) -> SimpleNamespace:
    rows = np.zeros((4, 3 * width + padding), np.uint8)
    rows[:, 0 : 3 * width : 3] = 255  # the first colour
    return SimpleNamespace(encoding=encoding, width=width, height=4, step=rows.shape[1], data=rows.tobytes())


def make_driver(policy: Any, now: list[float]) -> Any:
    return load("ros2_node").Driver(policy, ["a", "b"], ["front"], "open it", speed=3.0, clock=lambda: now[0])


class TwoJoints(Sends):
    def infer(self, observation: dict[str, Any]) -> dict[str, Any]:
        return {"actions": super().infer(observation)["actions"][:, :2]}


def test_ros_messages_become_observations_and_targets() -> None:
    now, policy = [0.0], TwoJoints(1.0)
    driver = make_driver(policy, now)
    assert driver.step() is None
    driver.on_joints(joint_state(b=0.5, other=9.0, a=0.25))
    assert driver.step() is None  # no image yet
    driver.on_image("front", picture("bgr8"))
    assert driver.step() == pytest.approx([0.35, 0.6])  # a tenth of its speed a step, from where it is
    assert driver.step() == pytest.approx([0.45, 0.7])
    seen = policy.asked[0]
    assert (seen["state"].tolist(), seen["prompt"]) == ([0.25, 0.5], "open it")
    assert seen["images"]["front"].shape == (4, 5, 3)
    assert seen["images"]["front"][0, 0].tolist() == [0, 0, 255]
    driver.loop.close()


def test_ros_sends_nothing_for_old_or_broken_messages() -> None:
    now, policy = [0.0], TwoJoints(1.0)
    driver = make_driver(policy, now)
    driver.on_joints(joint_state(a=0.25, b=float("nan")))
    driver.on_image("front", picture("rgb8"))
    assert driver.step() is None
    driver.on_joints(joint_state(a=0.0, b=0.0))
    assert driver.step() is not None
    now[0] = 0.6
    driver.on_joints(joint_state(a=0.0, b=0.0))
    assert driver.step() is None  # the image is old
    driver.on_image("front", picture("rgb8"))
    assert driver.step() == pytest.approx([0.1, 0.1])  # anew from where the robot is
    with pytest.raises(ValueError, match="mono8"):
        driver.on_image("front", picture("mono8"))
    driver.loop.close()


def test_ros_node_without_ros_says_what_it_needs() -> None:
    command = [sys.executable, EXAMPLES / "ros2_node.py", "--joints", "a", "--cameras", "c=/t", "--task", "x"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.strip().count("\n") == 0
    assert "rclpy" in done.stderr
