"""The ladder: what each rung is, and the machinery that measures it."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from pathlib import Path

import pytest
from here import Here

from pizero.baseline.config import BaselineConfig
from pizero.configs.ladder import CHANGES, STUDIES, LadderConfig, rung_preset, variant_preset
from pizero.model.config import Pi0Config
from pizero.model.pi0_fast import Pi0FastConfig
from pizero.report.compare import short_change
from pizero.train.metrics import read_metrics
from pizero.types import UserError
from pizero.workflows import compare as compare_runner
from pizero.workflows import compare_runs
from pizero.workflows.compare import CompareConfig, compare, print_comparison
from pizero.workflows.compare_runs import SPEED_STEPS
from pizero.workflows.training_data import DataOptions

NANO = LadderConfig("tabletop", size="nano", steps=3, batch_size=4, execution_horizon=8)


def test_each_rung_changes_one_thing() -> None:
    models = [rung_preset(rung, LadderConfig(), 0).model for rung in range(len(CHANGES))]
    changed = []
    for one, other in itertools.pairwise(models[:7]):
        a, b = one.to_json(), other.to_json()
        changed.append({name for name in a if a[name] != b[name]})
    assert changed == [
        {"state_input"}, {"action_horizon"}, {"step_embedding"}, {"objective"}, {"image_fusion"}, {"instruction"},
    ]  # fmt: skip
    assert all(isinstance(model, BaselineConfig) for model in models[:7])
    assert all(isinstance(model, Pi0Config) and model.action_horizon == 32 for model in models[7:9])
    assert isinstance(models[9], Pi0FastConfig)
    assert (models[7].adaptive, models[8].adaptive) == (False, True)
    budgets = {
        (preset.train.steps, preset.train.batch_size, preset.train.augmentation, preset.execution_horizon)
        for preset in (rung_preset(rung, LadderConfig(), 0) for rung in range(len(CHANGES)))
    }
    assert len(budgets) == 1
    with pytest.raises(UserError, match="rung 10 does not exist"):
        rung_preset(10, LadderConfig(), 0)


def test_a_comparison_that_cannot_be_leaves_nothing(tmp_path: Path) -> None:
    wrong = CompareConfig(NANO, rungs=(0,), tasks=("reech",))
    with pytest.raises(UserError, match="unknown task 'reech'"):
        compare(wrong, tmp_path / "compare")
    assert not (tmp_path / "compare").exists()


def test_compare_measures_keeps_and_adds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CompareConfig(NANO, rungs=(0,), demonstrations=6, episodes=1, tasks=("reach",), workers=2)
    first = compare(config, tmp_path)
    kept = (tmp_path / "rung0_seed0" / "result.json").stat().st_mtime_ns
    results = compare(dataclasses.replace(config, rungs=(0, 7)), tmp_path)
    assert (tmp_path / "rung0_seed0" / "result.json").stat().st_mtime_ns == kept
    assert results["rows"][0] == first["rows"][0]
    assert [row["rung"] for row in results["rows"]] == [0, 7]
    for row in results["rows"]:
        assert {"change", "success", "interval", "parameters", "latency", "seconds"} <= set(row)
        assert 0 <= row["interval"][0] <= row["success"] <= row["interval"][1] <= 1
        assert min(row["parameters"], row["latency"], row["seconds"], row["peak_mib"]) > 0
        assert len(row["open_loop_error"]) == 5
    assert json.loads((tmp_path / "compare.json").read_text())["rows"] == results["rows"]
    assert not re.search(r"https?://", (tmp_path / "report.html").read_text())
    print_comparison(results, tmp_path)
    assert "dual experts" in capsys.readouterr().err
    with pytest.raises(UserError, match="other settings: episodes was 1, now 2; give the old ones"):
        compare(dataclasses.replace(config, episodes=2), tmp_path)
    with pytest.raises(UserError, match="has 6 demonstrations, the study demonstrations takes 100"):
        compare(dataclasses.replace(config, study="demonstrations"), tmp_path)
    monkeypatch.setattr(compare_runner, "STEP_COUNTS", (1, 5))
    monkeypatch.setattr(compare_runner, "Workers", Here)
    stepped = compare(dataclasses.replace(config, study="steps", rungs=(7,)), tmp_path)
    assert [row["num_steps"] for row in stepped["steps"]] == [1, 5]
    assert stepped["rows"] == results["rows"]
    with pytest.raises(UserError, match="rung4_seed0 is not trained yet"):
        compare(dataclasses.replace(config, study="steps", rungs=(4,)), tmp_path)


def test_a_budget_by_time_gives_each_variant_its_own_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its own speed as it was measured here; two variants may happen to be equally fast."""
    monkeypatch.setattr(compare_runner, "Workers", Here)
    ladder = dataclasses.replace(NANO, seconds=0.2)
    config = CompareConfig(ladder, rungs=(0,), demonstrations=6, episodes=1, tasks=("reach",), workers=1)
    for row in compare(config, tmp_path)["rows"]:
        run = tmp_path / f"rung{row['rung']}_seed0"
        steps = json.loads((run / "steps.json").read_text())["steps"]
        assert row["samples"] == steps * NANO.batch_size
        # of the short training, whose first line warms up
        second = [line for line in read_metrics(run / "speed" / "metrics.jsonl") if "cpu_seconds" in line][1]
        per_step = second["cpu_seconds"] / (SPEED_STEPS / 2)
        assert steps == max(round(ladder.seconds / per_step), SPEED_STEPS)


def test_a_faster_variant_gets_more_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preset = rung_preset(0, NANO, 0)
    monkeypatch.setattr(compare_runs, "train_policy", lambda *_, **__: None)
    for name, rate, steps in (("slow", 40.0, 200), ("fast", 100.0, 500), ("too_slow", 1.0, SPEED_STEPS)):
        monkeypatch.setattr(compare_runs, "_samples_per_second", lambda folder, preset, rate=rate: rate)
        (tmp_path / name).mkdir()
        fitted = compare_runs._fit_to_time(preset, 20.0, tmp_path, DataOptions([0]), tmp_path / name)
        assert fitted.train.steps == steps
    monkeypatch.setattr(compare_runs, "_samples_per_second", lambda folder, preset: 1e6)
    again = compare_runs._fit_to_time(preset, 20.0, tmp_path, DataOptions([0]), tmp_path / "fast")
    assert again.train.steps == 500  # measured once, so that a resumed run agrees


def test_studies() -> None:
    """Every variant builds, has a name of its own, and changes what it says."""
    names = [variant.name for variants in STUDIES.values() for variant in variants]
    assert len(set(names)) == len(names)
    for study in ("ladder", "single"):
        assert len({short_change(variant.change) for variant in STUDIES[study]}) == len(STUDIES[study])
    for variant, env in itertools.product(STUDIES["single"], ("metaworld", "metaworld-mt10")):
        config = LadderConfig(env)
        rung, preset = rung_preset(variant.rung, config, 0), variant_preset(variant, config, 0)
        in_model = set(variant.fields) | ({"vision"} if variant.vision else set())
        for plain, changed, names in (
            (rung.model.to_json(), preset.model.to_json(), in_model),
            (rung.train.to_json(), preset.train.to_json(), set(variant.train)),
        ):
            assert {key for key in plain if plain[key] != changed[key]} == names
        assert variant.fields or variant.train
    rates = {variant_preset(variant, LadderConfig(), 0).train.learning_rate for variant in STUDIES["rates"]}
    assert len(rates) == 6
    with pytest.raises(UserError, match="unknown study"):
        CompareConfig(LadderConfig(), study="ladders")
