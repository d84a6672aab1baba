"""`pizero bench`: figures of paths, stages and facts; a sweep; the error of int8 on recorded observations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pizero.cli.main import run
from pizero.types import UserError
from pizero.workflows.bench_inference import BenchConfig, bench, model_config, random_model, random_observation, sweep

TINY = BenchConfig("tiny", "float32", cameras=2, prompt=5, num_steps=2, threads=1, rounds=2)


@pytest.mark.int8
def test_paths_stages_and_facts() -> None:
    threads = torch.get_num_threads()
    result = bench(TINY, ("plain", "fast", "int8"), ("cached_state", "folded_heads"))
    assert torch.get_num_threads() == threads
    assert list(result["paths"]) == ["plain", "fast", "int8"]
    for row in result["paths"].values():
        assert 0 < row["best_s"] <= row["median_s"] <= row["worst_s"]
    errors = {name: row["rms_from_first_path"] for name, row in result["paths"].items()}
    assert errors["plain"] == 0
    assert errors["fast"] < 1e-5 < errors["int8"]
    stages = result["stages"]
    assert all(seconds > 0 for seconds in stages.values())
    assert stages["floor_s"] < result["paths"]["fast"]["worst_s"]
    assert set(result["ablation"]) == {"cached_state", "folded_heads"}


def test_without_room_for_all_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pizero.workflows.bench_inference._free_memory", lambda: 0)
    result = bench(TINY, ("plain", "fast"))
    assert result["apart"]
    assert result["paths"]["fast"]["rms_from_first_path"] < 1e-5


def test_random_models_are_the_same_for_a_seed() -> None:
    config = model_config("tiny-pi05")
    first, second = (random_model(config, torch.bfloat16) for _ in range(2))
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    actions = first.sample_actions(
        random_observation(config, BenchConfig("tiny-pi05", cameras=1, prompt=3)), num_steps=2
    )
    assert torch.isfinite(actions).all()
    with pytest.raises(UserError, match="4 cameras and 5 prompt tokens; the model has 2 and 16"):
        random_observation(config, BenchConfig("tiny-pi05", cameras=4, prompt=5))


def test_a_sweep_changes_one_thing_at_a_time() -> None:
    rows = sweep(BenchConfig("tiny", "float32", cameras=2, prompt=5, num_steps=2, threads=1, rounds=1))
    assert rows[0]["what"] == "as given"
    assert {row["what"] for row in rows[1:]} == {"cameras", "prompt", "horizon", "num_steps", "batch"}
    assert ("horizon", 10) in {(row["what"], row["value"]) for row in rows}


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", "tiny", "--dtype", "float32", "--num-steps", "1", "--rounds", "1", "--json"]
    assert run("bench", ["inference", *arguments, str(tmp_path / "bench.json")]) == 0
    printed = capsys.readouterr().out
    for text in ("Whole call", "products alone", "one step"):
        assert text in printed
    assert json.loads((tmp_path / "bench.json").read_text())["settings"]["model"] == "tiny"
    assert run("bench", ["inference", "--rounds", "0"]) == 2
    assert "rounds must be at least 1" in capsys.readouterr().err
    assert run("bench", ["inference", *arguments, str(tmp_path / "sweep.json"), "--sweep"]) == 0
    assert "of the first row" in capsys.readouterr().out
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
