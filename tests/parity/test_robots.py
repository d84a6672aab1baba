"""Aloha, DROID and LIBERO against recorded adapters and whole policy calls of openpi."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

from pizero.checkpoints.load import load_model
from pizero.checkpoints.openpi.torch import config_from_arch
from pizero.data.embodiments import Embodiment, aloha, droid, droid_joint_position, libero
from pizero.data.norm_stats import FieldStats, NormStats
from pizero.data.openpi_robots import from_openpi
from pizero.data.pipeline import Pipeline
from pizero.data.tokenizer import PaligemmaTokenizer
from pizero.policy.policy import ModelPolicy
from pizero.types import RobotDict

DEFAULT = Path(__file__).parents[1] / "golden" / "openpi"
GOLDEN = Path(os.environ.get("PIZERO_GOLDEN") or DEFAULT)
PLAIN_ALOHA = replace(aloha(), conversions=())
MISSING_CAMERA = "left_wrist_0_rgb"


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    if not path.is_file():
        pytest.skip(f"this golden set was recorded without {path.name}")
    with np.load(path) as file:
        return {key: file[key] for key in file.files}


def test_default_set_is_complete() -> None:
    policies = {path.name for path in (DEFAULT / "policies").iterdir()}
    assert policies == {"aloha_pi0.npz", "droid_pi05.npz", "libero_pi05.npz"}
    assert (DEFAULT / "functions" / "transforms.npz").is_file()


def part(arrays: Mapping[str, Any], head: str) -> dict[str, Any]:
    """What is recorded below `head`, with its own names."""
    return {key.removeprefix(head): value for key, value in arrays.items() if key.startswith(head)}


def sent(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """A recorded observation as a robot sends it."""
    images = part(recorded, "images/")
    values = {key: value for key, value in recorded.items() if not key.startswith("images/")}
    return values | {"prompt": str(values["prompt"])} | ({"images": images} if images else {})


ADAPTERS = [
    ("aloha/adapt_true", aloha()), ("aloha/adapt_true_missing_camera", aloha()),
    ("aloha/adapt_false", PLAIN_ALOHA), ("aloha/adapt_false_missing_camera", PLAIN_ALOHA),
    ("droid/uint8_hwc", droid()), ("droid/float_chw", droid()),
    ("libero/uint8_hwc", libero()), ("libero/float_chw", libero()),
]  # fmt: skip


@pytest.mark.parametrize(("case", "embodiment"), ADAPTERS, ids=[case for case, _ in ADAPTERS])
def test_inputs(case: str, embodiment: Embodiment) -> None:
    arrays = read_arrays(GOLDEN / "functions" / "transforms.npz")
    given, expected = part(arrays, f"{case}/in/"), part(arrays, f"{case}/out/")
    robot = from_openpi(sent(given), embodiment)
    assert_allclose(embodiment.model_state(robot["state"]), expected["state"], rtol=1e-14, atol=1e-14)
    assert robot["prompt"] == str(expected["prompt"])
    for camera, mask in part(expected, "image_mask/").items():
        image = robot["images"].get(embodiment.cameras.get(camera))
        assert (image is not None) == mask, camera
        if image is not None:
            assert image.dtype == np.uint8
            assert_array_equal(image, expected[f"image/{camera}"])
    if "actions" in given:
        assert_allclose(embodiment.model_actions(given["actions"]), expected["actions"], rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(
    ("actions", "robot_actions", "embodiment"),
    [
        ("aloha/adapt_true_outputs/in/actions", "aloha/adapt_true_outputs/out/actions", aloha()),
        ("aloha/adapt_false_outputs/in/actions", "aloha/adapt_false_outputs/out/actions", PLAIN_ALOHA),
        ("droid/outputs/in", "droid/outputs/out", droid()),
        ("libero/outputs/in", "libero/outputs/out", libero()),
    ],
    ids=["aloha", "plain aloha", "droid", "libero"],
)
def test_outputs(actions: str, robot_actions: str, embodiment: Embodiment) -> None:
    arrays = read_arrays(GOLDEN / "functions" / "transforms.npz")
    own = arrays[actions][:, : embodiment.action_dim]
    assert_allclose(embodiment.robot_actions(own), arrays[robot_actions], rtol=1e-6, atol=1e-7)


def test_grippers_of_aloha() -> None:
    arrays = part(read_arrays(GOLDEN / "functions" / "transforms.npz"), "aloha/gripper/")
    robot, value = aloha(), arrays["value"]

    def of_gripper(convert: Any) -> NDArray[Any]:
        wide = np.zeros((len(value), 14))
        wide[:, [6, 13]] = value[:, None]
        converted = convert(wide)
        assert_array_equal(converted[:, 6], converted[:, 13])
        return converted[:, 6]

    assert_allclose(of_gripper(robot.model_state), arrays["to_angular"], rtol=1e-14, atol=1e-14)
    assert_allclose(of_gripper(robot.robot_actions), arrays["from_angular"], rtol=1e-14, atol=1e-14)
    assert_allclose(of_gripper(robot.model_actions), arrays["from_angular_inv"], rtol=1e-14, atol=1e-14)


# ---------------------------------------------------------------- whole calls


POLICIES: dict[str, tuple[str, Embodiment, Any]] = {
    "aloha_pi0": ("pi0_d32", aloha(), "zscore"),
    "droid_pi05": ("pi05_d32", droid_joint_position(), "quantile"),
    "libero_pi05": ("pi05_d32", libero(), "quantile"),
}


def make_policy(arrays: Mapping[str, Any], name: str) -> ModelPolicy:
    weights, embodiment, mode = POLICIES[name]
    config = config_from_arch(json.loads((GOLDEN / weights / "tiny_config.json").read_text()))
    stats = {
        field: FieldStats(**part(arrays, f"norm_stats/{field}/")) for field in ("state", "actions")
    }  # fmt: skip
    pipeline = Pipeline(
        embodiment, NormStats(mode, stats["state"], stats["actions"]), PaligemmaTokenizer.bytes(),
        cameras=config.cameras, prompt_format="pi0" if weights == "pi0_d32" else "pi05",
        prompt_length=config.prompt_length, image_size=config.image_shape, state_dim=config.state_dim,
        action_dim=config.action_dim,
    )  # fmt: skip
    return ModelPolicy(load_model(GOLDEN / weights / "torch", arch=config), pipeline, num_steps=10)


def robot_dict(arrays: Mapping[str, Any], embodiment: Embodiment) -> RobotDict:
    return from_openpi(sent(part(arrays, "in/")), embodiment)


@pytest.mark.parametrize("name", POLICIES)
def test_what_reaches_the_model(name: str) -> None:
    arrays = read_arrays(GOLDEN / "policies" / f"{name}.npz")
    pipeline = make_policy(arrays, name).pipeline
    inputs, expected = pipeline.robot_inputs([robot_dict(arrays, pipeline.embodiment)]), part(arrays, "model_in/")
    assert_array_equal(inputs["images"]["base_0_rgb"][0], expected["image/base_0_rgb"])
    assert {f"image_mask/{camera}": mask[0] for camera, mask in inputs["image_masks"].items()} == {
        key: mask for key, mask in expected.items() if key.startswith("image_mask/")
    }
    assert_array_equal(inputs["prompt_tokens"][0], expected["tokenized_prompt"])
    assert_array_equal(inputs["prompt_mask"][0], expected["tokenized_prompt_mask"])
    assert_allclose(inputs["state"][0], expected["state"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", POLICIES)
def test_whole_policy(name: str) -> None:
    arrays = read_arrays(GOLDEN / "policies" / f"{name}.npz")
    policy = make_policy(arrays, name)
    observation = robot_dict(arrays, policy.pipeline.embodiment) | {"noise": arrays["in/noise"]}
    actions = policy.infer(observation)["actions"]
    assert actions.shape == arrays["out/actions"].shape
    assert_allclose(actions, arrays["out/actions"], rtol=0, atol=2e-4)
