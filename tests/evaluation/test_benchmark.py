"""Intervals against published values, summaries, and `evaluate` in the built-in simulator."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pizero.evaluation import benchmark
from pizero.evaluation.benchmark import RolloutConfig, evaluate, first_of_each, summarize, wilson_interval
from pizero.evaluation.rollout import EpisodeResult, EpisodeSpec
from pizero.types import RobotDict, UserError


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    # Newcombe (1998), table I, method 3, for 81/263, 15/148, 0/20, 1/29; the last two by symmetry and by the definition
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 0.8389, 1.0),
        (0, 0, 0.0, 1.0),
    ],
)
def test_wilson_interval(successes: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)


@given(n=st.integers(1, 500), data=st.data(), z=st.floats(0.1, 4))
def test_wilson_bounds_solve_the_score_equation(n: int, data: st.DataObject, z: float) -> None:
    successes = data.draw(st.integers(0, n))
    rate = successes / n
    for bound in wilson_interval(successes, n, z):
        assert 0 <= bound <= 1
        if 0 < bound < 1:
            assert abs(rate - bound) == pytest.approx(z * math.sqrt(bound * (1 - bound) / n), rel=1e-6, abs=1e-9)


def test_impossible_counts() -> None:
    with pytest.raises(ValueError, match="3 successes in 2"):
        wilson_interval(3, 2)


def result(task: str, success: bool, steps: int, error: str | None = None) -> EpisodeResult:
    return EpisodeResult(task, 0, f"do {task}", success, steps, error)


def test_summary_counts_errors_apart() -> None:
    summary = summarize(
        [result("a", True, 10), result("a", False, 30), result("b", True, 20), result("b", False, 3, "OSError: gone")]
    )
    assert summary["success_rate"] == pytest.approx(2 / 3)
    assert summary["interval"] == list(wilson_interval(2, 3))
    assert (summary["episodes"], summary["errors"], summary["successes"]) == (3, 1, 2)
    assert (summary["mean_steps"], summary["mean_steps_success"]) == (20, 15)
    assert summary["error_texts"] == ["OSError: gone (b, seed 0)"]
    assert list(summary["per_task"]) == ["a", "b"]
    assert summary["per_task"]["b"]["success_rate"] == 1.0
    assert summary["per_task"]["b"]["errors"] == 1
    json.dumps(summary)


def test_summary_without_a_completed_episode_has_no_rate() -> None:
    summary = summarize([result("a", False, 3, "OSError: gone")])
    assert summary["success_rate"] is None
    assert summary["mean_steps"] is None
    assert summary["errors"] == 1


def test_summary_per_tier() -> None:
    tiers = {"a": "easy", "b": "hard", "c": "very hard", "d": "easy"}
    played = [result("a", True, 1), result("d", True, 1), result("b", False, 1), result("b", True, 1)]
    summary = summarize(played, tiers)
    assert list(summary["per_tier"]) == ["easy", "hard"]
    assert summary["per_tier"]["easy"]["interval"] == list(wilson_interval(2, 2))
    assert summary["per_tier"]["hard"]["success_rate"] == 0.5
    assert summary["mean_of_tiers"] == 0.75
    assert summary["success_rate"] == 0.75
    assert summarize([result("a", False, 3, "OSError: gone")], tiers)["mean_of_tiers"] is None
    assert "per_tier" not in summarize(played)
    some = summarize(played, {"a": "easy"})  # the other tasks have no tier
    assert {tier: entry["episodes"] for tier, entry in some["per_tier"].items()} == {"easy": 1}
    assert (some["mean_of_tiers"], some["episodes"]) == (1.0, 4)


def test_films_are_of_each_task_in_turn() -> None:
    """Where tasks are played one after the other too."""
    specs = [EpisodeSpec(task, seed) for task in ("a", "b", "c") for seed in (5, 6)]
    assert [specs[place].task for place in first_of_each(specs)] == ["a", "b", "c", "a", "b", "c"]
    assert [specs[place].seed for place in first_of_each(specs)[:4]] == [5, 5, 5, 6]


@pytest.mark.parametrize(
    ("changes", "text"),
    [({"episodes": 0}, "episodes must be at least 1"), ({"seed": -1}, "seed must be at least 0"),
     ({"num_videos": -1}, "num_videos must be at least 0")],
)  # fmt: skip
def test_numbers_that_cannot_be(changes: dict[str, int], text: str) -> None:
    with pytest.raises(UserError, match=text):
        RolloutConfig("tabletop", **changes)


def test_summary_of_scores() -> None:
    """Over completed episodes; an episode that an error ended has none that counts."""
    played = [replace(result("a", True, 1), score=1.0), replace(result("b", False, 1), score=0.5)]
    played.append(replace(result("b", False, 1, "OSError: gone"), score=0.2))
    summary = summarize(played)
    assert (summary["score"], summary["per_task"]["b"]["score"]) == (0.75, 0.5)
    assert "score" not in summarize([result("a", True, 1)])


class StillPolicy:
    def __init__(self) -> None:
        self.batches: list[list[RobotDict]] = []

    def infer(self, observation: RobotDict) -> dict[str, np.ndarray]:
        return self.infer_batch([observation])[0]

    def infer_batch(self, observations: Sequence[RobotDict]) -> list[dict[str, np.ndarray]]:
        self.batches.append(list(observations))
        return [{"actions": np.zeros((25, 5), np.float32)} for _ in observations]


def test_evaluate_in_the_tabletop(tmp_path: Path) -> None:
    policy, seen = StillPolicy(), list[EpisodeResult]()
    config = RolloutConfig(
        "tabletop", tasks=("push_left", "lift"), episodes=2, seed=7, execution_horizon=13, num_envs=3, image_size=24,
        num_videos=2,
    )  # fmt: skip
    summary = evaluate(policy, config, videos=tmp_path, on_episode=seen.append)
    assert (summary["success_rate"], summary["episodes"], summary["errors"]) == (0.0, 4, 0)
    assert {(r.task, r.seed) for r in seen} == {(task, seed) for task in ("push_left", "lift") for seed in (7, 8)}
    assert [len(batch) for batch in policy.batches] == [3, 3, 1, 1]
    assert policy.batches[0][0]["images"]["top"].shape == (24, 24, 3)
    assert "noise" not in policy.batches[0][0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lift_7.mp4", "push_left_7.mp4"]


def test_evaluate_says_what_is_wrong_and_closes_what_it_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    for options, text in (
        ({"episodes": 0}, "episodes must be at least 1"),
        ({"num_envs": 0}, "num_envs must be at least 1"),
        ({"tasks": ("juggle",)}, "juggle"),
        ({"execution_horizon": None}, "choose an execution_horizon"),
    ):
        with pytest.raises(UserError, match=text):
            evaluate(StillPolicy(), RolloutConfig("tabletop", **{"execution_horizon": 8, **options}))
    with pytest.raises(UserError, match="unknown simulator"):
        evaluate(StillPolicy(), RolloutConfig("moon", execution_horizon=8))

    closed: list[int] = []

    class BrokenEnv:
        fps, max_steps, task_names = 10.0, 5, ("only",)

        def reset(self, **_: Any) -> Any:
            raise OSError("no display")

        def close(self) -> None:
            closed.append(1)

    monkeypatch.setattr(benchmark, "make_env", lambda *_, **__: BrokenEnv())
    summary = evaluate(StillPolicy(), RolloutConfig("tabletop", 3, seed=0, execution_horizon=8, num_envs=2))
    assert summary["errors"] == 3
    assert summary["per_task"]["only"]["error_texts"] == ["OSError: no display (only, seed 0, and 2 more)"]
    assert len(closed) == 2
