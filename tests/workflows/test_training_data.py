"""A mixture of datasets: read from a file, trained with each robot's own statistics, run as either robot."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

from pizero import load_policy
from pizero.checkpoints.native.checkpoint import load_robots
from pizero.configs.presets import Preset
from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.model.config import small_config
from pizero.train.config import TrainConfig
from pizero.types import UserError
from pizero.workflows.norm_stats import norm_stats
from pizero.workflows.replay import recorded_observation
from pizero.workflows.train import train_policy
from pizero.workflows.training_data import open_sources

DATASETS = Path(__file__).parents[1] / "golden/lerobot/datasets"
ARM = '[cameras]\nbase_0_rgb = "top"\n[robot]\nname = "arm"\nrelative_mask = [true]\n'
CART = '[cameras]\nleft_wrist_0_rgb = "wrist"\n[robot]\nname = "cart"\n'


@pytest.fixture
def mixture(tmp_path: Path) -> Path:
    (tmp_path / "arm.toml").write_text(ARM)
    (tmp_path / "cart.toml").write_text(CART)
    for name in ("v30_png", "v21_png", "v30_h264_multifile"):
        (tmp_path / name).symlink_to(DATASETS / name)
    path = tmp_path / "mixture.toml"
    path.write_text(
        '[[datasets]]\npath = "v30_png"\nembodiment = "arm.toml"\n'
        '[[datasets]]\npath = "v21_png"\nembodiment = "arm.toml"\nweight = 100\n'
        '[[datasets]]\npath = "v30_h264_multifile"\nembodiment = "cart.toml"\nweight = 300\n'
    )
    return path


def preset(steps: int = 2, embodiment: str = "tabletop") -> Preset:
    model = small_config(
        "nano", vocab_size=384, prompt_length=32, state_dim=8, action_dim=6, cameras=("base_0_rgb", "left_wrist_0_rgb")
    )
    train = TrainConfig(steps=steps, batch_size=8, save_every=1, validate_every=1, log_every=1, threads=1, keep=5)
    return Preset(embodiment, model, train, "zscore", 384, execution_horizon=4)


def test_from_a_file_to_a_policy_of_either_robot(mixture: Path, tmp_path: Path) -> None:
    trained = train_policy(mixture, tmp_path / "run", preset())
    arms = [LeRobotDataset(DATASETS / name) for name in ("v30_png", "v21_png")]
    cart = LeRobotDataset(DATASETS / "v30_h264_multifile")
    policies = {name: load_policy(trained.checkpoint, embodiment=name, verify=True) for name in ("arm", "cart")}
    states = np.concatenate([dataset.column("observation.state") for dataset in arms])
    assert_allclose(policies["arm"].pipeline.norm_stats.state.mean, states.mean(axis=0), rtol=1e-4)
    own = cart.column("observation.state").mean(axis=0)
    assert_allclose(policies["cart"].pipeline.norm_stats.state.mean, own, rtol=1e-4)
    assert load_policy(trained.checkpoint).pipeline.embodiment.name == "arm"
    assert list(load_robots(trained.checkpoint)) == ["cart"]
    for name, dataset in (("arm", arms[0]), ("cart", cart)):
        observation = recorded_observation(dataset, policies[name].pipeline, 3)
        assert policies[name].infer(observation)["actions"].shape == (6, dataset.column("action").shape[1])
    shutil.rmtree(trained.checkpoint)
    again = train_policy(mixture, tmp_path / "run", preset(), resume=True)
    assert again.checkpoint.name == "0000002"
    assert list(load_robots(again.checkpoint)) == ["cart"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[dataset]]\n", r"expected \[\[datasets\]\], one table for each dataset, and nothing else"),
        ("datasets = 3", r"expected \[\[datasets\]\]"),
        ("[[datasets]", "cannot be read as TOML"),
        ("[[datasets]]\nweight = 1", "dataset 1 has no path"),
        ('[[datasets]]\npath = "v30_png"\nweights = 1', "unknown key 'weights'; expected some of path, weight"),
        ('[[datasets]]\npath = "v30_png"\nweight = "2"', "dataset 1: weight is '2', expected a number"),
        ('[[datasets]]\npath = "v30_png"\nweight = 0', "dataset 1: weight is 0, expected a number above 0"),
        ('[[datasets]]\npath = "v30_png"\nweight = nan', "weight is nan"),
        ('[[datasets]]\npath = "nowhere"', "nowhere"),
        ('[[datasets]]\npath = "v30_png"\nembodiment = "robot9"', "unknown embodiment 'robot9'"),
        (
            '[[datasets]]\npath = "v30_png"\n[[datasets]]\npath = "v21_png"\nnorm_stats = "some.json"',
            "two datasets share the robot 'tabletop', but not its description or its norm_stats",
        ),
    ],
)  # fmt: skip
def test_a_mistake_in_the_file_is_one_line(mixture: Path, text: str, message: str) -> None:
    mixture.write_text(text)
    with pytest.raises(UserError, match=message):
        open_sources(mixture, "tabletop")


def test_options_of_a_single_dataset(mixture: Path) -> None:
    with pytest.raises(UserError, match="is a mixture: choose norm_stats there"):
        open_sources(mixture, "tabletop", norm_stats=Path("some.json"))


def test_a_resume_with_another_robot(mixture: Path, tmp_path: Path) -> None:
    train_policy(DATASETS / "v30_png", tmp_path / "run", preset(1, str(tmp_path / "arm.toml")))
    with pytest.raises(UserError, match="knows the robots arm, but the data is of 'cart'"):
        train_policy(mixture, tmp_path / "run", preset(2, str(tmp_path / "arm.toml")), resume=True)


def test_statistics_of_a_mixture_are_those_of_its_datasets(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"mixture\.toml is no dataset; of a mixture give the datasets that it lists"):
        norm_stats(tmp_path / "mixture.toml", None, "zscore", 4, None)
