"""The ladder: what each rung is, and the machinery that measures it."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from pathlib import Path

import pytest

from pizero.baseline.config import BaselineConfig
from pizero.configs.ladder import CHANGES, LadderConfig, rung_preset
from pizero.model.config import Pi0Config
from pizero.types import UserError
from pizero.workflows.compare import CompareConfig, compare, print_comparison

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
    assert all(isinstance(model, Pi0Config) and model.action_horizon == 32 for model in models[7:])
    assert (models[7].adaptive, models[8].adaptive) == (False, True)
    budgets = {
        (preset.train.steps, preset.train.batch_size, preset.train.augmentation, preset.execution_horizon)
        for preset in (rung_preset(rung, LadderConfig(), 0) for rung in range(len(CHANGES)))
    }
    assert len(budgets) == 1
    with pytest.raises(UserError, match="rung 9 does not exist"):
        rung_preset(9, LadderConfig(), 0)


def test_compare_measures_keeps_and_adds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = CompareConfig(NANO, rungs=(0,), demonstrations=6, episodes=1, tasks=("reach",), workers=1)
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
    with pytest.raises(UserError, match="other settings"):
        compare(dataclasses.replace(config, episodes=2), tmp_path)
