"""The chunk executor plays each chunk up to the execution horizon, in order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pizero.policy.chunk_executor import ChunkExecutor
from pizero.types import UserError


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
