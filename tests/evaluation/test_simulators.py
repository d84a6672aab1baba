"""Simulators in processes of their own: the same episodes, and every way in which one of them can end."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pizero.evaluation.benchmark import RolloutConfig, evaluate
from pizero.evaluation.rollout import EpisodeResult
from pizero.types import RobotDict, UserError

FRAGILE = """
import os
from pizero.envs.tabletop.env import TabletopEnv
class Fragile(TabletopEnv):
    max_steps = 20
    def step(self, action):
        if self.seed == 3:
            os._exit(1)
        if self.seed == 5:
            raise RuntimeError("physics exploded")
        return super().step(action)
    def reset(self, *, seed=None, options=None):
        self.seed = seed
        return super().reset(seed=seed, options=options)
"""


class NoisyPolicy:
    """Acts by its noise and by what it sees of the last two steps; remembers the batches."""

    noise_shape, num_history = (6, 5), 2

    def __init__(self) -> None:
        self.batches: list[list[RobotDict]] = []

    def infer(self, observation: RobotDict) -> dict[str, np.ndarray]:
        return self.infer_batch([observation])[0]

    def infer_batch(self, observations: Sequence[RobotDict]) -> list[dict[str, np.ndarray]]:
        self.batches.append(list(observations))
        return [
            {"actions": (0.3 * seen["noise"] + seen["images"]["ego"].mean() / 999).astype(np.float32)}
            for seen in observations
        ]


@pytest.fixture(autouse=True)
def _fragile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:  # pyright: ignore[reportUnusedFunction]
    (tmp_path / "fragile.py").write_text(FRAGILE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("fragile", None)
    assert multiprocessing.active_children() == []


def played(
    env: str = "tabletop", seed: int = 0, videos: Path | None = None, **options: Any
) -> tuple[dict, list[EpisodeResult], list[Any]]:
    policy, seen = NoisyPolicy(), list[EpisodeResult]()
    config = RolloutConfig(
        env, tasks=("lift", "push_left"), seed=seed, execution_horizon=4, image_size=16, **options
    )  # fmt: skip
    summary = evaluate(policy, config, videos=videos, on_episode=seen.append)
    return summary, seen, policy.batches


def test_the_same_episodes_in_processes_of_their_own(tmp_path: Path) -> None:
    here, results, batches = played(episodes=2, num_envs=3, videos=tmp_path / "here", num_videos=1)
    there, others, others_batches = played(episodes=2, processes=3, videos=tmp_path / "there", num_videos=1)
    assert here == there
    for one, other in zip(results, others, strict=True):
        assert str(one) == str(other)
        np.testing.assert_array_equal(one.frames, other.frames)
    assert [len(batch) for batch in batches] == [len(batch) for batch in others_batches]
    for one, other in zip(chain(*batches), chain(*others_batches), strict=True):
        np.testing.assert_array_equal(one["images"]["top"], other["images"]["top"])
        np.testing.assert_array_equal(one["state"], other["state"])
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["lift_0.mp4"]


def test_an_exception_ends_its_episode_alone() -> None:
    summary, *_ = played("fragile:Fragile", seed=4, episodes=2, processes=2)
    assert (summary["episodes"], summary["errors"]) == (2, 2)
    assert summary["error_texts"] == ["RuntimeError: physics exploded (lift, seed 5, and 1 more)"]


def test_a_process_that_ends_names_its_episode() -> None:
    with pytest.raises(UserError, match=r"ended in the middle of (lift|push_left), seed 3: .*fewer --envs"):
        played("fragile:Fragile", seed=2, episodes=2, processes=2)


def test_mistakes_are_raised() -> None:
    with pytest.raises(UserError, match="processes must be at least 0"):
        played(processes=-1)

    class Broken(NoisyPolicy):
        def infer_batch(self, observations: Sequence[RobotDict]) -> list[dict[str, np.ndarray]]:
            raise RuntimeError("NaN")

    with pytest.raises(RuntimeError, match="NaN"):
        evaluate(Broken(), RolloutConfig("tabletop", episodes=1, execution_horizon=8, processes=1))
