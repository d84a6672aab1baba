from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pizero.data import window_stats
from pizero.data.norm_stats import FieldStats, NormStats, compute_norm_stats, field_stats, near_constant_dimensions
from pizero.data.relative_actions import RelativeActions
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


def chunks_by_hand(action: Any, state: Any, lengths: list[int], horizon: int) -> Any:
    """All differences [frames * horizon]; past the episode's end the last action repeats."""
    values, start = [], 0
    for length in lengths:
        for frame in range(start, start + length):
            for step in range(frame, frame + horizon):
                values.append(np.float32(action[min(step, start + length - 1)]) - np.float32(state[frame]))
        start += length
    return np.array(values, dtype=np.float64)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    horizon=st.integers(1, 12),
    rounding=st.sampled_from([0, 1, 6]),
    scale=st.sampled_from([0.0, 1e-6, 1.0, 1e4]),
    offset=st.sampled_from([0.0, 1.0, -3e6]),
    block=st.sampled_from([3, 16, 4096]),
)
def test_relative_statistics_equal_those_of_all_chunks(
    seed: int, lengths: list[int], horizon: int, rounding: int, scale: float, offset: float, block: int
) -> None:
    """In small blocks too; with ties, constant columns, great offsets, episodes that are shorter than a chunk."""
    rng = np.random.default_rng(seed)
    frames = sum(lengths)
    state = rng.normal(size=(frames, 3)).round(rounding).astype(np.float32)
    actions = (scale * rng.normal(size=(frames, 2)).round(rounding) + offset).astype(np.float32)
    relative = RelativeActions((False, True), (0, 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(window_stats, "_BLOCK", block)
        stats = compute_norm_stats(
            state, actions, "quantile", relative=relative, horizon=horizon, episode_lengths=lengths
        )
    by_hand = chunks_by_hand(actions[:, 1], state[:, 2], lengths, horizon)
    plain, found = field_stats(actions).to_json(), stats.actions.to_json()
    assert {name: value[0] for name, value in found.items()} == {name: value[0] for name, value in plain.items()}
    assert (found["min"][1], found["max"][1]) == (by_hand.min(), by_hand.max())
    for name, q in (("q01", 0.01), ("q99", 0.99)):
        assert found[name][1] == pytest.approx(np.quantile(by_hand, q), rel=1e-13, abs=1e-300), name
    assert found["mean"][1] == pytest.approx(by_hand.mean(), rel=1e-12, abs=1e-12)
    assert found["std"][1] == pytest.approx(by_hand.std(), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("order", ["falling", "rising", "few far values"])
def test_relative_statistics_of_values_in_an_unlucky_order(order: str) -> None:
    """Where what a quantile needs comes first, last, or is found nowhere but in one place."""
    action = np.arange(20_000, dtype=np.float32)
    if order == "falling":
        action = action[::-1].copy()
    if order == "few far values":
        action[:] = 0.5
        action[7_000:7_190] = np.arange(190)
    stats = compute_norm_stats(
        np.zeros((20_000, 1)), action[:, None], "zscore", relative=RelativeActions((True,)), horizon=5,
        episode_lengths=[20_000],
    )  # fmt: skip
    by_hand = chunks_by_hand(action, np.zeros(20_000), [20_000], 5)
    found = stats.actions.to_json()
    assert found["q01"] == pytest.approx([np.quantile(by_hand, 0.01)], rel=1e-13)
    assert found["q99"] == pytest.approx([np.quantile(by_hand, 0.99)], rel=1e-13)
    assert found["std"] == pytest.approx([by_hand.std()], rel=1e-12)


def test_relative_statistics_of_values_that_float32_cannot_hold_are_refused() -> None:
    actions = np.full((5, 1), 3e38)
    relative = RelativeActions((True,))
    with pytest.raises(UserError, match="are infinite; repair the data"):
        compute_norm_stats(-actions, actions, "zscore", relative=relative, horizon=2, episode_lengths=[5])
    with pytest.raises(UserError, match="hold NaN or infinity"):
        compute_norm_stats(actions * np.nan, actions, "zscore", relative=relative, horizon=2, episode_lengths=[5])


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
    assert lines[0].startswith("state[1]: range from the 1 % to the 99 % quantile 0, nearly constant: ")
    assert "leave them out with state_dims" in lines[0]
    assert "use mode 'zscore'" in lines[1]
    names = ["pan", "lift", "elbow", "wrist"]
    lines = near_constant_dimensions(compute_norm_stats(state * [1, 1, 100, 1], state[:, :1], "zscore"), names)
    assert [line.split(":")[0] for line in lines] == ["state lift", "state wrist"]
    assert "parked joints" in lines[1]
    lines = near_constant_dimensions(compute_norm_stats(np.zeros((9, 50)), state[:9, :1], "zscore"))
    assert [line.split(":")[0] for line in lines] == ["state[0, 1, 2, 3, 4, 5 and 44 more]"]


FOUR = {"mean": [0.0] * 4, "std": [1.0] * 4, "q01": [-1.0] * 4, "q99": [1.0] * 4}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": None}, r"got keys \['q01', 'q99', 'std'\], expected mean and std"),
        ({"q01": None}, "needs q01 and q99, which are missing"),
        ({"q01": [0.0]}, r"q01 has shape \(1,\), expected one number for each dimension"),
        ({"mean": [[0.0] * 4]}, r"mean has shape \(1, 4\), expected one number for each dimension"),
        ({"q01": [2.0] * 4}, "state has a negative spread"),
        ({"median": [0.0] * 4}, "got keys .*median"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = tmp_path / "norm_stats.json"
    file.write_text(json.dumps({"norm_stats": {"state": {**FOUR, **change}, "actions": FOUR}}))
    with pytest.raises(UserError, match=rf"norm_stats.json cannot be used \(norm stats: .*{message}"):
        NormStats.load(file, "quantile")


def test_statistics_that_nothing_is_normalised_with_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "norm_stats.json"
    file.write_text(json.dumps({"norm_stats": {"state": {**FOUR, "count": [9], "q50": [0.0] * 4}, "actions": FOUR}}))
    assert NormStats.load(file, "quantile").state.to_json() == FOUR
