from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from pizero.data.embodiments import Conversion, generic
from pizero.data.norm_stats import NormStats, compute_norm_stats
from pizero.data.pipeline import Pipeline
from pizero.data.tokenizer import PaligemmaTokenizer, train_tokenizer
from pizero.types import UserError

CAMERAS = {"base_0_rgb": "top", "left_wrist_0_rgb": "hand"}
STATE = np.array([[0.5, -0.5, 1.0], [1.5, 0.0, -1.0]], dtype=np.float32)


def stats(mode: Any = "zscore", seed: int = 0, action_dim: int = 2) -> NormStats:
    rng = np.random.default_rng(seed)
    return compute_norm_stats(rng.normal(1, 2, (100, 3)), rng.normal(-1, 3, (100, action_dim)), mode)


def make(prompt_format: Any = "pi0", **changes: Any) -> Pipeline:
    values: dict[str, Any] = {
        "embodiment": generic(CAMERAS, relative_mask=(True,), state_indices=(2,)),
        "norm_stats": stats("quantile" if prompt_format == "pi05" else "zscore"),
        "tokenizer": PaligemmaTokenizer.bytes(),
        "cameras": tuple(CAMERAS),
        "prompt_format": prompt_format,
        "prompt_length": 64,
        "image_size": (16, 12),
        "state_dim": 8,
        "action_dim": 6,
    }
    return Pipeline(**(values | changes))


def images(batch: int = 2, **changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    both = {name: rng.integers(0, 256, (batch, 20, 24, 3), dtype=np.uint8) for name in CAMERAS.values()}
    return {**both, **changes}


def robot(**changes: Any) -> dict[str, Any]:
    values = {"state": STATE[0], "images": {name: image[0] for name, image in images().items()}, "prompt": "lift it"}
    return values | changes


def test_model_inputs_of_pi0() -> None:
    pipeline = make()
    inputs = pipeline.model_inputs(images(), STATE, ["lift it", "put it down"])
    assert {name: image.shape for name, image in inputs["images"].items()} == dict.fromkeys(CAMERAS, (2, 16, 12, 3))
    assert all(mask.all() for mask in inputs["image_masks"].values())
    expected = (STATE - pipeline.norm_stats.state.mean) / (pipeline.norm_stats.state.std + 1e-6)
    assert_allclose(inputs["state"][:, :3], expected, rtol=1e-6)
    assert_array_equal(inputs["state"][:, 3:], 0)
    assert inputs["state"].dtype == np.float32
    assert inputs["prompt_tokens"].dtype == np.int64
    assert inputs["prompt_mask"].sum(axis=1).tolist() == [9, 13]


def test_the_state_in_the_prompt_is_normalised_and_unpadded() -> None:
    pipeline = make("pi05")
    inputs = pipeline.model_inputs(images(), STATE, ["lift it"] * 2)
    q01, q99 = (np.array(pipeline.norm_stats.state.to_json()[name]) for name in ("q01", "q99"))
    scaled = (STATE[1] - q01) / (q99 - q01 + 1e-6) * 2 - 1
    bins = np.floor((scaled + 1) * 128).astype(int).clip(-1, 255)
    text = bytes(int(t) - 3 for t in inputs["prompt_tokens"][1] if t > 2).decode()
    assert text == f"Task: lift it, State: {bins[0]} {bins[1]} {bins[2]};\nAction: "


def test_the_format_none_has_the_plain_prompt_and_no_state() -> None:
    with_state, without = (
        make(form).model_inputs(images(), STATE, ["lift it"] * 2) for form in ("pi0", "none")
    )  # fmt: skip
    assert_array_equal(without["prompt_tokens"], with_state["prompt_tokens"])
    assert "state" not in without
    assert make("none").observation(without, "cpu").state is None


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), form=st.sampled_from(["pi0", "pi05"]))
def test_actions_and_back(seed: int, form: str) -> None:
    rng = np.random.default_rng(seed)
    pipeline = make(form)
    actions, state = rng.normal(size=(2, 5, 2)).astype(np.float32), rng.normal(size=(2, 3)).astype(np.float32)
    target = pipeline.model_actions(actions, state)
    assert target.shape == (2, 5, 6)
    assert target.dtype == np.float32
    assert_array_equal(target[..., 2:], 0)
    back = pipeline.robot_actions(target, state)
    assert back.dtype == np.float32
    assert_allclose(back, actions, atol=1e-5)


def test_relative_before_normalise() -> None:
    pipeline = make()
    actions = np.ones((1, 1, 2), dtype=np.float32)
    mean, std = pipeline.norm_stats.actions.mean, pipeline.norm_stats.actions.std
    expected = ([1 - STATE[0, 2], 1] - mean) / (std + 1e-6)
    assert_allclose(pipeline.model_actions(actions, STATE[:1])[0, 0, :2], expected, rtol=1e-6)


def test_robot_inputs_equal_model_inputs() -> None:
    pipeline = make()
    batch = images()
    several = [robot(state=STATE[i], images={name: batch[name][i] for name in batch}) for i in range(2)]
    one, other = pipeline.robot_inputs(several), pipeline.model_inputs(batch, STATE, ["lift it"] * 2)
    for camera in CAMERAS:
        assert_array_equal(one["images"][camera], other["images"][camera])
    assert_array_equal(one["state"], other["state"])
    assert_array_equal(one["prompt_tokens"], other["prompt_tokens"])


def test_an_absent_camera_is_masked_and_left_out() -> None:
    inputs = make().model_inputs(images(hand=None), STATE, ["lift it"] * 2)
    assert list(inputs["images"]) == ["base_0_rgb"]
    assert inputs["image_masks"]["left_wrist_0_rgb"].tolist() == [False, False]


def test_a_camera_that_some_samples_have() -> None:
    image = np.full((20, 24, 3), 9, dtype=np.uint8)
    some = [robot(), robot(images={"top": image, "hand": None})]
    inputs = make().robot_inputs(some)
    assert inputs["image_masks"]["left_wrist_0_rgb"].tolist() == [True, False]
    assert inputs["images"]["left_wrist_0_rgb"].shape == (2, 16, 12, 3)
    assert not inputs["images"]["left_wrist_0_rgb"][1].any()


def test_observation_is_tensors_in_the_models_range() -> None:
    pipeline = make()
    inputs = pipeline.model_inputs(images(hand=None), STATE, ["lift it"] * 2)
    observation = pipeline.observation(inputs, "cpu")
    expected = inputs["images"]["base_0_rgb"].astype(np.float32) / 255 * 2 - 1
    assert_allclose(observation.images["base_0_rgb"].numpy(), expected, atol=1e-6)
    assert observation.image_masks["left_wrist_0_rgb"].dtype == torch.bool
    assert observation.prompt_tokens.dtype == torch.int64
    assert observation.state is not None
    assert observation.state.shape == (2, 8)


@pytest.mark.parametrize("form", ["pi0", "pi05", "none"])
def test_save_and_load(tmp_path: Path, form: str) -> None:
    tokenizer = train_tokenizer(["lift the red block", "put it down"], tmp_path / "vocabulary" / "x.model")
    for which in (tokenizer, PaligemmaTokenizer.bytes()):
        folder = tmp_path / f"checkpoint-{which.vocab_size}"
        pipeline = make(form, tokenizer=which)
        pipeline.save(folder)
        back = Pipeline.load(folder)
        assert back.embodiment == pipeline.embodiment
        assert back.image_size == (16, 12)
        one, other = (p.model_inputs(images(), STATE, ["lift it"] * 2) for p in (pipeline, back))
        assert_array_equal(one["prompt_tokens"], other["prompt_tokens"])
        assert_array_equal(one.get("state", 0), other.get("state", 0))


def test_an_unknown_key_or_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"pipeline\.json cannot be read"):
        Pipeline.load(tmp_path)
    pipeline = make()
    data = pipeline.to_json() | {"colour": 1}
    with pytest.raises(UserError, match="colour"):
        Pipeline.from_json(data, pipeline.norm_stats, pipeline.tokenizer)


IMAGE = np.zeros((20, 24, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"state": STATE[0, :2]}, r"^state: got shape \(2,\), expected \(3,\)$"),
        ({"state": np.array([0, np.nan, 1], dtype=np.float32)}, r"^state: dimensions \[1\] are NaN or infinite"),
        ({"state": np.array(["a", "b", "c"])}, r"^state: got type <U1, expected float32"),
        ({"images": {"top": IMAGE}}, r"^images: no camera 'hand'; got \['top'\], expected \['hand', 'top'\]"),
        ({"images": [IMAGE]}, "^images: got list, expected a dictionary"),
        ({"images": {"top": IMAGE, "hand": IMAGE / 255}}, "^images/hand: got type float64, expected uint8"),
        ({"images": {"top": IMAGE, "hand": "x.png"}}, "^images/hand: got str, expected a uint8 array"),
        ({"images": {"top": IMAGE.transpose(2, 0, 1), "hand": IMAGE}}, r"^images/top: got shape \(3, 20, 24\)"),
        ({"images": {"top": IMAGE[:0], "hand": IMAGE}}, "^images/top: got an empty image"),
        ({"images": {"top": None, "hand": None}}, "^images: every camera is absent"),
        ({"prompt": None}, "^prompt: got NoneType, expected text"),
    ],
)
def test_a_wrong_robot_dictionary_is_told(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make().robot_inputs([robot(**changes)])


def test_a_missing_key_is_told() -> None:
    observation = robot()
    del observation["prompt"]
    with pytest.raises(UserError, match="observation 1: no 'prompt'"):
        make().robot_inputs([robot(), observation])


def test_wrong_actions_are_told() -> None:
    with pytest.raises(UserError, match=r"^actions: got shape \(2, 5, 3\), expected \(2, H, 2\)$"):
        make().model_actions(np.zeros((2, 5, 3)), STATE)
    with pytest.raises(UserError, match=r"^actions: got shape \(2, 5, 2\), expected \(2, H, 6\)$"):
        make().robot_actions(np.zeros((2, 5, 2)), STATE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"action_dim": 1}, "2 action dimensions, the model room for 1: choose some with action_dims"),
        ({"state_dim": 2}, "3 state dimensions, the model room for 2: choose some with state_dims"),
        ({"prompt_format": "pi1"}, "got 'pi1'"),
        ({"embodiment": generic({})}, "the generic embodiment names no camera; a policy needs at least one"),
        ({"embodiment": generic(CAMERAS, action_dim=7)}, "2 action dimensions, the generic embodiment 7"),
        ({"embodiment": generic(CAMERAS, relative_mask=(False, True), state_indices=(0, 5))}, "correct the mask"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(**changes)


def test_padded_statistics_serve_a_narrow_robot() -> None:
    """openpi's files hold 32 dimensions whatever the robot has: the embodiment says how many count."""
    narrow = make(embodiment=generic(CAMERAS, state_dim=3, action_dim=2), norm_stats=stats(action_dim=5))
    assert narrow.robot_actions(np.zeros((2, 1, 6)), STATE).shape == (2, 1, 2)
    assert replace(narrow, embodiment=generic(CAMERAS)).robot_action_dim == 5


# -------------------------------------------------------------------- observation history

HISTORY = 3


def with_history(**changes: Any) -> tuple[dict[str, Any], np.ndarray]:
    """Images [B, T, h, w, 3] and state [B, T, d] of two samples."""
    rng = np.random.default_rng(2)
    both = {name: rng.integers(0, 256, (2, HISTORY, 20, 24, 3), dtype=np.uint8) for name in CAMERAS.values()}
    return {**both, **changes}, rng.normal(size=(2, HISTORY, 3)).astype(np.float32)


def robot_history(**changes: Any) -> dict[str, Any]:
    several, state = with_history()
    return {"state": state[0], "images": {n: image[0] for n, image in several.items()}, "prompt": "lift it", **changes}


def test_a_history_is_processed_frame_by_frame() -> None:
    pipeline, single = make(num_history=HISTORY), make()
    several, state = with_history()
    inputs = pipeline.model_inputs(several, state, ["lift it", "put it down"])
    assert inputs["images"]["base_0_rgb"].shape == (2, HISTORY, 16, 12, 3)
    assert inputs["state"].shape == (2, HISTORY, 8)
    assert inputs["image_masks"]["base_0_rgb"].shape == (2,)
    for index in range(HISTORY):
        frame = {name: image[:, index] for name, image in several.items()}
        one = single.model_inputs(frame, state[:, index], ["lift it", "put it down"])
        for camera in CAMERAS:
            assert_array_equal(inputs["images"][camera][:, index], one["images"][camera])
        assert_array_equal(inputs["state"][:, index], one["state"])
        assert_array_equal(inputs["prompt_tokens"], one["prompt_tokens"])
    observation = pipeline.observation(inputs, "cpu")
    assert observation.images["base_0_rgb"].shape == (2, HISTORY, 16, 12, 3)
    assert observation.state is not None
    assert observation.state.shape == (2, HISTORY, 8)


def test_actions_are_relative_to_the_newest_state() -> None:
    pipeline, single = make(num_history=HISTORY), make()
    _, state = with_history()
    actions = np.random.default_rng(0).normal(size=(2, 5, 2)).astype(np.float32)
    target = pipeline.model_actions(actions, state)
    assert_array_equal(target, single.model_actions(actions, state[:, -1]))
    assert_array_equal(pipeline.robot_actions(target, state), single.robot_actions(target, state[:, -1]))


def test_robot_dictionaries_bring_a_history() -> None:
    pipeline = make(num_history=HISTORY)
    several, state = with_history(hand=None)
    raws = [robot_history(state=state[i], images={"top": several["top"][i], "hand": None}) for i in range(2)]
    one, other = pipeline.robot_inputs(raws), pipeline.model_inputs(several, state, ["lift it"] * 2)
    assert list(one["images"]) == ["base_0_rgb"]
    assert_array_equal(one["images"]["base_0_rgb"], other["images"]["base_0_rgb"])
    assert_array_equal(one["state"], other["state"])
    some = pipeline.robot_inputs([robot_history(), raws[1]])
    assert some["image_masks"]["left_wrist_0_rgb"].tolist() == [True, False]
    assert not some["images"]["left_wrist_0_rgb"][1].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"state": STATE[0]},
            r"^state: got shape \(3,\), expected \(3, 3\): a history of 3 observations, oldest first$",
        ),
        ({"state": np.zeros((2, 3), np.float32)}, r"^state: got shape \(2, 3\), expected \(3, 3\): a history of 3"),
        ({"state": np.full((3, 3), np.nan, np.float32)}, r"^state: dimensions \[0, 1, 2\] are NaN or infinite"),
        (
            {"images": {"top": IMAGE, "hand": IMAGE}},
            r"^images/top: got shape \(20, 24, 3\), expected \(3, h, w, 3\): a history of 3 observations, oldest",
        ),
        (
            {"images": {"top": np.stack([IMAGE] * 4), "hand": IMAGE}},
            r"got shape \(4, 20, 24, 3\), expected \(3, h, w, 3\)",
        ),
    ],
)
def test_a_wrong_history_is_told(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        make(num_history=HISTORY).robot_inputs([robot_history(**changes)])
    assert "\n" not in str(error.value)


def test_a_history_where_none_is_asked_for_is_told() -> None:
    with pytest.raises(UserError, match=r"^state: got shape \(3, 3\), expected \(3,\)$"):
        make().robot_inputs([robot_history()])
    with pytest.raises(UserError, match=r"^images/top: got shape \(3, 20, 24, 3\), expected \(h, w, 3\)$"):
        make().robot_inputs([robot_history(state=STATE[0])])


def test_num_history_is_saved_and_older_folders_have_one(tmp_path: Path) -> None:
    make(num_history=HISTORY).save(tmp_path)
    assert Pipeline.load(tmp_path).num_history == HISTORY
    pipeline = make()
    data = pipeline.to_json()
    assert data.pop("num_history") == 1
    assert Pipeline.from_json(data, pipeline.norm_stats, pipeline.tokenizer).num_history == 1
    del data["state_dim"]
    with pytest.raises(UserError, match="pipeline: got keys"):
        Pipeline.from_json(data, pipeline.norm_stats, pipeline.tokenizer)


def test_a_history_that_cannot_be() -> None:
    with pytest.raises(UserError, match="num_history must be positive, got 0"):
        make(num_history=0)
    with pytest.raises(UserError, match="num_history 3: a prompt holds one state"):
        make("pi05", num_history=HISTORY)


# -------------------------------------------------------------------- conversions and default prompt

PI = 3.14159265
DEGREES = (
    Conversion((0,), robot=(0, 180), model=(0, PI)), Conversion((2,), "state", robot=(0, 180), model=(0, PI)),
    Conversion((1,), "action", model=(0, -1)),
)  # fmt: skip


def test_conversions_come_first_in_and_last_out() -> None:
    """A robot in degrees gives the very arrays of one in radians, and gets its actions back in degrees."""
    plain, robot_in_degrees = make(), make(embodiment=replace(make().embodiment, conversions=DEGREES))
    rng = np.random.default_rng(0)
    radians, actions = rng.normal(size=(2, 3)), rng.normal(size=(2, 5, 2))
    factor = 180 / PI
    state, own = radians * [factor, 1, factor], actions * [factor, -1]
    one = plain.model_inputs(images(), radians, ["lift it"] * 2)
    other = robot_in_degrees.model_inputs(images(), state, ["lift it"] * 2)
    assert_allclose(one["state"], other["state"], rtol=1e-6)
    target = robot_in_degrees.model_actions(own, state)
    assert_allclose(target, plain.model_actions(actions, radians), rtol=1e-6)  # relative to state 2, in radians
    assert_allclose(robot_in_degrees.robot_actions(target, state), own, rtol=1e-5)
    assert_allclose(plain.robot_actions(target, radians) * [factor, -1], own, rtol=1e-5)


def test_conversions_are_saved(tmp_path: Path) -> None:
    pipeline = make(embodiment=replace(make().embodiment, conversions=DEGREES, default_prompt="go"))
    pipeline.save(tmp_path)
    assert Pipeline.load(tmp_path).embodiment == pipeline.embodiment


def test_a_conversion_of_a_dimension_that_is_not_there() -> None:
    with pytest.raises(UserError, match="state dimension 3 is converted, but there are 3"):
        make(embodiment=generic_with(conversions=(Conversion((3,), "state"),)))


def generic_with(**changes: Any) -> Any:
    return replace(make().embodiment, **changes)


def test_a_prompt_that_nobody_gives() -> None:
    pipeline = make(embodiment=generic_with(default_prompt="lift it"))
    unsaid, given = robot(), robot(prompt="put it down")
    del unsaid["prompt"]
    inputs = pipeline.robot_inputs([unsaid, robot(prompt=" "), given])
    expected = make().robot_inputs([robot(), robot(), given])
    assert_array_equal(inputs["prompt_tokens"], expected["prompt_tokens"])
    with pytest.raises(UserError, match="prompt: got int, expected text"):
        pipeline.robot_inputs([robot(prompt=3)])
