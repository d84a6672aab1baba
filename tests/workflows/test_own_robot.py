"""A robot that only a TOML file knows, from dataset to policy: converted numbers, instructions in a column of text."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pizero.checkpoints.load import load_policy
from pizero.checkpoints.stats import read_norm_stats
from pizero.configs.presets import Preset, get_preset
from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.embodiments import generic, get_embodiment
from pizero.data.embodiments.dimensions import chosen
from pizero.data.norm_stats import field_stats
from pizero.data.robot_columns import robot_actions
from pizero.model.config import small_config
from pizero.types import UserError
from pizero.workflows.norm_stats import norm_stats
from pizero.workflows.replay import recorded_observation, replay
from pizero.workflows.train import train_policy

PNG = Path(__file__).parents[1] / "golden/lerobot/datasets/v30_png"
ROBOT = """
[cameras]
base_0_rgb = "top"
left_wrist_0_rgb = "wrist"

[robot]
prompt_key = "instruction"
default_prompt = "wait for it"
relative_mask = [true]

[[robot.conversions]]
dims = [0]
robot = [0.0, 2.0]
model = [5.0, -5.0]

[[robot.conversions]]
dims = [1]
of = "action"
robot = [0.0, 1.0]
model = [0.0, 100.0]
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The golden dataset with a column of text, empty in its first episode, and the robot's file beside it."""
    root = shutil.copytree(PNG, tmp_path / "data")
    path = next((root / "data").rglob("*.parquet"))
    texts = [""] * 40 + ["turn it round"] * 121
    pq.write_table(pq.read_table(path).append_column("instruction", pa.array(texts)), path)
    info = json.loads((root / "meta/info.json").read_text())
    info["features"]["instruction"] = {"dtype": "string", "shape": [1], "names": None}
    (root / "meta/info.json").write_text(json.dumps(info))
    (tmp_path / "robot.toml").write_text(ROBOT)
    return root


def preset_of(robot: Path) -> Preset:
    preset = get_preset("tabletop")
    train = dataclasses.replace(
        preset.train, steps=2, batch_size=4, draws=1, log_every=1, validate_every=2, save_every=2, threads=1
    )  # fmt: skip
    model = small_config("nano", state_dim=8, action_dim=8, prompt_length=24, action_horizon=4, vocab_size=384)
    return dataclasses.replace(preset, embodiment=str(robot), model=model, train=train)


@pytest.mark.filterwarnings("ignore:prompt")
def test_from_dataset_to_policy(root: Path, tmp_path: Path) -> None:
    robot = tmp_path / "robot.toml"
    result = train_policy(root, tmp_path / "run", preset_of(robot))
    policy = load_policy(result.checkpoint, verify=True)
    assert policy.pipeline.embodiment == get_embodiment(str(robot))
    dataset = LeRobotDataset(root)
    observation = recorded_observation(dataset, policy.pipeline, 0)
    assert observation["prompt"] == "wait for it"
    assert recorded_observation(dataset, policy.pipeline, 40)["prompt"] == "turn it round"
    tokenizer = policy.pipeline.tokenizer  # trained on the column and the default, and not on the tasks
    pieces = {
        text: tokenizer.encode(text, None, 60)[1].sum() for text in ("turn it round", "wait for it", *dataset.tasks)
    }
    assert max(pieces["turn it round"], pieces["wait for it"]) < 8
    assert min(pieces[task] for task in dataset.tasks) > 20

    stats, state, actions = policy.pipeline.norm_stats, dataset.column("observation.state"), dataset.column("action")
    turned = field_stats(5 - 5 * state[:, :1].astype(np.float64))
    np.testing.assert_allclose(stats.state.mean[0], turned.mean[0], rtol=1e-6)
    np.testing.assert_allclose(stats.state.std[0], turned.std[0], rtol=1e-6)
    np.testing.assert_allclose(stats.state.mean[1:], state[:, 1:].mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(stats.actions.mean[1], 100 * actions[:, 1].mean(), rtol=1e-4)
    np.testing.assert_allclose(stats.actions.std[2], actions[:, 2].std(), rtol=1e-4)
    own = norm_stats(root, str(robot), stats.mode, 4, tmp_path / "stats.json")[0]
    np.testing.assert_array_equal(own.actions.mean, stats.actions.mean)


CHOOSES = """
[cameras]
base_0_rgb = "top"

[robot]
state_dims = ["z", "x", 1]
action_dims = ["gripper", 0]
relative_mask = [false, true]
state_indices = [0, 1]
"""


@pytest.mark.filterwarnings("ignore:tokenizer")
def test_chosen_dimensions_from_dataset_to_policy(root: Path, tmp_path: Path) -> None:
    """State z, x, y of x, y, c, z; actions gripper and dx of dx, dy, gripper; dx is learned relative to x."""
    path = tmp_path / "chooses.toml"
    path.write_text(CHOOSES)
    result = train_policy(root, tmp_path / "run", preset_of(path))
    policy = load_policy(result.checkpoint, verify=True)
    assert policy.pipeline.embodiment == get_embodiment(str(path))
    assert (policy.pipeline.robot_state_dim, policy.pipeline.robot_action_dim) == (3, 2)
    dataset = LeRobotDataset(root)
    state, actions = dataset.column("observation.state"), dataset.column("action")
    stats = policy.pipeline.norm_stats
    np.testing.assert_allclose(stats.state.mean, state[:, [3, 0, 1]].mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(stats.actions.std[0], actions[:, 2].std(), rtol=1e-4)
    steps = dataset.window("action", np.arange(len(state)), 4)[0][..., 0] - state[:, :1]
    np.testing.assert_allclose(stats.actions.mean[1], steps.mean(), rtol=1e-3, atol=1e-4)

    observation = recorded_observation(dataset, policy.pipeline, 5)
    np.testing.assert_array_equal(observation["state"], state[5, [3, 0, 1]])
    assert policy.infer(observation)["actions"].shape == (4, 2)
    model_actions = policy.pipeline.model_actions(actions[None, 5:9, [2, 0]], observation["state"][None])
    assert (model_actions[..., 2:] == 0).all()  # padding, as for a robot that has no other dimensions
    back = policy.pipeline.robot_actions(model_actions, observation["state"][None])
    np.testing.assert_allclose(back[0], actions[5:9, [2, 0]], atol=1e-4)
    played = replay(dataset, policy, np.array([5, 9]))
    np.testing.assert_array_equal(played.recorded[0, 0], actions[5, [2, 0]])
    with pytest.raises(UserError, match="joins them, converts them or chooses some of their dimensions"):
        read_norm_stats(root / "meta/stats.json", stats.mode, generic({}, state_dims=("z", "x", 1)))
    with pytest.raises(UserError, match=r"got shape \(4,\), expected \(3,\): of the .* state_dims choose, z, x, 1"):
        policy.infer({**observation, "state": state[5]})


def test_a_choice_means_names_in_each_dataset(root: Path, tmp_path: Path) -> None:
    """The same robot recorded in another order of dimensions: by name both are one."""
    other = shutil.copytree(root, tmp_path / "other")
    file = next((other / "data").rglob("*.parquet"))
    table = pq.read_table(file)
    turned = [[gripper, dx, dy] for dx, dy, gripper in table.column("action").to_pylist()]
    place = table.column_names.index("action")
    pq.write_table(table.set_column(place, table.schema.field(place), pa.array(turned, table.field(place).type)), file)
    info = json.loads((other / "meta/info.json").read_text())
    info["features"]["action"]["names"] = {"motors": ["gripper", "dx", "dy"]}
    (other / "meta/info.json").write_text(json.dumps(info))
    robot = generic({"base_0_rgb": "top"}, action_dims=("dx", "gripper"))
    first, second = (robot_actions(LeRobotDataset(folder), robot) for folder in (root, other))
    np.testing.assert_array_equal(first, second)
    assert first.shape[1] == 2


def test_a_recording_of_chosen_dimensions_is_chosen_already() -> None:
    """`serve --record` has the chosen ones alone, in their order, named as they were chosen."""
    dims = (3, "x", 0)
    assert chosen("dims", dims, ["3", "x", "0"], 3) == [0, 1, 2]
    assert chosen("dims", dims, ["a", "b", "x", "d"], 4) == [3, 2, 0]


@pytest.mark.parametrize(
    ("robot", "message"),
    [
        ("action_dims = [0, 3]", r"action_dims names dimension 3, but the data has 3, counted from 0"),
        ('action_dims = ["dz"]', r"action_dims has the name 'dz', which is not there; the data has dx, dy, gripper"),
        ('action_dims = ["dx", 0]', r"action_dims means dimension 0 twice \('dx'\)"),
        ("action_dims = [1, 1]", r"action_dims names 1 twice"),
        ("action_dims = [-1]", r"action_dims must be whole numbers from 0 on, or names, got -1"),
        ("action_dims = [0.5]", r"action_dims\[0\] must be a whole number, got 0.5"),
        ("action_dims = [0, 1]\naction_dim = 3", r"action_dims chooses 2 dimensions, but .* action_dim says 3"),
        ("action_dims = [0, 1]\nrelative_mask = [true, true, true]", r"relative mask of 3 for 2 actions"),
        ("state_dims = [0]\nrelative_mask = [false, true]", r"goes with state dimension 1, but there are"),
        ("state_dim = 14", r"state_dim is 14, but the data has 4; correct it or leave it out"),
        ("action_dim = 2", r"action_dim is 2, but the data has 3; correct it or leave it out"),
    ],
)
def test_a_wrong_choice_is_one_line(root: Path, tmp_path: Path, robot: str, message: str) -> None:
    path = tmp_path / "robot.toml"
    path.write_text(f'[cameras]\nbase_0_rgb = "top"\n[robot]\n{robot}\n')
    with pytest.raises(UserError, match=message):
        norm_stats(root, str(path), "zscore", 4, tmp_path / "stats.json")
    with pytest.raises(UserError, match=message):
        train_policy(root, tmp_path / "run", preset_of(path))


def test_a_robot_that_does_not_fit_the_data(root: Path, tmp_path: Path) -> None:
    robot = tmp_path / "robot.toml"
    robot.write_text(ROBOT.replace("dims = [1]", "dims = [7]"))
    with pytest.raises(UserError, match="embodiment robot: action dimension 7 is converted, but there are 3, from 0"):
        norm_stats(root, str(robot), "zscore", 4, tmp_path / "stats.json")
