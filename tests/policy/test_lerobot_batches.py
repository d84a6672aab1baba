"""Batches of LeRobot as robot dictionaries: the same bytes, keys by name, clear lines for what does not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pizero.policy.lerobot_batches import LeRobotBatches, pixels, previous_actions
from pizero.types import UserError

TOP, HAND = "observation.images.top", "observation.images.hand"
BATCHES = LeRobotBatches({"top": TOP, "hand": HAND})


def batch(**changes: Any) -> dict[str, Any]:
    image = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5).float() / 255
    return {
        TOP: image, HAND: 1 - image, "observation.state": torch.tensor([[1.0, 2], [3, 4]]), "task": ["a", "b"],
        "action": torch.zeros(2, 6, 2), "action_is_pad": torch.zeros(2, 6),
    } | changes  # fmt: skip


def test_every_byte_comes_back() -> None:
    every = torch.arange(256, dtype=torch.uint8).repeat(3, 1).view(1, 3, 16, 16)
    as_float = every.float() / 255
    np.testing.assert_array_equal(pixels("image", as_float), every.permute(0, 2, 3, 1).numpy())
    np.testing.assert_array_equal(pixels("image", every), every.permute(0, 2, 3, 1).numpy())
    np.testing.assert_array_equal(pixels("image", every.permute(0, 2, 3, 1)), pixels("image", every))


def test_each_row_is_a_robot() -> None:
    first, second = BATCHES.observations(batch())
    assert (first["prompt"], second["prompt"]) == ("a", "b")
    assert second["state"].tolist() == [3, 4]
    assert first["images"]["top"][0, 1].tolist() == [1, 21, 41]
    assert first["images"]["hand"][0, 1].tolist() == [254, 234, 214]
    assert BATCHES.actions(batch()).shape == (2, 6, 2)


def test_a_text_for_all_and_a_camera_that_is_absent() -> None:
    given = batch(task="both")
    del given[HAND]
    first, second = BATCHES.observations(given)
    assert (first["prompt"], second["prompt"]) == ("both", "both")
    assert first["images"]["hand"] is None


def test_no_instruction_is_the_robots_own() -> None:
    own = LeRobotBatches(BATCHES.cameras, "push")
    for given in ("", [""], [" ", ""]):
        assert [row["prompt"] for row in own.observations(batch(task=given))] == ["push", "push"]
    assert [row["prompt"] for row in own.observations(batch(task=["a", ""]))] == ["a", "push"]
    with pytest.warns(UserWarning, match="it is empty.*default_prompt"):
        assert BATCHES.observations(batch(task=""))[0]["prompt"] == ""


def test_the_only_image_is_the_only_camera() -> None:
    only = LeRobotBatches({"top": TOP})
    given = {"observation.image": batch()[TOP], "observation.state": torch.zeros(2, 2), "task": "push"}
    assert only.observations(given)[0]["images"]["top"].shape == (4, 5, 3)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"observation.state": torch.zeros(2)}, r"observation.state: got shape \(2,\)"),
        ({TOP: torch.zeros(2, 1, 4, 5)}, r"top: got shape \(2, 1, 4, 5\)"),
        ({TOP: torch.zeros(2, 3, 4, 5, dtype=torch.int64)}, "top: got type torch.int64"),
        ({"task": ["a", "b", "c"]}, "3 texts for 2 observations"),
    ],
)
def test_what_does_not_fit(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        BATCHES.observations(batch(**changes))


def test_what_is_missing() -> None:
    images = {key: value for key, value in batch().items() if "image" not in key}
    with pytest.raises(UserError, match=r"none of the policy's cameras observation.images.top.*--rename_map"):
        BATCHES.observations({**images, "observation.images.front": batch()[TOP], "observation.images.b": batch()[TOP]})
    with pytest.raises(UserError, match=r"no 'observation.state'; it has task"):
        BATCHES.observations({"task": ["a"]})
    with pytest.raises(UserError, match="no 'action'"):
        BATCHES.actions({"task": ["a"]})


def test_what_is_left_of_a_chunk() -> None:
    left = torch.arange(1, 9).float().view(4, 2)
    filled = torch.cat([left, torch.zeros(3, 2)])  # as LeRobot fills up to its execution horizon
    for given in (left, filled, left[None]):
        np.testing.assert_array_equal(previous_actions(given, 50), left)
    np.testing.assert_array_equal(previous_actions(filled, 3), left[:3])
    assert previous_actions(None, 50) is None
    assert previous_actions(torch.zeros(5, 2), 50) is None
    assert previous_actions(torch.zeros(0, 2), 50) is None
