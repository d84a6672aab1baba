"""The page of a replayed episode: what was recorded, what the policy would do, and by how much they differ."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pizero.cli.main import run
from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.embodiments import Embodiment, generic
from pizero.workflows import replay_episode as module

PNG = Path(__file__).parents[1] / "golden/lerobot/datasets/v30_png"
HORIZON = 8


class Repeats:
    """A policy that gives the recorded actions, moved by half a unit in the first dimension."""

    def __init__(self, robot: Embodiment) -> None:
        dataset = LeRobotDataset(PNG)
        frames = np.arange(dataset.num_frames)
        self.windows = dataset.window("action", frames, HORIZON)[0] + np.array([0.5, 0, 0], np.float32)
        self.states = dataset.column("observation.state")
        self.texts: list[str] = []
        self.noise_shape = (HORIZON, 3)
        self.horizon = HORIZON
        self.model = type("M", (), {"config": type("C", (), {"past_actions": 0})})
        self.pipeline = type("P", (), {
            "embodiment": robot, "num_history": 1, "robot_state_dim": 4, "robot_action_dim": 3
        })  # fmt: skip

    def infer_batch(self, observations: list[Any]) -> list[dict[str, Any]]:
        rows = [int(np.abs(self.states - seen["state"]).sum(axis=1).argmin()) for seen in observations]
        return [{"actions": self.windows[row]} for row in rows]


@pytest.fixture(autouse=True)
def policy(monkeypatch: pytest.MonkeyPatch) -> None:
    robot = generic({"base_0_rgb": "top", "left_wrist_0_rgb": "wrist"})
    monkeypatch.setattr(module, "load_policy", lambda *_, **__: Repeats(robot))


def test_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["none", str(PNG), "--episode", "1", "--execution-horizon", "5", "--output", str(tmp_path)]
    assert run("replay", arguments) == 0
    results = json.loads((tmp_path / "episode_1.json").read_text())
    length = int(LeRobotDataset(PNG, episodes=[1]).num_frames)
    assert results["replans"] == list(range(0, length, 5))
    assert [dim["name"] for dim in results["dimensions"]] == ["dx", "dy", "gripper"]
    assert [round(dim["error"], 4) for dim in results["dimensions"]] == [0.5, 0.0, 0.0]
    page = (tmp_path / "episode_1.html").read_text()
    assert page.count("<img") == 3  # a strip of each camera, and the actions
    assert "What the policy wrote" not in page
    assert results["prompt"] in page.replace("&#x27;", "'")
    assert re.search(r"dx</td><td class=\"n\">0\.5</td>", page)
    shown = capsys.readouterr().err
    assert "dx: mean absolute error 0.5, greatest 0.5" in shown
    assert str(tmp_path / "episode_1.html") in shown


def test_what_the_policy_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row where the text changes; the JSON has it for every replan."""
    robot = generic({"base_0_rgb": "top", "left_wrist_0_rgb": "wrist"})

    class Writes(Repeats):
        def infer_batch(self, observations: list[Any]) -> list[dict[str, Any]]:
            answers = super().infer_batch(observations)
            return [answer | {"subtask": self.texts.pop(0)} for answer in answers]

    policy = Writes(robot)
    length = int(LeRobotDataset(PNG, episodes=[1]).num_frames)
    count = -(-length // 2)
    policy.texts = ["go <there>", "go <there>", "", *["lift"] * (count - 3)]
    monkeypatch.setattr(module, "load_policy", lambda *_, **__: policy)
    arguments = ["none", str(PNG), "--episode", "1", "--execution-horizon", "2", "--output", str(tmp_path)]
    assert run("replay", arguments) == 0
    results = json.loads((tmp_path / "episode_1.json").read_text())
    assert results["subtasks"] == ["go <there>", "go <there>", "", *["lift"] * (count - 3)]
    page = (tmp_path / "episode_1.html").read_text()
    fps = LeRobotDataset(PNG).fps
    rows = [(0, "go &lt;there&gt;"), (4, "nothing"), *([(6, "lift")] if count > 3 else [])]
    assert re.findall(r"<td>([\d.]+) s</td><td>([^<]+)</td>", page) == [(f"{at / fps:.1f}", text) for at, text in rows]


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, text in (
        (["--episode", "99"], "has no episode 99; it has 4"),
        (["--episode", "1", "--execution-horizon", "9"], "execution_horizon must be 1 to 8"),
    ):
        assert run("replay", ["none", str(PNG), *options, "--output", str(tmp_path)]) == 2
        assert text in capsys.readouterr().err.strip().splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_another_robot_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    other = generic({"base_0_rgb": "top"}, action_dims=("dx",))
    monkeypatch.setattr(module, "load_policy", lambda *_, **__: Repeats(other))
    assert run("replay", ["none", str(PNG), "--episode", "0"]) == 2
    assert "4 state and 1 action dimensions, the checkpoint's robot 4 and 3" in capsys.readouterr().err
