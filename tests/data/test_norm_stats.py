from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pizero.data import norm_stats
from pizero.data.norm_stats import FieldStats, NormStats, compute_norm_stats, field_stats, near_constant_dimensions
from pizero.data.transforms import RelativeActions
from pizero.types import UserError


def some_stats(mode: Any = "zscore", seed: int = 0) -> NormStats:
    rng = np.random.default_rng(seed)
    return compute_norm_stats(rng.normal(size=(50, 4)), rng.normal(size=(50, 3)), mode)


def test_field_stats_are_exact() -> None:
    values = np.array([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0], [5.0, 1.0]])
    stats = field_stats(values).to_json()
    assert stats["mean"] == [2.0, 1.0]
    assert stats["std"] == [np.std([0, 1, 2, 5]), 0.0]
    assert stats["q01"] == pytest.approx([0.03, 1.0])
    assert stats["q99"] == pytest.approx([4.91, 1.0])
    assert (stats["min"], stats["max"]) == ([0.0, 1.0], [5.0, 1.0])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_field_stats_refuse_what_is_not_a_number(bad: float) -> None:
    values = np.zeros((3, 2))
    values[1, 1] = bad
    with pytest.raises(UserError, match=r"dimensions \[1\] hold NaN"):
        field_stats(values)


def windows_by_hand(actions: Any, state: Any, lengths: list[int], horizon: int, column: int, other: int) -> Any:
    values, start = [], 0
    for length in lengths:
        for frame in range(start, start + length):
            for step in range(frame, min(frame + horizon, start + length)):
                values.append(np.float32(actions[step, column]) - np.float32(state[frame, other]))
        start += length
    return np.array(values, dtype=np.float64)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    horizon=st.integers(1, 6),
    rounding=st.sampled_from([0, 1, 6]),
)
def test_relative_statistics_equal_those_of_all_windows(
    seed: int, lengths: list[int], horizon: int, rounding: int
) -> None:
    """In chunks of a few values, with ties, negative numbers and zeros."""
    rng = np.random.default_rng(seed)
    frames = sum(lengths)
    state = rng.normal(size=(frames, 3)).round(rounding).astype(np.float32)
    actions = rng.normal(size=(frames, 2)).round(rounding).astype(np.float32)
    relative = RelativeActions((False, True), (0, 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(norm_stats, "_WINDOW_VALUES", 7)
        stats = compute_norm_stats(
            state, actions, "quantile", relative=relative, horizon=horizon, episode_lengths=lengths
        )
    by_hand = field_stats(windows_by_hand(actions, state, lengths, horizon, 1, 2)[:, None]).to_json()
    plain = field_stats(actions).to_json()
    for name, value in stats.actions.to_json().items():
        assert value[0] == plain[name][0], name
        assert value[1] == pytest.approx(by_hand[name][0], rel=1e-9, abs=1e-9), name


def test_relative_statistics_need_episode_lengths() -> None:
    with pytest.raises(UserError, match="sum to the 5 frames"):
        compute_norm_stats(
            np.zeros((5, 1)), np.zeros((5, 1)), "zscore", relative=RelativeActions((True,)), episode_lengths=[4]
        )


@pytest.mark.parametrize("mode", ["zscore", "quantile"])
def test_save_and_load_keep_every_bit(tmp_path: Path, mode: Any) -> None:
    stats = some_stats(mode)
    stats.save(tmp_path / "new" / "norm_stats.json")
    back = NormStats.load(tmp_path / "new" / "norm_stats.json")
    assert (back.mode, back.epsilon) == (mode, 1e-6)
    assert back.state.to_json() == stats.state.to_json()
    assert back.actions.to_json() == stats.actions.to_json()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["norm_stats.json"]


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "norm_stats.json"
    some_stats().save(path)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(KeyboardInterrupt):
        some_stats(seed=1).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_foreign_file_needs_the_mode(tmp_path: Path) -> None:
    path = tmp_path / "norm_stats.json"
    one = {"mean": [0.0], "std": [1.0], "q01": [-1.0], "q99": [1.0]}
    path.write_text(json.dumps({"norm_stats": {"state": one, "actions": one}}))
    with pytest.raises(UserError, match="does not say its mode"):
        NormStats.load(path)
    assert NormStats.load(path, "quantile").mode == "quantile"


def test_the_wrong_mode_is_refused(tmp_path: Path) -> None:
    some_stats("zscore").save(tmp_path / "norm_stats.json")
    with pytest.raises(UserError, match="made for mode 'zscore', but 'quantile'"):
        NormStats.load(tmp_path / "norm_stats.json", "quantile")


def test_quantile_mode_without_quantiles_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "norm_stats.json"
    one = {"mean": [0.0], "std": [1.0], "q01": None, "q99": None}
    path.write_text(json.dumps({"norm_stats": {"state": one, "actions": one}}))
    assert NormStats.load(path, "zscore").state.q01 is None
    with pytest.raises(UserError, match="needs q01 and q99"):
        NormStats.load(path, "quantile")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"norm_stats": {"state": {}}}'])
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=r"x\.json"):
        NormStats.load(tmp_path / "x.json")


def test_unequal_lengths_of_statistics_are_refused() -> None:
    with pytest.raises(UserError, match="std has shape"):
        FieldStats(np.zeros(3), np.ones(2))


def test_near_constant_dimensions_are_told_with_a_remedy() -> None:
    rng = np.random.default_rng(0)
    state = rng.normal(size=(1000, 4))
    state[:, 1] = 0.3
    state[:, 2] = 0.0
    state[:3, 2] = 1.0  # moves, but in fewer than 1 % of the frames
    state[:, 3] *= 2e-4
    lines = near_constant_dimensions(compute_norm_stats(state, state[:, :1], "quantile"))
    assert len(lines) == 2
    assert lines[0].startswith("state dimension 1: range")
    assert "leave the dimension out" in lines[0]
    assert "use mode 'zscore'" in lines[1]
    lines = near_constant_dimensions(compute_norm_stats(state * [1, 1, 100, 1], state[:, :1], "zscore"))
    assert [line.split(":")[0] for line in lines] == ["state dimension 1", "state dimension 3"]
    assert "check the units" in lines[1]
