"""`pizero inspect` with an observation of a simulator or of a recording."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from pizero.baseline.config import small_baseline
from pizero.baseline.policy import DiffusionPolicy
from pizero.checkpoints.native.checkpoint import save_checkpoint
from pizero.cli.main import run
from pizero.data.embodiments import tabletop
from pizero.data.norm_stats import FieldStats, NormStats
from pizero.data.pipeline import Pipeline
from pizero.data.tokenizer import PaligemmaTokenizer
from pizero.model.config import small_config
from pizero.model.pi0 import Pi0
from pizero.workflows.collect import CollectConfig, collect
from pizero.workflows.insight import InsightConfig, inspect_inside

CAMERAS = ("base_0_rgb", "left_wrist_0_rgb")


SIZES = {"vocab_size": 259, "prompt_length": 40, "cameras": CAMERAS, "state_dim": 7, "action_dim": 5}
STATS = NormStats("zscore", FieldStats(np.zeros(7), np.ones(7)), FieldStats(np.zeros(5), np.ones(5)))


def save(folder: Path, model: Pi0 | DiffusionPolicy, num_history: int = 1) -> Path:
    pipeline = Pipeline(
        tabletop(), STATS, PaligemmaTokenizer.bytes(), cameras=CAMERAS, prompt_format="pi0", prompt_length=40,
        image_size=(28, 28), state_dim=7, action_dim=5, num_history=num_history,
    )  # fmt: skip
    save_checkpoint(folder, model.eval(), pipeline)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return save(tmp_path_factory.mktemp("inspected") / "checkpoint", Pi0(small_config("nano", **SIZES)))


def test_a_page_of_a_simulators_observation(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "pages" / "a.html"
    given = [str(checkpoint), "--env", "tabletop", "--task", "lift", "--num-steps", "2", "--output", str(page)]
    assert run("inspect", given) == 0
    text = page.read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])  # type: ignore[index]
    assert data["steps"] == 2
    assert len(data["flow"]["actions"]) == 3
    assert data["flow"]["names"][2:] == ["z (half tables)", "yaw (half turns)", "gripper (1 closes)"]
    assert re.search(r"Prompt: &#x27;lift the \w+ \w+&#x27;", text)
    assert f"page: {page}" in capsys.readouterr().err.replace("\n", "")


def test_a_policy_with_a_history_sees_the_first_observation_repeated(tmp_path: Path) -> None:
    """As at the first step of an episode."""
    torch.manual_seed(0)
    model = DiffusionPolicy(small_baseline("nano", **SIZES, image_size=28, num_history=2, diffusion_steps=4))
    config = InsightConfig(env="tabletop", task="lift", num_steps=2)
    insight = inspect_inside(str(save(tmp_path / "checkpoint", model, 2)), config, tmp_path / "a.html")
    assert insight.observation["state"].shape == (2, 7)
    assert np.array_equal(*insight.observation["state"])
    assert np.array_equal(*insight.observation["images"]["top"])
    assert insight.flow is not None
    assert len(insight.flow.actions) == 3


def test_a_page_of_a_recorded_observation(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    collect(CollectConfig("tabletop", episodes=2, image_size=28, image_format="png"), tmp_path / "data")
    given = [
        str(checkpoint),
        "--dataset",
        str(tmp_path / "data"),
        "--num-steps",
        "1",
        "--output",
        str(tmp_path / "a.html"),
    ]
    assert run("inspect", [*given, "--episode", "1", "--frame", "2"]) == 0
    assert "data, episode 1, frame 2" in (tmp_path / "a.html").read_text()
    assert run("inspect", [*given, "--frame", "999"]) == 2
    assert "frame must be 0 to" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (["--env", "tabletop", "--dataset", "x"], "one of --dataset and --env"),
        (["--rerun", "a.rrd"], "one of --dataset and --env"),
        (["--env", "nowhere"], "nowhere"),
    ],
)
def test_one_line_for_a_mistake(
    checkpoint: Path, given: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("inspect", [str(checkpoint), *given, "--output", str(tmp_path / "a.html")]) == 2
    shown = capsys.readouterr().err
    assert line in shown
    assert shown.count("\n") == 1
    assert not (tmp_path / "a.html").exists()
