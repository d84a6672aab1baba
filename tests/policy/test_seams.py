"""Where one chunk follows another in real time: three faults of another implementation, which make a robot jump."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch

from pizero.data.embodiments import generic
from pizero.data.norm_stats import NormStats, field_stats
from pizero.data.pipeline import Pipeline
from pizero.data.tokenizer import PaligemmaTokenizer
from pizero.model.config import small_config
from pizero.policy.chunk_executor import ChunkExecutor, RobotLoop
from pizero.policy.real_time import RealTime, sampling_options

HORIZON = 8


def chunk(first: float) -> Any:
    """[HORIZON, 1]: first, first + 1, ..."""
    return (first + np.arange(HORIZON, dtype=np.float32))[:, None]


class Slow:
    """A policy whose first answer takes as long as compiling does."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.asked = [seconds], []

    def infer(self, observation: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(observation)
        time.sleep(self.seconds.pop() if self.seconds else 0)
        return {"actions": chunk(100 * len(self.asked))}


def test_the_first_chunk_is_played_from_its_first_action() -> None:
    """However long it took: nothing was played meanwhile, so nothing of it is stale."""
    with RobotLoop(Slow(0.3), ChunkExecutor(4, asynchronous=True, real_time=True, first_delay=3)) as loop:
        assert [float(loop.act({"state": 0})[0]) for _ in range(3)] == [100, 101, 102]
        loop.reset()
        first = float(loop.act({"state": 0})[0])
    assert first % 100 == 0  # so after a reset


def test_a_cold_start_is_no_delay_to_expect() -> None:
    """The first answer, with its compiling, does not count; neither does it after a reset."""
    policy, executor = Slow(0.3), ChunkExecutor(4, asynchronous=True, real_time=True, first_delay=2)
    with RobotLoop(policy, executor) as loop:
        for _ in range(2):
            loop.act({"state": 0})
            assert list(executor.delays) == []
            assert executor.expected_delay == 2
            loop.reset()
    executor = ChunkExecutor(4, asynchronous=True, real_time=True, first_delay=2)
    executor.question({})
    executor.load(chunk(0))
    for _ in range(4):
        executor.next_action()
    asked = executor.question({})
    assert asked["inference_delay"] == 2
    executor.next_action()
    executor.load(chunk(4))
    assert executor.expected_delay == 1  # what was measured, once there is something


def test_what_is_left_is_not_filled_up() -> None:
    """The old chunk's own actions, this step's first, and none after its end: zeros would be the data's mean."""
    executor = ChunkExecutor(6, asynchronous=True, real_time=True, first_delay=5)
    assert "previous_actions" not in executor.question({})
    executor.load(chunk(10))
    for _ in range(6):
        executor.next_action()
    asked = executor.question({})
    np.testing.assert_array_equal(asked["previous_actions"], chunk(10)[6:])
    assert asked["inference_delay"] == 2  # five are expected, but two are left


@pytest.mark.parametrize("kind", ["guided", "trained"])
def test_the_model_is_not_pulled_past_the_old_chunks_end(kind: Any) -> None:
    """Where nothing is left the wanted actions are zeros, and must have no weight."""
    spread = field_stats(np.random.default_rng(0).normal(50, 9, size=(99, 1)))
    stats = NormStats("zscore", spread, spread)
    config = small_config(
        "nano", state_dim=1, action_dim=1, action_horizon=HORIZON, vocab_size=259, prompt_length=16, max_delay=6
    )  # fmt: skip
    pipeline = Pipeline(
        generic({"base_0_rgb": "front"}), stats, PaligemmaTokenizer.bytes(), cameras=config.cameras,
        prompt_format="pi0", prompt_length=16, image_size=config.image_shape, state_dim=1, action_dim=1,
    )  # fmt: skip
    observation = {"state": np.zeros(1, np.float32), "previous_actions": chunk(40)[:3], "inference_delay": 7}
    options = sampling_options([observation], pipeline, config, RealTime(kind), torch.device("cpu"))
    if kind == "guided":
        guide = options["guide"]
        assert guide.weights[0].tolist() == [1, 1, 1, 0, 0, 0, 0, 0]
        wanted = guide.actions[0, :3]
    else:
        assert options["settled"].length.tolist() == [3]
        wanted = options["settled"].actions[0, :3]
    back = pipeline.robot_actions(wanted[None].numpy(), observation["state"][None])
    np.testing.assert_allclose(back[0], chunk(40)[:3], rtol=1e-5)
