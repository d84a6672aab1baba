"""What robots of openpi send; equality with openpi itself is in tests/parity/test_robots.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from pizero.data.embodiments import aloha, droid
from pizero.data.openpi_robots import from_openpi
from pizero.types import UserError

IMAGE = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)


def sent_by_droid(**changes: Any) -> dict[str, Any]:
    values = {
        "observation/exterior_image_1_left": IMAGE, "observation/wrist_image_left": IMAGE,
        "observation/joint_position": np.arange(7.0), "observation/gripper_position": 0.5, "prompt": b"pick it up",
    }  # fmt: skip
    return values | {key.replace("__", "/"): value for key, value in changes.items()}


def sent_by_aloha(**changes: Any) -> dict[str, Any]:
    return {"state": np.zeros(14), "images": {"cam_high": IMAGE.transpose(2, 0, 1)}, "prompt": "fold"} | changes


def test_droid() -> None:
    robot = from_openpi(sent_by_droid(observation__wrist_image_left=IMAGE.transpose(2, 0, 1) / 255), droid())
    assert_array_equal(robot["state"], [0, 1, 2, 3, 4, 5, 6, 0.5])
    assert robot["prompt"] == "pick it up"
    assert_array_equal(robot["images"]["exterior_image_1_left"], IMAGE)
    assert np.abs(robot["images"]["wrist_image_left"].astype(int) - IMAGE).max() <= 1


def test_aloha_may_lack_wrist_cameras_and_prompt() -> None:
    observation = sent_by_aloha()
    del observation["prompt"]
    robot = from_openpi(observation, aloha())
    assert_array_equal(robot["images"]["cam_high"], IMAGE)
    assert robot["images"]["cam_left_wrist"] is None
    assert set(robot) == {"state", "images"}


@pytest.mark.parametrize(
    ("observation", "embodiment", "message"),
    [
        (sent_by_aloha(images={"cam_left_wrist": IMAGE}), aloha(), "no 'cam_high'; got .'cam_left_wrist'."),
        (sent_by_aloha(images=[IMAGE]), aloha(), "images: got list"),
        (sent_by_aloha(images={"cam_high": IMAGE.astype(np.float32)}), aloha(), r"cam_high: .* must lie in \[0, 1\]"),
        (sent_by_aloha(images={"cam_high": np.full((3, 2, 2), np.nan)}), aloha(), r"must lie in \[0, 1\]"),
        ({"images": {"cam_high": IMAGE}}, aloha(), "no 'state'"),
        (sent_by_aloha(), droid(), "no 'exterior_image_1_left'; got .'cam_high'."),
        ({"prompt": "go"}, droid(), "no 'observation/joint_position'; got .'prompt'."),
    ],
)
def test_what_is_missing_or_wrong_is_told(observation: dict[str, Any], embodiment: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        from_openpi(observation, embodiment)
