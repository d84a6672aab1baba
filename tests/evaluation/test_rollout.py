"""Rollouts with a small fake environment: determinism, batching, horizons, errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from pizero.evaluation.rollout import EpisodeResult, EpisodeSpec, rollout, run_demonstrator, run_random
from pizero.types import RobotDict, UserError

HORIZON = 6


class WalkEnv:
    """A point walks on a line from a start that the seed gives; beyond 3 the task is done. Seed 13 breaks down."""

    fps, max_steps, task_names = 10.0, 20, ("right", "left")
    action_space = spaces.Box(-1.0, 1.0, (1,))

    def __init__(self) -> None:
        self.observed = self.rendered = 0
        self.actions: list[float] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[RobotDict, dict]:
        self.seed, self.task = seed, (options or {})["task"]
        if self.task not in self.task_names:
            raise UserError(f"unknown task {self.task}")
        if seed == 14:
            raise OSError("no display")
        self.x, self.steps, self.actions = float(np.random.default_rng(seed).uniform(-1, 1)), 0, []
        return self._robot(), {"success": False}

    def step(self, action: np.ndarray) -> tuple[RobotDict, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        if self.seed == 13 and self.steps == 4:
            raise RuntimeError("physics exploded")
        self.actions.append(float(action[0]))
        self.x += float(np.clip(action[0], -1, 1))
        success = self.x * (1 if self.task == "right" else -1) > 3
        return self._robot(), float(success), success, False, {"success": success}

    def observe(self) -> RobotDict:
        self.observed += 1
        return {**self._robot(), "images": {"top": np.zeros((2, 2, 3), np.uint8)}}

    def render(self) -> np.ndarray:
        self.rendered += 1
        return np.full((4, 4, 3), self.steps, np.uint8)

    def demonstrator(self) -> WalkEnv:
        return self

    def act(self) -> np.ndarray:
        return np.array([1.0 if self.task == "right" else -1.0], np.float32)

    def close(self) -> None: ...

    def _robot(self) -> RobotDict:
        return {"state": np.array([self.x], np.float32), "prompt": f"walk {self.task}"}


class NoisyPolicy:
    """Walks the way the prompt says, by its noise; remembers the batches."""

    noise_shape = (HORIZON, 1)

    def __init__(self) -> None:
        self.batches: list[list[RobotDict]] = []

    def infer(self, observation: RobotDict) -> dict[str, np.ndarray]:
        return self.infer_batch([observation])[0]

    def infer_batch(self, observations: Sequence[RobotDict]) -> list[dict[str, np.ndarray]]:
        self.batches.append(list(observations))
        signs = [1.0 if o["prompt"].endswith("right") else -1.0 for o in observations]
        return [
            {"actions": (0.1 * sign + 0.6 * o["noise"] - 0.05 * o["state"]).astype(np.float32)}
            for sign, o in zip(signs, observations, strict=True)
        ]


def specs(count: int, first: int = 0) -> list[EpisodeSpec]:
    return [EpisodeSpec(WalkEnv.task_names[seed % 2], seed) for seed in range(first, first + count)]


def play(num_envs: int, episodes: list[EpisodeSpec], horizon: int = 3, **options: Any) -> list[EpisodeResult]:
    return rollout(NoisyPolicy(), [WalkEnv() for _ in range(num_envs)], episodes, horizon, **options)


@settings(max_examples=20, deadline=None)
@given(num_envs=st.integers(1, 6), count=st.integers(0, 9), horizon=st.integers(1, HORIZON))
def test_an_episode_does_not_depend_on_its_neighbours(num_envs: int, count: int, horizon: int) -> None:
    together = play(num_envs, specs(count, first=10), horizon)
    alone = [play(1, [spec], horizon)[0] for spec in specs(count, first=10)]
    assert together == alone
    assert [result.seed for result in together] == list(range(10, 10 + count))


def test_there_are_successes_and_failures() -> None:
    results = play(4, specs(12))
    assert {result.success for result in results} == {True, False}
    assert all(result.steps == WalkEnv.max_steps for result in results if not result.success)
    assert all(result.instruction == f"walk {result.task}" for result in results)


def test_all_environments_ask_in_one_batch_and_images_are_rendered_for_it_alone() -> None:
    policy, envs = NoisyPolicy(), [WalkEnv() for _ in range(3)]
    results = rollout(policy, envs, specs(3), 4)
    assert len(policy.batches[0]) == 3
    chunks = sum(-(-result.steps // 4) for result in results)
    assert sum(map(len, policy.batches)) == chunks
    assert len(policy.batches) == max(-(-result.steps // 4) for result in results)
    assert sum(env.observed for env in envs) == chunks
    assert sum(env.rendered for env in envs) == 0


def test_the_execution_horizon_is_respected() -> None:
    env, policy = WalkEnv(), NoisyPolicy()
    result = rollout(policy, [env], [EpisodeSpec("right", 2)], 2)[0]
    assert len(policy.batches) == -(-result.steps // 2)
    for number, (asked,) in enumerate(policy.batches):
        expected_noise = np.random.default_rng([2, number]).standard_normal((HORIZON, 1), np.float32)
        np.testing.assert_array_equal(asked["noise"], expected_noise)
        answer = (0.1 + 0.6 * asked["noise"] - 0.05 * asked["state"]).astype(np.float32)
        played = env.actions[2 * number : 2 * number + 2]
        np.testing.assert_array_equal(played, answer[: len(played), 0])
    with pytest.raises(UserError, match="longer than the policy's action chunk"):
        play(1, specs(1), HORIZON + 1)


class PictureEnv(WalkEnv):
    """Images and state tell the control step; episodes never succeed."""

    max_steps = 12

    def step(self, action: np.ndarray) -> tuple[RobotDict, float, bool, bool, dict[str, Any]]:
        observation, *_ = super().step(np.zeros(1, np.float32))
        return observation, 0.0, False, False, {"success": False}

    def observe(self) -> RobotDict:
        image = np.full((2, 2, 3), 10 * self.steps, np.uint8)
        return {**super().observe(), "images": {"top": image}, "state": np.array([self.steps, self.seed], np.float32)}


class HistoryPolicy(NoisyPolicy):
    """Remembers which control steps it saw."""

    noise_shape = (12, 1)

    def __init__(self, num_history: int) -> None:
        super().__init__()
        self.num_history = num_history

    def infer_batch(self, observations: Sequence[RobotDict]) -> list[dict[str, np.ndarray]]:
        self.batches.append(list(observations))
        return [{"actions": np.zeros(self.noise_shape, np.float32)} for _ in observations]


def clamped(newest: int, history: int) -> list[int]:
    return [max(0, newest - back) for back in range(history)][::-1]


@pytest.mark.parametrize(("history", "horizon"), [(3, 2), (5, 1), (3, 3), (2, 5), (3, 12), (1, 4)])
def test_the_policy_gets_its_history(history: int, horizon: int) -> None:
    env, policy = PictureEnv(), HistoryPolicy(history)
    rollout(policy, [env], specs(2), horizon)
    asked = [batch[0] for batch in policy.batches]
    newest = [*range(0, env.max_steps, horizon)] * 2
    assert len(asked) == len(newest)
    for number, (observation, last) in enumerate(zip(asked, newest, strict=True)):
        steps = [last] if history == 1 else clamped(last, history)
        state, image = observation["state"], observation["images"]["top"]
        assert image.shape == ((2, 2, 3) if history == 1 else (history, 2, 2, 3))
        assert np.atleast_2d(state).tolist() == [[step, number >= len(newest) // 2] for step in steps]
        assert image.reshape(len(steps), -1)[:, 0].tolist() == [10 * step for step in steps]
        assert observation["prompt"] == f"walk {WalkEnv.task_names[number >= len(newest) // 2]}"
        assert observation["noise"].shape == policy.noise_shape


def test_images_are_drawn_for_the_history_alone() -> None:
    for history, horizon, expected in ((3, 6, 1 + 3 + 2), (1, 6, 2), (3, 2, 12), (5, 5, 12)):
        env = PictureEnv()
        rollout(HistoryPolicy(history), [env], specs(1), horizon)
        assert env.observed == expected, (history, horizon)


def test_histories_of_several_environments_stay_apart() -> None:
    def play_many(num_envs: int) -> dict[tuple[int, int], list[list[float]]]:
        policy = HistoryPolicy(3)
        rollout(policy, [PictureEnv() for _ in range(num_envs)], specs(5), 2)
        seen = [observation["state"] for batch in policy.batches for observation in batch]
        return {(int(state[-1, 1]), int(state[-1, 0])): state.tolist() for state in seen}

    alone = play_many(1)
    assert len(alone) == 5 * 6
    assert play_many(3) == alone


def test_every_frame_of_a_history_is_altered() -> None:
    def alter(observation: RobotDict, spec: EpisodeSpec) -> RobotDict:
        assert observation["images"]["top"].shape == (2, 2, 3)  # one control step
        return {**observation, "images": {"top": np.full((2, 2, 3), 128, np.uint8)}, "prompt": "stay"}

    policy = HistoryPolicy(3)
    rollout(policy, [PictureEnv()], specs(1), 2, alter=alter)
    for (observation,) in policy.batches:
        assert (observation["images"]["top"] == 128).all()
        assert observation["prompt"] == "stay"


def test_an_error_of_the_environment_ends_its_episode_alone() -> None:
    results = play(2, specs(6, first=11))
    errors = {result.seed: result.error for result in results}
    assert errors[13] == "RuntimeError: physics exploded"
    assert errors[14] == "OSError: no display"
    assert not any(results[index].success for index in (2, 3))
    assert results[2].steps == 3
    assert [seed for seed, error in errors.items() if error is None] == [11, 12, 15, 16]


def test_mistakes_and_errors_of_the_policy_are_raised() -> None:
    with pytest.raises(UserError, match="unknown task up"):
        play(1, [EpisodeSpec("up", 0)])

    class Broken(NoisyPolicy):
        def infer_batch(self, observations: Sequence[RobotDict]) -> list[dict[str, np.ndarray]]:
            raise RuntimeError("NaN")

    with pytest.raises(RuntimeError, match="NaN"):
        rollout(Broken(), [WalkEnv()], specs(1), 1)


def test_alter_changes_what_the_policy_sees_and_nothing_else() -> None:
    def swap(observation: RobotDict, spec: EpisodeSpec) -> RobotDict:
        assert spec.task in observation["prompt"]
        return {**observation, "prompt": "walk left" if spec.task == "right" else "walk right"}

    plain, swapped = play(3, specs(20)), play(3, specs(20), alter=swap)
    assert sum(r.success for r in swapped) < sum(r.success for r in plain)
    assert [r.instruction for r in swapped] == [r.instruction for r in plain]


def test_frames_of_the_first_episodes_and_the_callback() -> None:
    seen: list[EpisodeResult] = []
    results = play(3, specs(5), record=[0, 1], on_episode=seen.append)
    assert sorted(r.seed for r in seen) == [0, 1, 2, 3, 4]
    for index, result in enumerate(results):
        assert [int(frame[0, 0, 0]) for frame in result.frames] == (list(range(result.steps + 1)) if index < 2 else [])


def test_demonstrator_and_random_actions() -> None:
    seen: list[EpisodeResult] = []
    results = run_demonstrator(WalkEnv(), specs(6, first=11), on_episode=seen.append, record=[0])
    assert seen == results
    assert [r.success for r in results] == [True, True, False, False, True, True]
    assert [r.error is None for r in results] == [True, True, False, False, True, True]
    assert len(results[0].frames) == results[0].steps + 1
    chance = run_random(WalkEnv(), specs(10))
    assert chance == run_random(WalkEnv(), specs(10))
    assert sum(r.success for r in chance) < 10


class ScoringEnv(WalkEnv):
    """Its score falls again at the end."""

    def step(self, action: np.ndarray) -> tuple[RobotDict, float, bool, bool, dict[str, Any]]:
        observation, reward, success, truncated, info = super().step(action)
        return observation, reward, success, truncated, info | {"score": 0.7 if self.steps == 2 else 0.3}


def test_score_of_an_episode_is_its_highest() -> None:
    assert [result.score for result in run_demonstrator(ScoringEnv(), specs(2))] == [0.7, 0.7]
    assert run_demonstrator(WalkEnv(), specs(1))[0].score is None
