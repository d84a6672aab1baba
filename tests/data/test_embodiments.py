from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

from pizero.data.embodiments import EMBODIMENTS, Conversion, Embodiment, aloha, generic, get_embodiment, libero
from pizero.types import UserError


@pytest.mark.parametrize("name", sorted(EMBODIMENTS))
def test_named_embodiments_survive_json(name: str) -> None:
    embodiment = EMBODIMENTS[name]()
    assert embodiment.name == name
    assert Embodiment.from_json(json.loads(json.dumps(embodiment.to_json()))) == embodiment


def test_tabletop_matches_its_simulator() -> None:
    from pizero.envs.tabletop.env import TabletopEnv

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
        ({"cameras": {"a": "x", "b": "x"}}, "each robot camera named once"),
        ({"cameras": {"a": "x"}, "state_dim": 0}, "state_dim must be positive, got 0"),
        ({"cameras": {"a": "x"}, "action_dim": 1, "relative_mask": (True, True)}, "relative mask of 2 for 1"),
        ({"cameras": {"a": "x"}, "relative_mask": (True, True), "state_indices": (0,)}, "1 state indices"),
        ({"cameras": {"a": "x"}, "colour": 3}, "unknown key 'colour'"),
        ({}, "no 'cameras'"),
        ({"cameras": {"a": "x"}, "state_key": ["joints", 3]}, r"state_key\[1\] must be a text, got 3"),
        ({"cameras": {"a": "x"}, "action_key": []}, "action_key must be the name of a column"),
        ({"cameras": {"a": "x"}, "action_dim": True}, "action_dim must be a whole number, got True"),
    ],
)
def test_mistakes_are_told(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Embodiment.from_json({"name": "arm", **values})


def test_chosen_dimensions_survive_json() -> None:
    robot = generic({"base_0_rgb": "front"}, state_dims=(3, "left.pan"), action_dims=("gripper",))
    assert (robot.state_dim, robot.action_dim) == (2, 1)
    assert Embodiment.from_json(json.loads(json.dumps(robot.to_json()))) == robot


def test_what_older_checkpoints_wrote_is_read() -> None:
    """pipeline.json of version 0.1.0 before conversions, to the letter."""
    old = {
        "name": "arm", "cameras": {"base_0_rgb": "front"}, "state_dim": 7, "action_dim": None,
        "relative_mask": [True, False], "state_indices": [1, 0], "state_key": "observation.state",
        "action_key": "action", "prompt_key": "task", "image_prefix": "observation.images.", "grippers": [1],
    }  # fmt: skip
    assert Embodiment.from_json(old) == Embodiment(
        "arm", {"base_0_rgb": "front"}, 7, None, (True, False), (1, 0), grippers=(1,)
    )


# ---------------------------------------------------------------- conversions


ARM = Embodiment(
    "arm",
    {"base_0_rgb": "front"},
    conversions=(
        Conversion((0, 2), robot=(0, 180), model=(0, 3.14159265)),
        Conversion((1,), "action", model=(0, -1)),
        Conversion((3,), "state", robot=(100, 0)),
    ),
)


def test_conversions_are_of_state_action_or_both() -> None:
    numbers = np.array([[90.0, 2.0, -180.0, 25.0]], dtype=np.float32)
    assert_allclose(ARM.model_state(numbers), [[np.pi / 2, 2, -np.pi, 0.75]], rtol=1e-7)
    assert_allclose(ARM.model_actions(numbers), [[np.pi / 2, -2, -np.pi, 25]], rtol=1e-7)
    assert_allclose(ARM.robot_actions(ARM.model_actions(numbers)), numbers, rtol=1e-12)
    assert_allclose(numbers, [[90, 2, -180, 25]])  # not changed in place


def test_without_conversions_numbers_stay_what_they_are() -> None:
    numbers = np.zeros((2, 3), dtype=np.float32)
    robot = generic({"base_0_rgb": "front"})
    for convert in (robot.model_state, robot.model_actions, robot.robot_actions):
        assert convert(numbers) is numbers


def test_dimensions_that_are_not_there() -> None:
    ARM.check_dims(4, 3)
    with pytest.raises(UserError, match="embodiment arm: action dimension 2 is converted, but there are 2, from 0 on"):
        ARM.check_dims(4, 2)
    with pytest.raises(UserError, match="state dimension 3 is converted, but there are 3"):
        ARM.check_dims(3, 3)
    with pytest.raises(UserError, match="action dimension 6 is a gripper, but there are 6"):
        replace(libero(), action_dim=None).check_dims(8, 6)
    with pytest.raises(UserError, match="embodiment libero: action_dim is 7, but the data has 6"):
        libero().check_dims(8, 6)


CONVERSION: dict[str, Any] = {"dims": [0], "robot": [0, 100], "model": [0, 1]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dims": []}, "dims must be one or more"),
        ({"dims": [-1]}, r"dims must be one or more, from 0 on, each once, got \[-1\]"),
        ({"dims": [2, 2]}, "each once"),
        ({"dims": [0.5]}, r"dims\[0\] must be a whole number, got 0.5"),
        ({"dims": 3}, "dims must be a list of whole numbers, got 3"),
        ({"of": "states"}, "of must be one of both, state, action, got 'states'"),
        ({"curve": "cubic"}, "curve must be one of linear, aloha_gripper"),
        ({"robot": [1, 1]}, "robot must be two different numbers"),
        ({"model": [0, 1, 2]}, "model must be two different numbers"),
        ({"model": [0, float("nan")]}, "model must be two different numbers"),
        ({"robot": [0, 1e-320]}, "that a float32 can hold"),
        ({"robot": [-1.7e308, 1.7e308]}, "that a float32 can hold"),
        ({"robot": [0, 10**400]}, r"robot\[1\] must be a number"),
        ({"model": ["0", "1"]}, r"model\[0\] must be a number, got 0"),
        ({"scale": 2}, "unknown key 'scale'; expected some of dims, of, robot, model, curve"),
    ],
)
def test_conversions_with_a_mistake(changes: dict[str, Any], message: str) -> None:
    data = {"name": "arm", "cameras": {"a": "x"}, "conversions": [CONVERSION | changes]}
    with pytest.raises(UserError, match=r"embodiment: conversions\[0\].*" + message):
        Embodiment.from_json(data)


def test_any_value_in_any_place_is_a_robot_or_one_line() -> None:
    """Each field, and each value of a conversion, replaced by something hostile."""
    rng = random.Random(0)
    good = aloha().to_json() | {"state_indices": list(range(14)), "state_key": ["a", "b"]}
    good["conversions"] = [dict(conversion) for conversion in json.loads(json.dumps(good["conversions"]))]
    hostile: list[Any] = [
        None, True, -1, 10**30, 10**400, 1.5, float("nan"), float("inf"), "", "task", [], [[]], [None], [10**30],
        [True, 1], ["a", "a"], {}, {"a": {}}, {"": ""}, [{"dims": [10**30], "robot": [0, 1e300]}], "x" * 10**6,
    ]  # fmt: skip
    places: list[tuple[dict[str, Any], str]] = [(good, key) for key in good]
    places += [(conversion, key) for conversion in good["conversions"] for key in conversion]
    refused: list[str] = []
    for table, key in places:
        before = table[key]
        for value in hostile:
            table[key] = value
            try:
                robot = Embodiment.from_json(good)
                robot.check_dims(14, 14)
                numbers = np.asarray(rng.choices(range(-9, 9), k=14), dtype=np.float32)
                assert np.isfinite(robot.robot_actions(robot.model_actions(numbers))).all()
                assert Embodiment.from_json(json.loads(json.dumps(robot.to_json()))) == robot
            except UserError as error:
                refused.append(str(error))
        table[key] = before
    assert len(refused) > 0.6 * len(places) * len(hostile)
    assert max(map(len, refused)) < 500


# ---------------------------------------------------------------- TOML files


EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_example_is_a_robot() -> None:
    robot = get_embodiment(str(EXAMPLES / "my_arm.toml"))
    assert robot == Embodiment(
        "my_arm", {"base_0_rgb": "front", "left_wrist_0_rgb": "wrist"}, 7, 7, (True,) * 6 + (False,), grippers=(6,),
        conversions=(
            Conversion((0, 1, 2, 3, 4, 5), robot=(0, 180), model=(0, 3.14159265)),
            Conversion((6,), robot=(0, 100), model=(1, 0)),
        ),
    )  # fmt: skip
    assert Embodiment.from_json(json.loads(json.dumps(robot.to_json()))) == robot


def test_simulated_aloha_is_like_aloha() -> None:
    robot, real = get_embodiment(str(EXAMPLES / "aloha_sim.toml")), aloha()
    assert robot == Embodiment(
        "aloha_sim", {"base_0_rgb": "top"}, 14, 14, grippers=real.grippers, default_prompt="Transfer cube"
    )


def test_like_gives_what_a_file_does_not_say(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('[robot]\nlike = "droid"\nprompt_key = "instruction"\n')
    robot, droid = get_embodiment(str(tmp_path / "mine.toml")), EMBODIMENTS["droid"]()
    assert robot.to_json() == droid.to_json() | {"name": "mine", "prompt_key": "instruction"}


def test_a_robot_in_a_file_needs_its_cameras_alone(tmp_path: Path) -> None:
    (tmp_path / "arm.toml").write_text('[cameras]\nbase_0_rgb = "front"\n')
    assert get_embodiment(str(tmp_path / "arm.toml")) == Embodiment("arm", {"base_0_rgb": "front"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[cameras", "cannot be read as TOML"),
        ('[robot]\nname = "x"', r"arm\.toml: expected \[cameras\]"),
        ('cameras = "front"', "cameras must be a table: model camera = robot camera, got front"),
        ('robot = 3\n[cameras]\na = "x"', "robot must be a table, got 3"),
        ('[cameras]\na = "x"\n[gripper]\nb = 1', r"expected \[cameras\] and maybe \[robot\], not gripper"),
        ('[cameras]\na = "x"\n[robot]\ncolour = 1', r"arm\.toml: embodiment: unknown key 'colour'"),
        ('[cameras]\na = "x"\n[robot]\nrelative_mask = [1, 0]', r"relative_mask\[0\] must be true or false, got 1"),
        ('[cameras]\na = "x"\n[robot]\ndefault_prompt = 1', r"arm\.toml: embodiment: default_prompt must be a text"),
        ("[cameras]\na = 3", r"arm\.toml: embodiment: cameras\.a must be a text, got 3"),
        ('[robot]\nlike = "alhoa"', r"arm\.toml: unknown embodiment 'alhoa' \(did you mean aloha\?\)"),
        ("[robot]\nlike = []", r"arm\.toml: robot\.like must be the name"),
        ('[cameras]\na = "x"\n[robot]\nlike = ["aloha"]', r"robot\.like must be the name"),
        ('cameras = 3\n[robot]\nlike = "aloha"', "cameras must be a table"),
        (
            '[robot]\nlike = "aloha"\n[[robot.conversions]]\ndims = [1]\n[[robot.conversions]]\nof = "state"',
            r"arm\.toml: embodiment: conversions\[1\]: no 'dims'",
        ),
        ('[cameras]\na = "x"\n[robot]\nconversions = { dims = [1] }', "conversions must be a list of tables"),
        ("a = " + "[" * 100_000, "cannot be read as TOML"),
    ],
)
def test_a_file_with_a_mistake_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "arm.toml").write_text(text)
    with pytest.raises(UserError, match=message) as told:
        get_embodiment(str(tmp_path / "arm.toml"))
    assert "\n" not in str(told.value)


def test_unknown_names() -> None:
    with pytest.raises(
        UserError, match=r"unknown embodiment 'generic'; expected one of aloha, aloha_sim, .*, tabletop, or a TOML"
    ):
        get_embodiment("generic")
    with pytest.raises(UserError, match=r"none\.toml cannot be read"):
        get_embodiment("none.toml")


@pytest.mark.parametrize("name", ["", ".", "..", "../arm", "/etc/arm", "a/../../arm"])
def test_a_name_becomes_a_folder(name: str) -> None:
    with pytest.raises(UserError, match="cannot be that of a folder, which it becomes"):
        Embodiment(name, {})
    assert Embodiment("lab/arm", {}).name == "lab/arm"
