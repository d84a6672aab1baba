"""A robot that nobody described: its cameras and columns as the dataset has them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pizero.types import UserError
from pizero.workflows.own_robot import OWN, own_robot

BASE, LEFT, RIGHT = "base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb"


def dataset(
    cameras: tuple[str, ...] = ("observation.images.front",),
    numbers: tuple[str, ...] = ("observation.state", "action", "timestamp"),
    tasks: tuple[str, ...] = ("pick", "place"),
    robot_type: str = "so101",
) -> Any:
    features = {key: {"dtype": "video"} for key in cameras} | {key: {"dtype": "float32"} for key in numbers}
    names = tuple(key.removeprefix("observation.images.") for key in cameras)
    return SimpleNamespace(
        root=Path("data"), cameras=names, features=features, tasks=list(tasks), robot_type=robot_type
    )  # fmt: skip


@pytest.mark.parametrize(
    ("cameras", "places"),
    [
        (("front",), {BASE: "front"}),
        (("wrist", "front"), {BASE: "front", LEFT: "wrist"}),
        (("front", "top"), {BASE: "front", LEFT: "top"}),
        (
            ("cam_high", "cam_right_wrist", "cam_left_wrist", "cam_low"),
            {BASE: "cam_high", LEFT: "cam_left_wrist", RIGHT: "cam_right_wrist", "camera_3_rgb": "cam_low"},
        ),
        (("eye_in_hand",), {LEFT: "eye_in_hand"}),
        (("overhead", "side"), {BASE: "overhead", LEFT: "side"}),
        (("a", "b", "c", "d", "e"), {BASE: "a", LEFT: "b", RIGHT: "c", "camera_3_rgb": "d", "camera_4_rgb": "e"}),
        (("wrist_1", "wrist_2", "wrist_3"), {LEFT: "wrist_1", RIGHT: "wrist_2", BASE: "wrist_3"}),
    ],
)
def test_every_camera_has_a_place(cameras: tuple[str, ...], places: dict[str, str]) -> None:
    assert own_robot(dataset(tuple(f"observation.images.{name}" for name in cameras))).cameras == places


def test_cameras_of_a_model_that_has_its_own() -> None:
    data = dataset(("observation.images.front", "observation.images.side", "observation.images.top"))
    assert own_robot(data, (BASE, LEFT)).cameras == {BASE: "front", LEFT: "side"}
    assert own_robot(data, ("side", "front")).cameras == {"front": "front", "side": "side"}
    with pytest.raises(UserError, match=r"none of its cameras \(front, side, top\) has an obvious place"):
        own_robot(data, ("camera",))


@pytest.mark.parametrize(
    ("numbers", "state", "action"),
    [
        (("action", "observation.state", "observation.effort"), "observation.state", "action"),
        (("state", "actions"), "state", "actions"),
        (
            ("observation.states.joint", "observation.states.hand", "action.arm", "action.hand"),
            ("observation.states.joint", "observation.states.hand"),
            ("action.arm", "action.hand"),
        ),
        (("observation.state.joint", "action"), "observation.state.joint", "action"),
    ],
)
def test_columns_under_the_names_that_people_use(numbers: tuple[str, ...], state: Any, action: Any) -> None:
    robot = own_robot(dataset(numbers=numbers))
    assert (robot.state_key, robot.action_key) == (state, action)
    assert not any(robot.relative_mask)


def test_what_a_dataset_does_not_tell() -> None:
    assert own_robot(dataset(robot_type="unknown")).name == OWN
    assert own_robot(dataset()).default_prompt == ""
    assert own_robot(dataset(tasks=("pick",))).default_prompt == "pick"
    assert own_robot(dataset(("image",))).image_prefix == ""
    with pytest.raises(UserError, match="no camera"):
        own_robot(dataset(()))
    with pytest.raises(
        UserError, match=r"no column 'action'; it has observation\.state, velocity: name the right one as"
    ):
        own_robot(dataset(numbers=("observation.state", "velocity")))
