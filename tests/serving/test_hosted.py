"""What the robots of each embodiment send, as they send it to openpi's server."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from serving_helpers import make_policy, observation

from pizero.data.embodiments import get_embodiment
from pizero.policy.policy import ModelPolicy
from pizero.serving.client import PolicyClient, ServerError
from pizero.serving.hosted import robot_dictionary
from pizero.types import UserError

IMAGE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
TURNED = np.ascontiguousarray(IMAGE.transpose(2, 0, 1))


def policy_of(robot: str) -> ModelPolicy:
    """Of which the embodiment alone is looked at."""
    policy = make_policy()
    policy.pipeline = dataclasses.replace(policy.pipeline)
    object.__setattr__(policy.pipeline, "embodiment", get_embodiment(robot))
    return policy


@pytest.mark.parametrize(
    ("robot", "sent", "cameras", "state"),
    [
        (
            "aloha",
            {"state": np.arange(14.0), "images": dict.fromkeys(("cam_high", "cam_low", "cam_left_wrist"), TURNED)},
            {"cam_high": True, "cam_left_wrist": True, "cam_right_wrist": False},
            np.arange(14.0),
        ),
        (
            "droid",
            {
                "observation/exterior_image_1_left": IMAGE,
                "observation/wrist_image_left": IMAGE,
                "observation/joint_position": np.arange(7.0),
                "observation/gripper_position": np.array([7.0]),
                "prompt": "pick up the cup",
            },
            {"exterior_image_1_left": True, "wrist_image_left": True},
            np.arange(8.0),
        ),
        (
            "libero",
            {"observation/image": IMAGE, "observation/wrist_image": IMAGE, "observation/state": np.arange(8.0)},
            {"image": True, "wrist_image": True},
            np.arange(8.0),
        ),
        ("metaworld", {"state": np.arange(4.0), "images": {"top": IMAGE}}, None, np.arange(4.0)),
    ],
)
def test_raw_dictionaries(robot: str, sent: dict[str, Any], cameras: dict[str, bool] | None, state: np.ndarray) -> None:
    policy = policy_of(robot)
    if cameras is None:  # pizero's own form, with the embodiment's own names
        names = list(policy.pipeline.embodiment.cameras.values())
        sent, cameras = {**sent, "images": dict.fromkeys(names, IMAGE)}, dict.fromkeys(names, True)
    found = robot_dictionary(sent, policy)
    np.testing.assert_array_equal(found["state"], state)
    assert {name: image is not None for name, image in found["images"].items()} == cameras
    for image in found["images"].values():
        assert image is None or np.array_equal(image, IMAGE)
    assert found.get("prompt") == sent.get("prompt")


def test_a_camera_that_nobody_knows() -> None:
    sent = {"state": np.zeros(14), "images": {"cam_high": IMAGE, "cam_behind": IMAGE}}
    with pytest.raises(UserError, match=r"got cameras \['cam_behind'\], this checkpoint has"):
        robot_dictionary(sent, policy_of("aloha"))


def test_an_instruction_for_robots_that_send_none(serve: Any, policy: ModelPolicy) -> None:
    mute = {name: value for name, value in observation().items() if name != "prompt"}
    with PolicyClient(serve().uri) as client, pytest.raises(ServerError, match="no 'prompt'"):
        client.infer(mute)
    server = serve(default_prompt="lift the red block")
    with PolicyClient(server.uri) as client:
        client.infer(mute)
        assert server.call(lambda server: [one.prompt for one in server.service.live.robots.values()]) == [
            "lift the red block"
        ]
        client.infer(observation())
        assert server.call(lambda server: [one.prompt for one in server.service.live.robots.values()]) == [
            observation()["prompt"]
        ]
