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

from pizero.configs.presets import Preset, get_preset
from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.embodiments import get_embodiment
from pizero.data.norm_stats import field_stats
from pizero.model.config import small_config
from pizero.policy.policy import load_policy
from pizero.types import UserError
from pizero.workflows.norm_stats import norm_stats
from pizero.workflows.replay import recorded_observation
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


def test_a_robot_that_does_not_fit_the_data(root: Path, tmp_path: Path) -> None:
    robot = tmp_path / "robot.toml"
    robot.write_text(ROBOT.replace("dims = [1]", "dims = [7]"))
    with pytest.raises(UserError, match="embodiment robot: action dimension 7 is converted, but there are 3, from 0"):
        norm_stats(root, str(robot), "zscore", 4, tmp_path / "stats.json")
