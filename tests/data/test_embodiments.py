from __future__ import annotations

import json

import pytest

from pizero.data.embodiments import EMBODIMENTS, Embodiment, generic
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
        ({"cameras": {"a": "x"}, "state_dim": 0}, "got state_dim 0"),
        ({"cameras": {"a": "x"}, "action_dim": 1, "relative_mask": (True, True)}, "relative mask of 2 for 1"),
        ({"cameras": {"a": "x"}, "relative_mask": (True, True), "state_indices": (0,)}, "1 state indices"),
        ({"cameras": {"a": "x"}, "colour": 3}, "got keys"),
        ({}, "got keys"),
    ],
)
def test_mistakes_are_told(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Embodiment.from_json({"name": "arm", **values})
