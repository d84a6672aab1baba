"""After each kind of error of a policy or an executor the next call is as good as before."""

from __future__ import annotations

import dataclasses
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from pizero.data.embodiments import generic
from pizero.data.norm_stats import FieldStats, NormStats
from pizero.data.pipeline import Pipeline
from pizero.data.tokenizer import PaligemmaTokenizer
from pizero.model.config import small_config
from pizero.model.pi0 import Pi0
from pizero.policy.chunk_executor import ActionLimits, ChunkExecutor, PolicyLateError, RobotLoop
from pizero.policy.policy import ModelPolicy
from pizero.policy.real_time import RealTime
from pizero.types import RobotDict, UserError

CONFIG = small_config("nano", vocab_size=259, prompt_length=14, cameras=("base_0_rgb",))
SHAPE = (CONFIG.action_horizon, CONFIG.action_dim)
OLD = np.zeros((3, 2), np.float32)


def observation(seed: int = 0) -> RobotDict:
    rng = np.random.default_rng(seed)
    return {
        "state": rng.standard_normal(3).astype(np.float32),
        "images": {"top": rng.integers(0, 256, (28, 28, 3), dtype=np.uint8)},
        "prompt": "pick",
        "noise": rng.standard_normal(SHAPE, dtype=np.float32),
    }


@pytest.fixture(scope="module")
def model() -> Pi0:
    torch.manual_seed(0)
    return Pi0(CONFIG).eval()


def make_policy(model: Pi0, **options: Any) -> ModelPolicy:
    pipeline = Pipeline(
        generic({"base_0_rgb": "top"}),
        NormStats("zscore", FieldStats(np.zeros(3), np.ones(3)), FieldStats(np.zeros(2), np.ones(2)), epsilon=0.0),
        PaligemmaTokenizer.bytes(), cameras=CONFIG.cameras, prompt_format="pi0", prompt_length=CONFIG.prompt_length,
        image_size=(28, 28), state_dim=CONFIG.state_dim, action_dim=CONFIG.action_dim,
    )  # fmt: skip
    return ModelPolicy(model, pipeline, num_steps=2, **options)


# ---------------------------------------------------------------- a policy


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"state": np.zeros(4, np.float32)}, "state: got shape"),
        ({"state": np.full(3, np.nan, np.float32)}, r"state: dimensions \[0, 1, 2\] are NaN"),
        ({"state": None}, "state"),
        ({"prompt": 3}, "prompt: got int"),
        ({"images": {}}, "no camera 'top'"),
        ({"images": {"top": np.zeros((8, 3), np.uint8)}}, "images/top: got shape"),
        ({"noise": np.zeros((2, 4), np.float32)}, "noise: got shape"),
        ({"noise": [[1.0], [1.0, 2.0]]}, "noise: got list, expected an array of numbers"),
        ({"noise": np.full(SHAPE, 1e300)}, r"within 1e\+06"),
        ({"previous_actions": np.zeros((7, 2))}, "previous_actions: got shape"),
        ({"previous_actions": [[1.0], [1.0, 2.0]]}, "previous_actions: got list, expected an array of numbers"),
        ({"previous_actions": "left"}, "previous_actions: got str, expected an array of numbers"),
        ({"previous_actions": [[10**400, 0]]}, "previous_actions: got list, expected an array of numbers"),
        ({"previous_actions": np.full((3, 2), 1e300)}, "previous_actions: NaN or infinite"),
        ({"previous_actions": np.full((3, 2), 1e30)}, "previous_actions: they lie further"),
        ({"previous_actions": OLD, "inference_delay": "soon"}, "inference_delay: got soon"),
    ],
)
def test_a_bad_observation_then_a_good_one(model: Pi0, change: RobotDict, text: str) -> None:
    policy = make_policy(model)
    first = policy.infer(observation())["actions"]
    bad = {**observation(), **change}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for ask in (policy.infer, policy.prepare, lambda raw: policy.infer_batch([observation(1), raw])):
            with pytest.raises(UserError, match=text):
                ask(bad)
            np.testing.assert_array_equal(policy.infer(observation())["actions"], first)
    policy.infer(policy.prepare({**observation(), "previous_actions": OLD, "inference_delay": 1}))


def test_a_chunk_that_cannot_be_continued_then_one_that_starts_afresh(model: Pi0) -> None:
    policy = make_policy(model, real_time=RealTime("trained"))
    first = policy.infer(observation())["actions"]
    for _ in range(2):
        with pytest.raises(UserError, match="not trained with delays"):
            policy.infer({**observation(), "previous_actions": OLD})
        np.testing.assert_array_equal(policy.infer(observation())["actions"], first)


@pytest.mark.parametrize("failure", ["nan", "raises"])
def test_a_model_that_fails_once(model: Pi0, monkeypatch: pytest.MonkeyPatch, failure: str) -> None:
    policy = make_policy(model, fast=False)
    first = policy.infer(observation())["actions"]

    def broken(*_: object, **options: Any) -> torch.Tensor:
        if failure == "raises":
            raise torch.OutOfMemoryError("full")
        return torch.full_like(options["noise"], torch.nan)

    with monkeypatch.context() as patch:
        patch.setattr(model, "sample_actions", broken)
        with pytest.raises(RuntimeError, match="full" if failure == "raises" else "NaN or Inf actions"):
            policy.infer(observation())
    np.testing.assert_array_equal(policy.infer(observation())["actions"], first)


def test_settings_that_are_refused_then_others(model: Pi0) -> None:
    pipeline = make_policy(model).pipeline
    for wrong in (
        {"num_steps": 0}, {"pipeline": dataclasses.replace(pipeline, action_dim=9)},
        {"pipeline": dataclasses.replace(pipeline, num_history=2)},
    ):  # fmt: skip
        with pytest.raises(UserError):
            ModelPolicy(model, **{"pipeline": pipeline, **wrong})
    assert make_policy(model).infer(observation())["actions"].shape == (SHAPE[0], 2)


# ---------------------------------------------------------------- an executor


def chunk(start: int, length: int = 6) -> np.ndarray:
    return np.arange(start, start + length, dtype=np.float32)[:, None].repeat(2, axis=1)


def with_nan() -> np.ndarray:
    bad = chunk(50)
    bad[3, 1] = np.nan
    return bad


REFUSED = {"shape": np.zeros(4, np.float32), "short": chunk(50, 2), "wide": np.zeros((6, 3), np.float32)}


@pytest.mark.parametrize("kind", [*REFUSED, "nan"])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_chunk_that_is_refused_then_one_that_is_played(kind: str, asynchronous: bool) -> None:
    executor = ChunkExecutor(3, asynchronous=asynchronous, limits=ActionLimits(max_change=[1e3, 1e3]))
    executor.load(chunk(0))
    played = [executor.next_action()[1] for _ in range(3)]
    executor.question({})
    for _ in range(2):
        with pytest.raises(UserError, match="action chunk"):
            executor.load(with_nan() if kind == "nan" else REFUSED[kind])
    with pytest.raises(RuntimeError, match="no answer yet"):
        executor.question({})
    executor.load(chunk(100))
    played += [executor.next_action()[1] for _ in range(3)]
    assert played == [0, 1, 2, 100, 101, 102]
    assert executor.needs_chunk


def test_a_chunk_of_another_robot_after_a_reset() -> None:
    executor = ChunkExecutor(1)
    executor.load(chunk(0))
    executor.next_action()
    executor.reset()
    executor.load(np.zeros((6, 3), np.float32))
    assert executor.next_action().shape == (3,)


def test_no_chunk_then_one() -> None:
    executor = ChunkExecutor(3)
    for start in (0, 100):
        with pytest.raises(RuntimeError, match="call load before next_action"):
            executor.next_action()
        executor.load(chunk(start))
        assert [executor.next_action()[0] for _ in range(3)] == [start, start + 1, start + 2]


def test_a_lateness_that_is_made_an_error() -> None:
    """As by python -W error: the answer is lost, and the next one is played."""
    executor = ChunkExecutor(3, asynchronous=True)
    executor.load(chunk(0))
    for _ in range(3):
        executor.next_action()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        executor.question({})
        for _ in range(5):
            executor.next_action()
        with pytest.raises(UserWarning, match="the policy is late"):
            executor.load(chunk(100))
        executor.withdraw()
        assert executor.needs_chunk
        executor.question({})
        executor.load(chunk(200))
    assert executor.next_action()[0] == 200


# ---------------------------------------------------------------- a robot's loop


class Policy:
    """Does what it is told to next: raises an error, gives a chunk, or for a number gives the chunk that starts so."""

    def __init__(self) -> None:
        self.next: list[Any] = []
        self.asked: list[RobotDict] = []
        self.answered = threading.Semaphore(0)

    def infer(self, observation: RobotDict) -> dict[str, Any]:
        self.asked.append(observation)
        now = self.next.pop(0)
        self.answered.release()
        if isinstance(now, BaseException):
            raise now
        return now if isinstance(now, dict) else {"actions": chunk(now) if isinstance(now, int) else now}


ERRORS: dict[str, tuple[Any, type[BaseException]]] = {
    "gone": (ConnectionError("gone"), ConnectionError), "busy": (UserError("busy"), UserError),
    "interrupted": (KeyboardInterrupt(), KeyboardInterrupt), "memory": (MemoryError(), MemoryError),
    "shape": (REFUSED["shape"], UserError),
    "short": (REFUSED["short"], UserError), "wide": (REFUSED["wide"], UserError),
    "nan": (with_nan(), UserError), "no actions": ({}, KeyError),
}  # fmt: skip


def until_done(loop: RobotLoop) -> None:
    """Lets the answer under way arrive."""
    assert loop._pool is not None
    loop._pool.submit(int).result(10)


@pytest.mark.parametrize("name", ERRORS)
def test_a_request_that_fails_in_a_synchronous_loop(name: str) -> None:
    error, kind = ERRORS[name]
    policy = Policy()
    policy.next = [0, error, error, 100, 200]
    with RobotLoop(policy, ChunkExecutor(3)) as loop:
        played = [loop.act({})[0] for _ in range(3)]
        for _ in range(2):
            with pytest.raises(kind):
                loop.act({})
            assert loop.needs_observation
        played += [loop.act({})[0] for _ in range(6)]
    assert played == [0, 1, 2, 100, 101, 102, 200, 201, 202]


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("real_time", [False, True])
def test_a_request_that_fails_in_an_asynchronous_loop(name: str, real_time: bool) -> None:
    """The old chunk goes on meanwhile."""
    error, kind = ERRORS[name]
    policy = Policy()
    first = ConnectionError("not yet")
    policy.next = [first, 0, error, 100, 200]
    with RobotLoop(policy, ChunkExecutor(3, asynchronous=True, real_time=real_time)) as loop:
        with pytest.raises(ConnectionError, match="not yet"):
            loop.act({})
        played = [loop.act({})[0] for _ in range(4)]  # the last one asks
        until_done(loop)
        with pytest.raises(kind):
            loop.act({})
        assert loop.needs_observation
        played.append(loop.act({})[0])  # asks again
        until_done(loop)
        played += [loop.act({})[0] for _ in range(3)]
        until_done(loop)
        played.append(loop.act({})[0])
    assert played == [0, 1, 2, 3, 4, 101, 102, 103, 201]
    assert not policy.next


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_control_step_without_its_observation(asynchronous: bool) -> None:
    policy = Policy()
    policy.next = [0, 100]
    with RobotLoop(policy, ChunkExecutor(6, asynchronous=asynchronous)) as loop:
        with pytest.raises(UserError, match="look at needs_observation first"):
            loop.act(None)
        assert [loop.act({})[0] for _ in range(6)] == [0, 1, 2, 3, 4, 5]
        with pytest.raises(UserError, match="look at needs_observation first"):
            loop.act(None)
        loop.act({})
        if asynchronous:
            until_done(loop)
        assert len(policy.asked) == 2


def test_a_question_that_cannot_be_asked_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system without threads for a moment, and an observation that is none."""
    policy = Policy()
    policy.next = [0, 100]
    with RobotLoop(policy, ChunkExecutor(3, asynchronous=True, real_time=True)) as loop:
        played = [loop.act({})[0] for _ in range(3)]
        with monkeypatch.context() as patch:
            patch.setattr(ThreadPoolExecutor, "submit", _raising(RuntimeError("can't start new thread")))
            for _ in range(2):
                with pytest.raises(RuntimeError, match="new thread"):
                    loop.act({})
        with pytest.raises(TypeError):
            loop.act(["not an observation"])  # type: ignore[arg-type]
        assert loop.needs_observation
        played.append(loop.act({})[0])
        until_done(loop)
        played.append(loop.act({})[0])
    assert played == [0, 1, 2, 3, 101]


def test_a_policy_that_was_too_late_comes_after_all() -> None:
    go = threading.Event()
    policy = Policy()
    policy.next = [0, 100, 200]
    with RobotLoop(policy, ChunkExecutor(3, asynchronous=True, max_hold=1)) as loop:
        played = [loop.act({})[0] for _ in range(3)]
        assert loop._pool is not None
        loop._pool.submit(go.wait, 10)
        played += [loop.act({})[0] for _ in range(4)]
        for _ in range(2):
            with pytest.raises(PolicyLateError, match="held for 1 control steps"):
                loop.act({})
        go.set()
        until_done(loop)
        with pytest.warns(UserWarning, match="the policy is late"):
            played.append(loop.act({})[0])
    assert played == [0, 1, 2, 3, 4, 5, 5, 103]


def test_settings_of_an_executor_that_are_refused_then_others() -> None:
    for wrong in ({"execution_horizon": 0}, {"real_time": True}, {"ensemble": 0.1}, {"max_hold": -1}):
        with pytest.raises(UserError):
            ChunkExecutor(**{"execution_horizon": 2, **wrong})
    executor = ChunkExecutor(2)
    executor.load(chunk(0))
    assert executor.next_action()[0] == 0


def _raising(error: Exception) -> Callable[..., Any]:
    def call(*_: object, **__: object) -> Any:
        raise error

    return call
