from __future__ import annotations

import json
from pathlib import Path

import pytest

from pizero.data.embodiments import EMBODIMENTS, Embodiment, generic, get_embodiment
from pizero.types import UserError


@pytest.mark.parametrize("name", ["tabletop", "metaworld", "pusht"])
def test_named_embodiments_survive_json(name: str) -> None:
    embodiment = EMBODIMENTS[name]()
    assert embodiment.name == name
    assert Embodiment.from_json(json.loads(json.dumps(embodiment.to_json()))) == embodiment


def test_tabletop_matches_its_simulator() -> None:
    from pizero.envs.tabletop import TabletopEnv

    embodiment, env = EMBODIMENTS["tabletop"](), TabletopEnv()
    observation, _ = env.reset(seed=0)
    assert set(observation["images"]) == set(embodiment.cameras.values())
    assert observation["state"].shape == (embodiment.state_dim,)
    assert env.demonstrator().act().shape == (embodiment.action_dim,)


def test_generic_survives_json() -> None:
    robot = generic(
        {"base_0_rgb": "front"}, action_dim=3, relative_mask=[True, False], state_indices=[2, 0], name="arm"
    )
    back = Embodiment.from_json(json.loads(json.dumps(robot.to_json())))
    assert back == robot
    assert back.relative.index_pairs(3, 3) == [(0, 2)]
    assert back.image_key("front") == "observation.images.front"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cameras": {}}, "expected at least one"),
        ({"cameras": {"a": "x", "b": "x"}}, "each robot camera named once"),
        ({"cameras": {"a": "x"}, "state_dim": 0}, "state_dim must be positive, got 0"),
        ({"cameras": {"a": "x"}, "action_dim": 1, "relative_mask": (True, True)}, "relative mask of 2 for 1"),
        ({"cameras": {"a": "x"}, "relative_mask": (True, True), "state_indices": (0,)}, "1 state indices"),
        ({"cameras": {"a": "x"}, "colour": 3}, "got keys"),
        ({}, "got keys"),
    ],
)
def test_mistakes_are_told(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Embodiment.from_json({"name": "arm", **values})


EXAMPLE = Path(__file__).parents[2] / "examples" / "my_arm.toml"


def test_the_example_is_a_robot() -> None:
    robot = get_embodiment(str(EXAMPLE))
    assert robot == Embodiment(
        "my_arm", {"base_0_rgb": "front", "left_wrist_0_rgb": "wrist"}, 7, 7, (True,) * 6 + (False,), grippers=(6,)
    )
    assert Embodiment.from_json(json.loads(json.dumps(robot.to_json()))) == robot


def test_a_robot_in_a_file_needs_its_cameras_alone(tmp_path: Path) -> None:
    (tmp_path / "arm.toml").write_text('[cameras]\nbase_0_rgb = "front"\n')
    assert get_embodiment(str(tmp_path / "arm.toml")) == Embodiment("arm", {"base_0_rgb": "front"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[cameras", "cannot be read as TOML"),
        ('[robot]\nname = "x"', r"arm\.toml: expected \[cameras\]"),
        ('cameras = "front"', r"expected \[cameras\]"),
        ('[cameras]\na = "x"\n[gripper]\nb = 1', r"expected \[cameras\] and maybe \[robot\], not gripper"),
        ('[cameras]\na = "x"\n[robot]\ncolour = 1', r"arm\.toml: embodiment: got keys"),
        ('[cameras]\na = "x"\n[robot]\nrelative_mask = [1, 0]', "relative_mask must be a list of bool"),
        ("[cameras]\na = 3", "must be texts"),
    ],
)
def test_a_file_with_a_mistake_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "arm.toml").write_text(text)
    with pytest.raises(UserError, match=message) as told:
        get_embodiment(str(tmp_path / "arm.toml"))
    assert "\n" not in str(told.value)


def test_unknown_names() -> None:
    with pytest.raises(
        UserError, match="unknown embodiment 'generic'; expected one of metaworld, pusht, tabletop, or a TOML"
    ):
        get_embodiment("generic")
    with pytest.raises(UserError, match=r"none\.toml cannot be read"):
        get_embodiment("none.toml")
