"""The robot of a dataset, from what it says of itself: real descriptions, and robots that many people have."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.datasets.writer.lerobot_writer import LeRobotWriter
from pizero.data.embodiments import EMBODIMENTS, Embodiment, get_embodiment
from pizero.data.recognition.cameras import Seen, place_cameras
from pizero.data.recognition.description import Description, of_dataset, of_description
from pizero.data.recognition.recognise import OWN, RobotGuess, recognise
from pizero.data.recognition.robot_file import robot_file
from pizero.types import UserError

BASE, LEFT, RIGHT = "base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb"
ROBOTS = Path(__file__).parent / "robots"
SO = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
TWO = tuple(f"{side}_{name}.pos" for side in ("left", "right") for name in SO)
ARM = (True, True, True, True, True, False)


def described(
    folder: Path,
    state: Any = SO,
    action: Any = SO,
    cameras: tuple[str, ...] = ("observation.images.front", "observation.images.wrist"),
    robot_type: str = "so101_follower",
    high: Any = 90.0,
    columns: dict[str, int] | None = None,
) -> Description:
    """A description alone. state, action: names, or how many dimensions have none. high: of all numbers, or of each."""
    widths = {"observation.state": state, "action": action} if columns is None else columns
    features: dict[str, Any] = {}
    stats: dict[str, Any] = {}
    for key, names in widths.items():
        width = names if isinstance(names, int) else len(names)
        features[key] = {
            "dtype": "float32", "shape": [width], "names": None if isinstance(names, int) else list(names)
        }  # fmt: skip
        top = (
            np.broadcast_to(np.asarray(high, np.float64), (width,)) if np.ndim(high) == 0 else np.asarray(high)[:width]
        )
        stats[key] = {"q01": (-top).tolist(), "q99": top.tolist(), "mean": [0.0] * width, "std": (top / 3).tolist()}
    features |= {key: {"dtype": "video", "shape": [48, 64, 3]} for key in cameras}
    info = {"codebase_version": "v3.0", "robot_type": robot_type, "fps": 30, "total_frames": 900, "features": features}
    (folder / "meta").mkdir(parents=True)
    (folder / "meta/info.json").write_text(json.dumps(info))
    (folder / "meta/stats.json").write_text(json.dumps(stats))
    (folder / "meta/tasks.jsonl").write_text('{"task_index": 0, "task": "pick it up"}\n')
    return of_description(folder)


def real(name: str, folder: Path) -> Description:
    """One that people recorded, without its data."""
    values = json.loads((ROBOTS / f"{name}.json").read_text())
    (folder / "meta").mkdir(parents=True)
    (folder / "meta/info.json").write_text(json.dumps(values["info"]))
    (folder / "meta/stats.json").write_text(json.dumps(values["stats"]))
    if values["tasks"] is not None:
        lines = [json.dumps({"task_index": number, "task": text}) for number, text in enumerate(values["tasks"])]
        (folder / "meta/tasks.jsonl").write_text("\n".join(lines) + "\n")
    return of_description(folder)


def asked(guess: RobotGuess) -> str:
    return "\n".join(guess.questions)


def read_back(guess: RobotGuess, folder: Path) -> Embodiment:
    (folder / "robot.toml").write_text(robot_file(guess))
    return get_embodiment(str(folder / "robot.toml"))


@pytest.mark.parametrize("name", sorted(path.stem for path in ROBOTS.glob("*.json")))
def test_a_real_description_gives_a_robot_file_or_one_line(name: str, tmp_path: Path) -> None:
    """The file is read as the robot that training takes, with every question in it."""
    description = real(name, tmp_path / "data")
    if not description.cameras:
        with pytest.raises(UserError, match="has no camera; a policy needs at least one: record it with one"):
            recognise(description)
        return
    guess = recognise(description)
    assert read_back(guess, tmp_path) == guess.robot
    text = " ".join(robot_file(guess).replace("\n#  ", " ").split())
    assert all(" ".join(f"question: {question}".split()) in text for question in guess.questions)
    assert 8 <= len(guess.table()) <= 10
    joined = " ".join(f"{what} {text}" for what, text in guess.table())
    assert all(camera in joined for camera in description.cameras)


@pytest.mark.parametrize(
    ("name", "cameras", "mask", "grippers", "questions"),
    [
        ("so101_record", {BASE: "front", LEFT: "top"}, ARM, (5,), ["is one on the hand", "or LeRobot's percent"]),
        ("so_follower", {BASE: "front"}, ARM, (5,), ["no instruction"]),
        ("piper_act", {BASE: "front", LEFT: "wrist"}, ARM, (5,), ["wrist_flex.pos with joint_5.pos"]),
        ("open50", {BASE: "image"}, (*[True] * 14, *[False] * 20), (), ["34 action dimensions", "action_dims = [0, 1"]),
        ("cr5", {BASE: "top"}, (), (6,), ["does not say how far the gripper is open"]),
        ("pusht", {BASE: "observation.image"}, (), (), ["are they targets of joints?"]),
        ("r01_v2_path_template_chunk_index", {BASE: "cam0", LEFT: "cam1"}, ARM * 2, (5, 11), ["is one on the hand"]),
        ("r03_image_shape_chw_without_names", {BASE: "third_person", LEFT: "wrist"}, ARM, (5,), ["look like radians"]),
        ("r04_gripper_sign_state_without_gripper", {BASE: "top"}, (), (6,), ["does not say how far the gripper"]),
        ("r07_action_pairs_with_another_state_dim", {BASE: "front", LEFT: "wrist"}, ARM, (5,), ["is that so?"]),
        ("c12_split_state", {BASE: "front", LEFT: "wrist"}, (), (), ["are they targets of joints?"]),
        ("c36b_openpi_names", {BASE: "image", LEFT: "wrist_image"}, (), (), ["are they targets of joints?"]),
    ],
)  # fmt: skip
def test_real_robots(
    name: str, cameras: Any, mask: tuple[bool, ...], grippers: Any, questions: list[str], tmp_path: Path
) -> None:
    guess = recognise(real(name, tmp_path / "data"))
    assert (guess.robot.cameras, guess.robot.relative_mask, guess.robot.grippers) == (cameras, mask, grippers)
    assert all(question in asked(guess) for question in questions), guess.questions


def test_an_arm_led_by_another_pairs_by_its_numbers(tmp_path: Path) -> None:
    """A Piper of seven joints, led by an SO-101 of six."""
    assert recognise(real("piper_act", tmp_path / "a")).robot.state_indices == (0, 1, 2, 4, 5, 5)
    names = [f"joint_{number}.pos" for number in (1, 2, 3, 4, 5, 6)] + ["gripper.pos"]
    rng = np.random.default_rng(0)
    with LeRobotWriter(
        tmp_path / "b", fps=15, robot_type="piper", state_names=names, action_names=[f"{name}.pos" for name in SO],
        cameras={"front": (16, 16)}, image_format="png",
    ) as writer:  # fmt: skip
        for _ in range(3):
            walk = np.cumsum(rng.normal(size=(61, 7)), axis=0)
            for now, after in pairwise(walk):
                writer.add_frame(now, after[[0, 1, 2, 4, 5, 6]], {"front": np.zeros((16, 16, 3), np.uint8)})
            writer.save_episode("pick")
    guess = recognise(of_dataset(LeRobotDataset(tmp_path / "b")))
    assert (guess.robot.relative_mask, guess.robot.state_indices) == (ARM, (0, 1, 2, 4, 5, 5))
    assert guess.robot.default_prompt == "pick"
    assert "their numbers do (shoulder_pan.pos with joint_1.pos" in asked(guess)


def g1_names() -> list[str]:
    arm = ["ShoulderPitch", "ShoulderRoll", "ShoulderYaw", "Elbow", "WristRoll", "WristPitch", "WristYaw"]
    hand = ["HandThumb0", "HandThumb1", "HandMiddle0", "HandIndex0"]
    return [f"k{side}{joint}" for part in (arm, hand) for side in ("Left", "Right") for joint in part]


@pytest.mark.parametrize(
    ("options", "title", "mask", "grippers"),
    [
        ({"robot_type": "so100_follower"}, "SO-100", ARM, (5,)),
        ({"robot_type": "koch_follower"}, "Koch", ARM, (5,)),
        ({"robot_type": "unknown"}, "SO-101", ARM, (5,)),  # by the joints' names
        (
            {"robot_type": "bi_so101_follower", "state": TWO, "action": TWO},
            "SO-101", ARM * 2, (5, 11),
        ),
        ({"robot_type": "piper", "state": 7, "action": 7, "high": 3.0}, "Piper", (*[True] * 6, False), (6,)),
        ({"robot_type": "ur5e", "state": 7, "action": 7, "high": 3.0}, "UR5", (*[True] * 6, False), (6,)),
        ({"robot_type": "franka", "state": 8, "action": 8, "high": 2.5}, "Franka", (*[True] * 7, False), (7,)),
        ({"robot_type": "Unitree_G1", "state": g1_names(), "action": g1_names(), "high": 2.0}, "Unitree G1",
         (*[True] * 14, *[False] * 8), ()),
    ],
)  # fmt: skip
def test_robots_that_many_people_have(
    options: dict[str, Any], title: str, mask: Any, grippers: Any, tmp_path: Path
) -> None:
    guess = recognise(described(tmp_path / "data", **options))
    assert guess.recognised.robot is not None
    assert guess.recognised.robot.title == title
    assert (guess.robot.relative_mask, guess.robot.grippers) == (mask, grippers)
    assert read_back(guess, tmp_path) == guess.robot


@pytest.mark.parametrize(
    ("like", "options"),
    [
        ("aloha", {"robot_type": "aloha", "state": 14, "action": 14, "cameras": tuple(
            f"observation.images.{name}" for name in ("cam_high", "cam_low", "cam_left_wrist", "cam_right_wrist"))}),
        ("droid", {"robot_type": "", "columns": {"joint_position": 7, "gripper_position": 1, "actions": 8},
                   "cameras": ("exterior_image_1_left", "exterior_image_2_left", "wrist_image_left")}),
        ("libero", {"robot_type": "panda", "columns": {"state": 8, "actions": 7}, "cameras": ("image", "wrist_image")}),
        ("metaworld", {"robot_type": "metaworld", "state": 4, "action": 4,
                       "cameras": ("observation.images.corner", "observation.images.gripper")}),
        ("metaworld_mt", {"robot_type": "metaworld-mt10", "state": 4, "action": 4, "cameras": tuple(
            f"observation.images.{name}" for name in ("corner", "gripper", "side"))}),
        ("tabletop", {"robot_type": "tabletop", "state": 7, "action": 5,
                      "cameras": ("observation.images.top", "observation.images.ego")}),
        ("aloha_sim", {"robot_type": "aloha", "state": 14, "action": 14, "cameras": tuple(
            f"observation.images.{name}" for name in ("top", "left_hand", "right_hand"))}),
    ],
)  # fmt: skip
def test_robots_that_are_described_here(like: str, options: dict[str, Any], tmp_path: Path) -> None:
    """The known description as it is, and in the file by its name."""
    guess = recognise(described(tmp_path / "data", **options))
    known = EMBODIMENTS[like]()
    assert guess.like == like
    assert guess.robot.to_json() == {**known.to_json(), "default_prompt": "pick it up"}
    assert f'like = "{like}"' in robot_file(guess)
    assert read_back(guess, tmp_path) == guess.robot


def test_libero_of_the_hub(tmp_path: Path) -> None:
    cameras = ("observation.images.image", "observation.images.image2")
    guess = recognise(described(tmp_path / "data", 8, 7, cameras, robot_type="panda"))
    assert guess.robot.cameras == {BASE: "image", LEFT: "image2"}


@pytest.mark.parametrize(
    ("high", "unit", "question"),
    [
        (3.0, "radians", "usually in degrees"),
        (0.9, "radians", "scaled to -1 to 1?"),
        (95.0, "degrees or percent", "LeRobot's percent"),
        (120.0, "degrees", ""),
        (90_000.0, "unknown", "in which unit are they"),
    ],
)
def test_units_of_joints(high: float, unit: str, question: str, tmp_path: Path) -> None:
    guess = recognise(described(tmp_path / "data", high=[high] * 6))
    assert guess.units.joints == unit
    assert question in asked(guess)


def test_units_of_a_gripper_and_their_conversions(tmp_path: Path) -> None:
    """They are offered and not made: with the data's own statistics they change nothing."""
    guess = recognise(described(tmp_path / "data", high=[120.0] * 6))
    assert guess.units.gripper == "other"  # -120 to 120
    path = tmp_path / "data/meta/stats.json"
    stats = json.loads(path.read_text())
    stats["action"]["q01"][5] = 0.0
    stats["action"]["q99"][5] = 98.0
    path.write_text(json.dumps(stats))
    guess = recognise(of_description(tmp_path / "data"))
    assert guess.units.gripper == "0 to 100"
    assert guess.robot.conversions == ()
    text = robot_file(guess)
    lines = text.split("take away the # of:")[1]
    (tmp_path / "robot.toml").write_text(text + lines.replace("\n# ", "\n"))
    degrees, gripper = get_embodiment(str(tmp_path / "robot.toml")).conversions
    assert (degrees.dims, degrees.robot, degrees.model) == ((0, 1, 2, 3, 4), (0.0, 180.0), (0.0, 3.14159265))
    assert (gripper.dims, gripper.robot, gripper.model) == ((5,), (0.0, 100.0), (1.0, 0.0))


@pytest.mark.parametrize(
    ("cameras", "places"),
    [
        (("front",), {BASE: "front"}),
        (("wrist", "front"), {BASE: "front", LEFT: "wrist"}),
        (("front", "top"), {BASE: "front", LEFT: "top"}),
        (("cam_right_wrist", "cam_high", "cam_left_wrist"),
         {BASE: "cam_high", LEFT: "cam_left_wrist", RIGHT: "cam_right_wrist"}),
        (("eye_in_hand",), {LEFT: "eye_in_hand"}),
        (("overhead", "side"), {BASE: "overhead", LEFT: "side"}),
        (("wrist_1", "wrist_2", "wrist_3"), {LEFT: "wrist_1", RIGHT: "wrist_2", BASE: "wrist_3"}),
    ],
)  # fmt: skip
def test_every_camera_has_a_place(cameras: tuple[str, ...], places: dict[str, str]) -> None:
    assert place_cameras(cameras).places == places


def test_of_more_than_three_cameras_those_that_move_and_see_most() -> None:
    seen = {"left": Seen(1, 1), "high": Seen(2, 3), "low": Seen(2, 1), "wrist_l": Seen(9, 9), "wrist_r": Seen(8, 9)}
    placed = place_cameras(tuple(seen), seen)
    assert placed.places == {BASE: "high", LEFT: "wrist_l", RIGHT: "wrist_r"}
    assert list(placed.unused) == ["left", "low"]
    assert "moves by 2, sees 1 grey levels" in placed.unused["low"]
    assert place_cameras(("a", "b", "c", "d"), {name: Seen(i, 1) for i, name in enumerate("abcd")}).places == {
        BASE: "b", LEFT: "c", RIGHT: "d"
    }  # fmt: skip


def test_pictures_choose_among_four_cameras(tmp_path: Path) -> None:
    """One is black, one stands still, two see the robot move."""
    rng = np.random.default_rng(0)
    with LeRobotWriter(
        tmp_path / "data", fps=10, robot_type="arm", state_names=["j1"], action_names=["j1"],
        cameras=dict.fromkeys(("black", "still", "near", "far"), (16, 16)), image_format="png",
    ) as writer:  # fmt: skip
        still = rng.integers(0, 255, (16, 16, 3), np.uint8)
        for step in range(20):
            moving = np.roll(still, step, axis=0)
            images = {"black": np.zeros_like(still), "still": still, "near": moving, "far": moving // 2}
            writer.add_frame(np.array([step / 10]), np.array([step / 10]), images)
        writer.save_episode("wave")
    guess = recognise(of_dataset(LeRobotDataset(tmp_path / "data")))
    assert set(guess.robot.cameras.values()) >= {"near", "far"}
    assert len(guess.robot.cameras) == 3
    assert "moves by 0" in next(iter(guess.cameras.unused.values()))
    assert "not used; are those the right ones" in asked(guess)


def test_cameras_of_a_model_that_has_its_own(tmp_path: Path) -> None:
    names = tuple(f"observation.images.{name}" for name in ("front", "side", "top"))
    description = described(tmp_path / "data", cameras=names)
    assert recognise(description, (BASE, LEFT)).robot.cameras == {BASE: "front", LEFT: "side"}
    assert recognise(description, ("side", "front")).robot.cameras == {"front": "front", "side": "side"}
    with pytest.raises(UserError, match=r"none of its cameras \(front, side, top\) has an obvious place"):
        recognise(description, ("camera",))


@pytest.mark.parametrize(
    ("columns", "state", "action"),
    [
        ({"action": 6, "observation.state": 6, "observation.effort": 6}, "observation.state", "action"),
        ({"state": 6, "actions": 6}, "state", "actions"),
        (
            {"observation.states.joint": 5, "observation.states.hand": 1, "action.arm": 5, "action.hand": 1},
            ("observation.states.joint", "observation.states.hand"),
            ("action.arm", "action.hand"),
        ),
        ({"observation.state.joint": 6, "action": 6}, "observation.state.joint", "action"),
    ],
)
def test_columns_under_the_names_that_people_use(columns: Any, state: Any, action: Any, tmp_path: Path) -> None:
    robot = recognise(described(tmp_path / "data", columns=columns, robot_type="x")).robot
    assert (robot.state_key, robot.action_key) == (state, action)
    assert not any(robot.relative_mask)


def test_what_a_dataset_does_not_say(tmp_path: Path) -> None:
    unknown = recognise(described(tmp_path / "a", 3, 3, ("image",), robot_type="unknown"))
    assert (unknown.robot.name, unknown.robot.image_prefix, unknown.robot.default_prompt) == (OWN, "", "pick it up")
    slash = recognise(described(tmp_path / "b", robot_type="my/arm"))
    assert slash.robot.name == "my_arm"
    with pytest.raises(UserError, match="no camera"):
        recognise(described(tmp_path / "c", cameras=()))
    with pytest.raises(
        UserError, match=r"no column 'observation.state'; it has velocity, action: name the right one as"
    ):
        recognise(described(tmp_path / "d", columns={"velocity": 2, "action": 2}))
    with pytest.raises(UserError, match=r"no column 'action'; it has observation\.state"):
        recognise(described(tmp_path / "e", columns={"observation.state": 2}))
    with pytest.raises(UserError, match=r"has no meta/info.json"):
        of_description(tmp_path / "f")


def test_speeds_and_steps_are_learned_as_they_are(tmp_path: Path) -> None:
    """By their names, or by numbers that no target of the joints can have."""
    names = [f"joint_{number}" for number in range(6)]
    speeds = recognise(described(tmp_path / "a", names, [f"{name}_vel" for name in names], robot_type="x"))
    assert not any(speeds.robot.relative_mask)
    path = tmp_path / "b/meta/stats.json"
    described(tmp_path / "b", names, names, robot_type="x")
    stats = json.loads(path.read_text())
    stats["action"]["std"] = [0.01] * 6
    path.write_text(json.dumps(stats))
    steps = recognise(of_description(tmp_path / "b"))
    assert not any(steps.robot.relative_mask)
    assert "not where the state goes (steps or speeds?)" in asked(steps)
