"""The ladder on a recording: errors in robot units, beside guesses that need no policy."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from here import Here

from pizero.cli import compare as command
from pizero.configs.ladder import LadderConfig
from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.loader import split_episodes
from pizero.types import UserError
from pizero.workflows import compare as compare_runner
from pizero.workflows.compare import CompareConfig, compare, print_comparison
from pizero.workflows.compare_recording import VALIDATION_FRACTION

PNG = Path(__file__).parents[1] / "golden/lerobot/datasets/v30_png"
LADDER = LadderConfig("small", size="nano", steps=2, batch_size=2)


def test_a_recording_is_measured_without_a_simulator(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIZERO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(compare_runner, "Workers", Here)
    config = CompareConfig(LADDER, rungs=(7,), workers=1, dataset=str(PNG))
    results = compare(config, tmp_path / "out")
    (row,) = results["rows"]
    assert "success" not in row
    assert row["rung"] == 7
    data = LeRobotDataset(PNG)
    assert len(row["open_loop_error"]) == len(results["actions"]) == data.column("action").shape[1]

    actions = data.column("action").astype(np.float64)
    trained, held_out = split_episodes(data, VALIDATION_FRACTION, 0)
    ends = np.repeat(np.cumsum(data.episode_lengths), data.episode_lengths)
    constant: list[np.ndarray] = []
    before: list[np.ndarray] = []
    for frame in held_out:  # fewer than are asked for: all of them
        window = actions[frame : min(frame + 8, ends[frame])]
        constant += list(np.abs(window - np.median(actions[trained], axis=0)))
        before += list(np.abs(window - actions[frame if frame in data.episode_starts else frame - 1]))
    for found, errors in zip(results["trivial"], (constant, before), strict=True):
        np.testing.assert_allclose(found["open_loop_error"], np.mean(errors, axis=0), rtol=1e-3, atol=1e-4)
    assert [found["change"] for found in results["trivial"]] == ["constant action", "action before"]

    capsys.readouterr()
    print_comparison(results, tmp_path)
    printed = capsys.readouterr().err
    assert "constant action" in printed
    assert "dual experts" in printed
    assert "success" not in printed
    page = (tmp_path / "out" / "report.html").read_text()
    assert results["actions"][0] in page
    assert str(PNG) in page
    assert not re.search(r"https?://|Success", page)
    with pytest.raises(UserError, match="other settings"):
        compare(dataclasses.replace(config, dataset=""), tmp_path / "out")


def test_what_a_recording_cannot_be_compared_by(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="on a recording there are ladder, single, rates"):
        CompareConfig(LADDER, study="steps", dataset=str(PNG))
    with pytest.raises(UserError, match="not from a mixture"):
        compare(CompareConfig(LADDER, dataset="all.toml"), tmp_path)
    with pytest.raises(UserError, match="nowhere"):
        command.run(command.Arguments(dataset=str(tmp_path / "nowhere"), output=tmp_path / "out"))
