"""Folders for LeRobot's plugin: what LeRobot reads of them, and that pizero reads them again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pizero.checkpoints.convert import convert
from pizero.checkpoints.facts import GivenFacts
from pizero.checkpoints.lerobot import plugin
from pizero.checkpoints.load import load_policy, read_checkpoint
from pizero.checkpoints.native.checkpoint import save_checkpoint
from pizero.data.embodiments import Embodiment
from pizero.data.norm_stats import FieldStats, NormStats
from pizero.data.tokenizer import PaligemmaTokenizer
from pizero.model.config import small_config
from pizero.model.pi0 import Pi0
from pizero.types import UserError

ROBOT = Embodiment(
    "two", {"base_0_rgb": "top", "left_wrist_0_rgb": "image"}, 3, 2, image_prefix="observation.images."
)  # fmt: skip
STATS = NormStats("zscore", FieldStats(np.zeros(3), np.ones(3)), FieldStats(np.ones(2), np.ones(2)))
GIVEN = GivenFacts(ROBOT, STATS, PaligemmaTokenizer.bytes())


@pytest.fixture
def nano(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "nano", Pi0(small_config("nano", vocab_size=259, prompt_length=16)))
    return tmp_path / "nano"


def test_a_checkpoint_goes_there_and_back(nano: Path, tmp_path: Path) -> None:
    there = convert(nano, tmp_path / "plugin", "lerobot-plugin", given=GIVEN)
    back = convert(tmp_path / "plugin", tmp_path / "back", "native")
    assert (there.target, back.source, there.unknown) == ("lerobot-plugin", "lerobot-plugin", ())
    assert max(there.difference, back.difference) < 1e-5
    image = np.full((8, 8, 3), 99, np.uint8)
    robot = {"state": np.zeros(3, np.float32), "images": {"top": image, "image": image}, "prompt": "go"}
    chunks = [load_policy(tmp_path / name, seed=3).infer(robot)["actions"] for name in ("plugin", "back")]
    np.testing.assert_array_equal(*chunks)


def test_what_lerobot_reads(nano: Path, tmp_path: Path) -> None:
    """Its own loader opens these files in `make test-lerobot-plugin`."""
    convert(nano, tmp_path / "plugin", "lerobot-plugin", given=GIVEN)
    values = json.loads((tmp_path / "plugin" / "config.json").read_text())
    assert values["type"] == "pizero"
    assert {key: value["shape"] for key, value in values["input_features"].items()} == {
        "observation.images.top": [3, 28, 28], "observation.images.image": [3, 28, 28], "observation.state": [3],
    }  # fmt: skip
    assert values["output_features"] == {"action": {"type": "ACTION", "shape": [2]}}
    for name in ("policy_preprocessor", "policy_postprocessor"):
        steps = json.loads((tmp_path / "plugin" / f"{name}.json").read_text())["steps"]
        maps = [step["config"]["norm_map"] for step in steps if "normalizer" in step["registry_name"]]
        assert [set(map.values()) for map in maps] == [{"IDENTITY"}]
        assert not [step for step in steps if "state_file" in step]


def test_a_robot_that_lerobot_cannot_ask_is_refused(nano: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"does not record embodiment, norm_stats, tokenizer.*--norm-stats"):
        convert(nano, tmp_path / "plugin", "lerobot-plugin")
    chooses = Embodiment("some", {"base_0_rgb": "top"}, state_dims=(0, 1, 2), action_dims=(0, 1))
    with pytest.raises(UserError, match="chooses dimensions"):
        convert(nano, tmp_path / "plugin", "lerobot-plugin", given=GivenFacts(chooses, STATS, GIVEN.tokenizer))
    assert not (tmp_path / "plugin").exists()


def test_a_folder_without_its_checkpoint_is_none(nano: Path, tmp_path: Path) -> None:
    convert(nano, tmp_path / "plugin", "lerobot-plugin", given=GIVEN)
    (tmp_path / "plugin" / "pizero" / "config.json").unlink()
    with pytest.raises(UserError, match="plugin"):
        read_checkpoint(tmp_path / "plugin")


def test_columns_of_other_names_get_lerobots(nano: Path) -> None:
    other = Embodiment("libero", {"base_0_rgb": "image", "left_wrist_0_rgb": "wrist"}, 3, 2, image_prefix="")
    pipeline = load_policy(nano, embodiment=other, norm_stats=STATS, tokenizer=GIVEN.tokenizer).pipeline  # type: ignore[arg-type]
    assert plugin.camera_keys(pipeline) == {
        "image": "observation.images.image", "wrist": "observation.images.wrist",
    }  # fmt: skip
