"""The chunk executor plays each chunk up to the execution horizon, in order."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pizero.policy import chunk_executor
from pizero.policy.chunk_executor import ActionLimits, ChunkExecutor, PolicyLateError, RobotLoop
from pizero.types import RobotDict, UserError


def chunk(start: int, length: int) -> np.ndarray:
    return np.arange(start, start + length, dtype=np.float32)[:, None].repeat(2, axis=1)


@given(horizon=st.integers(1, 8), data=st.data(), steps=st.integers(1, 30))
def test_plays_the_first_actions_of_each_chunk(horizon: int, data: st.DataObject, steps: int) -> None:
    execution_horizon = data.draw(st.integers(1, horizon))
    executor, played, chunks = ChunkExecutor(execution_horizon), [], 0
    for step in range(steps):
        if executor.needs_chunk:
            executor.load(chunk(100 * chunks, horizon))
            chunks += 1
        assert executor.remaining == execution_horizon - step % execution_horizon
        played.append(int(executor.next_action()[0]))
    assert played == [100 * (step // execution_horizon) + step % execution_horizon for step in range(steps)]


def test_reset_and_an_early_load_drop_the_rest() -> None:
    executor = ChunkExecutor(3)
    executor.load(chunk(0, 4))
    executor.next_action()
    executor.load(chunk(10, 4))
    assert executor.next_action()[0] == 10
    executor.reset()
    assert executor.needs_chunk
    with pytest.raises(RuntimeError, match="call load"):
        executor.next_action()


def test_what_cannot_be_played_is_refused() -> None:
    with pytest.raises(UserError, match=r"execution_horizon 5 is longer .* of 4; choose at most 4"):
        ChunkExecutor(5).load(chunk(0, 4))
    with pytest.raises(UserError, match="at least 1, got 0"):
        ChunkExecutor(0)
    with pytest.raises(UserError, match="shape"):
        ChunkExecutor(1).load(np.zeros(4, np.float32))


def play(executor: ChunkExecutor, delay: int, steps: int, horizon: int = 12) -> tuple[list[float], list[RobotDict]]:
    """A policy whose chunk asked for at control step k is k * 100, k * 100 + 1, ... and arrives `delay` steps later."""
    played, questions, due = [], [], None
    for step in range(steps):
        for _ in range(2):  # an answer may come before a question, or with it
            if due == step:
                executor.load(chunk(100 * questions[-1]["step"], horizon))
                due = None
            if executor.needs_chunk:
                questions.append(executor.question({"step": step}))
                due = step if not played else step + delay
        played.append(float(executor.next_action()[0]))
    return played, questions


@pytest.mark.parametrize("delay", range(5))
def test_asynchronous_chunks_start_where_they_arrive(delay: int) -> None:
    played, questions = play(ChunkExecutor(4, asynchronous=True), delay, 20)
    assert [question["step"] for question in questions] == [0, 4, 8, 12, 16]
    assert played == [100.0 * (4 * ((step - delay) // 4)) + (step - 4 * ((step - delay) // 4)) if step >= 4 + delay
                      else float(step) for step in range(20)]  # fmt: skip


def test_a_delay_longer_than_the_execution_horizon_sets_the_pace() -> None:
    executor = ChunkExecutor(2, asynchronous=True)
    played, questions = play(executor, 5, 20)
    assert [question["step"] for question in questions] == [0, 2, 7, 12, 17]
    assert played[:13] == [0, 1, 2, 3, 4, 5, 6, 205, 206, 207, 208, 209, 705]
    assert list(executor.delays) == [5, 5, 5]
    assert executor.expected_delay == 5


def test_a_synchronous_robot_is_held_while_it_waits() -> None:
    played, _ = play(ChunkExecutor(3), 2, 12)
    assert played == [0, 1, 2, 2, 2, 300, 301, 302, 302, 302, 800, 801]
    held = ChunkExecutor(3, hold=[0.0, np.nan])
    held.load(chunk(7, 4))
    for _ in range(3):
        held.next_action()
    held.question({})
    assert held.next_action().tolist() == [0, 9]


def test_a_policy_that_is_too_late() -> None:
    executor = ChunkExecutor(2, asynchronous=True, max_hold=3)
    executor.load(chunk(0, 4))
    executor.next_action()
    executor.next_action()
    executor.question({})
    assert [executor.next_action()[0] for _ in range(5)] == [2, 3, 3, 3, 3]
    with pytest.raises(PolicyLateError, match="held for 3 control steps"):
        executor.next_action()
    with pytest.warns(UserWarning, match="took 6 control steps, and 2 actions were left"):
        executor.load(chunk(100, 10))  # it comes after all
    assert executor.next_action()[0] == 102  # two were played since it was asked for


def test_a_chunk_that_is_shorter_than_what_was_played_is_asked_for_anew() -> None:
    """The old chunk is played on meanwhile."""
    executor = ChunkExecutor(2, asynchronous=True)
    executor.load(chunk(0, 8))
    for _ in range(2):
        executor.next_action()
    executor.question({})
    for _ in range(4):
        executor.next_action()
    with pytest.warns(UserWarning, match="took 4 control steps, which is all of a chunk of 4 actions"):
        executor.load(chunk(200, 4))
    assert executor.needs_chunk
    executor.question({})
    assert [executor.next_action()[0] for _ in range(3)] == [6, 7, 7]  # the last one is held
    executor.load(chunk(600, 4))
    assert executor.next_action()[0] == 602


@pytest.mark.parametrize(
    ("lengths", "every", "delay", "advice"),
    [
        ((50, 30), 25, 10, "left to play of chunks of 30; .*an execution_horizon of 20 or less"),
        ((50, 16), 8, 10, "no execution_horizon is small enough: chunks of 20 actions"),
        ((26, 100), 25, 10, "left to play of chunks of 26; .*an execution_horizon of 16 or less"),
    ],
)
def test_chunks_of_changing_length(lengths: tuple[int, int], every: int, delay: int, advice: str) -> None:
    """What is told is of the shorter ones, which run out."""
    robot = Robot(ChunkExecutor(every, asynchronous=True), lengths[0], delay)

    def play_in_turns() -> None:
        for turn in range(20):
            robot.horizon = lengths[turn % 2]
            robot.run(every)

    with pytest.warns(UserWarning, match=advice) as told:
        play_in_turns()
    assert len(told) == 1
    assert set(np.diff(robot.path)) <= {0.0, 1.0}


class Robot:
    """Goes where it is told, one control step after the other; its policy plans one unit a step from where it is."""

    def __init__(self, executor: ChunkExecutor, horizon: int, delay: int) -> None:
        self.executor, self.horizon, self.delay = executor, horizon, delay
        self.place, self.time, self.due = 0.0, 0, -1
        self.answer = np.zeros((0, 1), np.float32)
        self.path: list[float] = []
        self.asked: list[int] = []

    def step(self) -> None:
        for _ in range(2):  # an answer may come before a question, or with it
            if self.due == self.time:
                self.executor.load(self.answer)
                self.due = -1
            if self.executor.needs_chunk:
                self.executor.question({})
                self.asked.append(self.time)
                self.answer = self.place + np.arange(1, self.horizon + 1, dtype=np.float32)[:, None]
                self.due = self.time + (self.delay if self.path else 0)
        self.place = float(self.executor.next_action()[0])
        self.path.append(self.place)
        self.time += 1

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.step()


@pytest.mark.parametrize(
    ("horizon", "every", "delay", "left"),
    [(16, 16, 24, 0), (16, 8, 24, 8), (16, 8, 12, 8), (16, 16, 1, 0), (50, 25, 30, 25), (8, 1, 100, 7)],
)
@pytest.mark.parametrize("settings", [{}, {"ensemble": 0.01}, {"real_time": True}])
def test_a_policy_slower_than_its_chunk_holds_the_robot_and_says_so(
    horizon: int, every: int, delay: int, left: int, settings: dict[str, Any]
) -> None:
    """The largest step stays 1, what was held is not skipped, and the warning comes once for each kind of lateness."""
    robot = Robot(ChunkExecutor(every, asynchronous=True, **settings), horizon, delay)
    expected = f"took {delay} control steps, and {left} actions were left to play of chunks of {horizon}"
    with pytest.warns(UserWarning, match=expected) as told:
        robot.run(6 * (horizon + delay))
    assert len(told) == 1
    assert set(np.diff(robot.path)) == {0.0, 1.0}
    assert robot.path[-1] >= 3 * min(horizon, every + left)
    assert list(robot.executor.delays) == [delay] * min(10, len(robot.executor.delays))


@given(horizon=st.integers(1, 20), data=st.data(), delay=st.integers(0, 30))
@pytest.mark.filterwarnings("ignore:the policy is late")
def test_no_action_is_skipped_or_played_twice(horizon: int, data: st.DataObject, delay: int) -> None:
    """Whatever the numbers; and the robot is held only where the chunk is too short (docs/real_time.md)."""
    every = data.draw(st.integers(1, horizon))
    settings = data.draw(st.sampled_from([{}, {"ensemble": 0.5}, {"real_time": True}]))
    robot = Robot(ChunkExecutor(every, asynchronous=True, **settings), horizon, delay)
    robot.run(100)
    steps = set(np.diff(robot.path).tolist())
    assert steps <= {0.0, 1.0}
    assert (0.0 in steps) == (horizon < delay + max(every, delay))


def test_the_advice_can_be_followed() -> None:
    for every, delay, advice in ((16, 4, "an execution_horizon of 12 or less"), (8, 9, r"chunks of 18 actions")):
        robot = Robot(ChunkExecutor(every, asynchronous=True), 16, delay)
        with pytest.warns(UserWarning, match=advice):
            robot.run(60)
    for horizon, every, delay in ((16, 12, 4), (18, 8, 9)):
        robot = Robot(ChunkExecutor(every, asynchronous=True), horizon, delay)
        robot.run(60)
        assert robot.path[-1] == 60


def test_a_lost_chunk_is_told_again_only_when_all_of_it_is_stale() -> None:
    robot = Robot(ChunkExecutor(8, asynchronous=True), 16, 9)
    with pytest.warns(UserWarning, match="took 9") as told:
        robot.run(60)
    assert len(told) == 1
    robot.delay = 12
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        robot.run(60)
    robot.delay = 20
    with pytest.warns(UserWarning, match="took 20") as told:
        robot.run(200)
    assert len(told) == 1


def test_ensembling_averages_what_speaks_of_a_control_step() -> None:
    played, _ = play(ChunkExecutor(2, asynchronous=True, ensemble=0.5), 0, 6, horizon=5)
    weights = np.exp(-0.5 * np.arange(3))
    expected = [0, 1, np.dot([2, 200], weights[:2]) / weights[:2].sum()]
    np.testing.assert_allclose(played[:3], expected, rtol=1e-6)
    np.testing.assert_allclose(played[4], np.dot([4, 202, 400], weights) / weights.sum(), rtol=1e-6)


def test_real_time_questions_bring_what_is_left() -> None:
    executor = ChunkExecutor(4, asynchronous=True, real_time=True, first_delay=1)
    _, questions = play(executor, 3, 13)
    assert "previous_actions" not in questions[0]
    assert questions[1]["previous_actions"][:, 0].tolist() == [4, 5, 6, 7, 8, 9, 10, 11]
    assert [question["inference_delay"] for question in questions[1:]] == [1, 3, 3]
    assert questions[2]["previous_actions"][:, 0].tolist() == [404 + i for i in range(8)]


def test_limits_of_range_and_rate() -> None:
    limits = ActionLimits(low=[-1.0, -9.0], high=[1.0, 9.0], max_change=[0.5, 2.0])
    executor = ChunkExecutor(4, limits=limits)
    executor.load(np.array([[0, 0], [5, 1], [5, 8], [-5, 8]], np.float32))
    actions = [executor.next_action().tolist() for _ in range(4)]
    assert actions == [[0, 0], [0.5, 1], [1, 3], [0.5, 5]]
    one_sided = ActionLimits(high=[1.0, 9.0]).apply(np.array([5, -50], np.float32), None)
    assert one_sided.tolist() == [1, -50]


def test_settings_that_cannot_work() -> None:
    for settings in ({"real_time": True}, {"ensemble": 0.01}):
        with pytest.raises(UserError, match="need an asynchronous executor"):
            ChunkExecutor(2, **settings)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="must not be negative, got -1"):
        ChunkExecutor(2, first_delay=-1)
    executor = ChunkExecutor(2)
    executor.question({})
    with pytest.raises(RuntimeError, match="no answer yet"):
        executor.question({})


class SlowPolicy:
    """Answers when it is let to; its k-th chunk is 100 * k, 100 * k + 1, ..."""

    def __init__(self) -> None:
        self.go, self.asked, self.broken = threading.Event(), 0, False

    def infer(self, observation: RobotDict) -> dict[str, Any]:
        self.asked += 1
        assert self.go.wait(10)
        if self.broken:
            raise ConnectionError("the server is gone")
        return {"actions": chunk(100 * (self.asked - 1), 12)}


class WatchedPool(ThreadPoolExecutor):
    """Lets a test wait until the answer to the last question is there."""

    def submit(self, *call: Any) -> Future[Any]:
        WatchedPool.last = super().submit(*call)
        return WatchedPool.last


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Callable[[], object]:
    monkeypatch.setattr(chunk_executor, "ThreadPoolExecutor", WatchedPool)
    return lambda: wait([WatchedPool.last], 10)


def test_a_loop_never_waits_but_for_the_first_chunk(answer: Callable[[], object]) -> None:
    policy = SlowPolicy()
    policy.go.set()
    with RobotLoop(policy, ChunkExecutor(3, asynchronous=True)) as loop:
        assert loop.needs_observation
        played = [loop.act({})[0]]
        policy.go.clear()
        assert not loop.needs_observation
        played += [loop.act(None)[0] for _ in range(2)]
        with pytest.raises(UserError, match="look at needs_observation"):
            loop.act(None)
        played += [loop.act({})[0] for _ in range(4)]  # asked at step 3; the old chunk plays on
        policy.go.set()
        answer()
        played += [loop.act({})[0]]
        assert played == [0, 1, 2, 3, 4, 5, 6, 104]
        answer()
        policy.broken = True
        loop.reset()
        with pytest.raises(ConnectionError, match="gone"):
            loop.act({})
        policy.broken = False
        assert loop.act({})[0] == 100 * (policy.asked - 1)


def test_an_observation_is_asked_for_when_an_answer_is_overdue(answer: Callable[[], object]) -> None:
    """The answer may come between the look at `needs_observation` and `act`, which then asks at once."""
    policy = SlowPolicy()
    policy.go.set()
    with RobotLoop(policy, ChunkExecutor(3, asynchronous=True)) as loop:
        played = []
        for step in range(7):
            if step == 1:
                policy.go.clear()
            played.append(loop.act({} if loop.needs_observation else None)[0])
        needed = loop.needs_observation
        policy.go.set()
        answer()
        played.append(loop.act({} if needed else None)[0])
        answer()
        assert policy.asked == 3
    assert played == [0, 1, 2, 3, 4, 5, 6, 104]


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_policy_that_failed_is_asked_again(asynchronous: bool, answer: Callable[[], object]) -> None:
    policy = SlowPolicy()
    policy.go.set()
    with RobotLoop(policy, ChunkExecutor(3, asynchronous=asynchronous)) as loop:
        played = [loop.act({})[0] for _ in range(3)]
        policy.broken = True
        if asynchronous:
            loop.act({})  # asks
            answer()
        with pytest.raises(ConnectionError, match="gone"):
            loop.act({})
        policy.broken = False
        assert loop.needs_observation
        asked = policy.asked
        loop.act({})
        if asynchronous:
            answer()
        assert policy.asked == asked + 1
        assert loop.act({})[0] == 100 * asked + 1
        assert played == [0, 1, 2]


def test_a_synchronous_loop_asks_and_plays() -> None:
    policy = SlowPolicy()
    policy.go.set()
    with RobotLoop(policy, ChunkExecutor(3)) as loop:
        assert [loop.act({})[0] for _ in range(7)] == [0, 1, 2, 100, 101, 102, 200]
