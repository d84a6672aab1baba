"""pizero check as users call it: exit status, terminal, JSON and page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pizero.checkpoints.native.checkpoint import save_checkpoint
from pizero.cli.main import run
from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.datasets.writer.lerobot_writer import LeRobotWriter
from pizero.data.embodiments import EMBODIMENTS, generic
from pizero.data.pipeline import Pipeline
from pizero.data.tokenizer import PaligemmaTokenizer
from pizero.model.config import small_config
from pizero.model.pi0 import Pi0
from pizero.types import UserError
from pizero.workflows.collect import CollectConfig, collect
from pizero.workflows.norm_stats import dataset_norm_stats

SIZES = {"vocab_size": 259, "state_dim": 8, "action_dim": 8, "prompt_length": 24}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("check") / "data"
    collect(CollectConfig(env="tabletop", episodes=12, image_size=28, image_format="png"), folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A π0 that has learned nothing, for the tabletop."""
    torch.manual_seed(0)
    config = small_config("nano", **SIZES)
    data, embodiment = LeRobotDataset(dataset), EMBODIMENTS["tabletop"]()
    pipeline = Pipeline(
        embodiment, dataset_norm_stats(data, embodiment, "zscore", config.action_horizon), PaligemmaTokenizer.bytes(),
        cameras=config.cameras, prompt_format="pi0", prompt_length=config.prompt_length,
        image_size=config.image_shape, state_dim=config.state_dim, action_dim=config.action_dim,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("checkpoint") / "c"
    save_checkpoint(folder, Pi0(config), pipeline)
    return folder


def test_a_good_dataset(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", [str(dataset), "--horizon", "3", "--output", str(tmp_path)]) == 0
    assert "nothing found" in capsys.readouterr().err
    results = json.loads((tmp_path / "check.json").read_text())
    assert results["findings"] == []
    assert results["replay"] is None
    page = (tmp_path / "check.html").read_text()
    assert page.count("<img") == 2  # a strip of each camera
    assert "None: nothing" in page


def test_a_prompt_with_brackets_is_shown_as_it_is(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = shutil.copytree(dataset, tmp_path / "data")
    path = root / "meta/tasks.parquet"
    table = pq.read_table(path)
    texts = ["pick [/left] the [red]cup :cat:"] * len(table)
    pq.write_table(table.set_column(1, table.schema.field(1), pa.array(texts)), path)
    assert run("check", [str(root), "--horizon", "3", "--output", str(tmp_path)]) == 0
    (finding,) = json.loads((tmp_path / "check.json").read_text())["findings"]
    assert finding["evidence"] == "every frame has the prompt 'pick [/left] the [red]cup :cat:'"
    shown = capsys.readouterr().err
    assert all(part in shown for part in ("[/left]", "[red]cup", ":cat:"))
    assert "[/left] the [red]cup" in (tmp_path / "check.html").read_text()


def test_a_checkpoint_that_has_learned_nothing(
    dataset: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(dataset), "--checkpoint", str(checkpoint), "--episodes", "0", "3", "--output", str(tmp_path)]
    assert run("check", arguments) == 0
    results = json.loads((tmp_path / "check.json").read_text())
    assert "no better than constant" in {finding["check"] for finding in results["findings"]}
    assert len(results["replay"]["error"]) == 5
    assert results["replay"]["episodes"] == "episodes 0, 3"
    assert (tmp_path / "check.html").read_text().count("<img") == 3
    shown = " ".join(capsys.readouterr().err.split())
    assert "mean absolute error by dimension" in shown
    assert "gripper (gripper): on the right side" in shown


def test_a_checkpoint_of_another_robot(dataset: Path, checkpoint: Path, tmp_path: Path) -> None:
    model = Pi0(small_config("nano", **SIZES))
    pipeline = Pipeline.load(checkpoint)
    robot = generic({"base_0_rgb": "front"}, state_dim=7, action_dim=5)
    save_checkpoint(tmp_path / "other", model, Pipeline(**(vars(pipeline) | {"embodiment": robot})))
    assert run("check", [str(dataset), "--checkpoint", str(tmp_path / "other"), "--output", str(tmp_path)]) == 1
    results = json.loads((tmp_path / "check.json").read_text())
    assert ("error", "no camera") in [(f["severity"], f["check"]) for f in results["findings"]]
    assert results["replay"] is None


def test_a_robot_that_is_not_the_datasets(dataset: Path, tmp_path: Path) -> None:
    assert run("check", [str(dataset), "--embodiment", "metaworld", "--output", str(tmp_path)]) == 1
    findings = json.loads((tmp_path / "check.json").read_text())["findings"]
    assert {f["where"] for f in findings if f["check"] == "no camera"} == {"camera corner", "camera gripper"}


def test_mistakes_are_one_line(dataset: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, text in (
        ([str(dataset / "none")], "none"),
        ([str(dataset), "--checkpoint", str(checkpoint), "--episodes", "99"], "has no episode 99"),
        ([str(dataset), "--embodiment", "nobody"], "unknown embodiment"),
    ):
        assert run("check", arguments) == 2, arguments
        shown = capsys.readouterr().err
        assert text in shown
        assert "Traceback" not in shown


def test_what_training_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of all episodes, not of those whose pictures are looked at, in the words of the training."""
    golden = Path(__file__).parents[1] / "golden/lerobot/datasets/v21_av1"
    root = shutil.copytree(golden, tmp_path / "data")
    videos = root / "videos/chunk-000/observation.images.top"
    (videos / "episode_000002.mp4").unlink()
    shutil.copy(videos / "episode_000000.mp4", videos / "episode_000003.mp4")
    assert run("check", [str(root), "--output", str(tmp_path)]) == 1
    results = json.loads((tmp_path / "check.json").read_text())
    errors = {finding["check"]: finding["where"] for finding in results["findings"] if finding["severity"] == "error"}
    assert errors == {"missing file": "episode 2", "frames of the video": "episode 3"}
    assert results["episodes"] == 2
    with pytest.raises(UserError) as refused:
        LeRobotDataset(root)
    shown = capsys.readouterr().err
    lines = [f"{fault['file']}, episode {fault['episode']}: {fault['text']}" for fault in results["faults"]]
    assert len(lines) == 2
    assert "\n".join(lines) in shown
    assert str(refused.value).startswith(lines[0])
    assert "the video holds 40 frames, the episode has 41 rows" in shown
    shutil.rmtree(root / "videos")
    assert run("check", [str(root), "--output", str(tmp_path / "all")]) == 1
    results = json.loads((tmp_path / "all/check.json").read_text())
    assert len(results["faults"]) == 8  # two cameras of four episodes
    assert [finding["where"] for finding in results["findings"] if finding["severity"] == "error"] == ["episodes 0-3"]
    assert results["frames"] > 0  # their numbers are examined all the same


def test_a_dataset_without_a_camera(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its numbers are examined, and told by name; the one error is what training refuses."""
    root = tmp_path / "data"
    with LeRobotWriter(
        root, fps=10, robot_type="arm", state_names=["pan", "lift"], action_names=["pan", "lift"], cameras={},
        image_format="png",
    ) as writer:  # fmt: skip
        for step in range(60):
            angle = np.float32(np.sin(step / 5))
            writer.add_frame(np.array([angle, 0.5]), np.array([np.sin((step + 1) / 5), 0.5]), {})
        writer.save_episode("wave")
    assert run("check", [str(root), "--output", str(tmp_path)]) == 1
    findings = json.loads((tmp_path / "check.json").read_text())["findings"]
    told = [(f["severity"], f["check"], f["where"]) for f in findings]
    assert told == [
        ("error", "no camera", "all episodes"), ("warning", "near constant", "state lift"),
        ("warning", "near constant", "action lift"), ("note", "one prompt", "all episodes"),
    ]  # fmt: skip
    shown = capsys.readouterr().err.splitlines()
    assert "warning · near constant · state lift" in shown  # no terminal: a line is a line
    assert any("state_dims = [0] in the robot file" in line for line in shown)
    assert shown[-1].startswith("1 episode, 60 frames: 1 error, 2 warnings, 1 note")
    assert "lift" in (tmp_path / "check.html").read_text()
