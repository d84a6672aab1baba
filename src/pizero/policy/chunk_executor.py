"""Plays an action chunk, one action per control step, and says when the next chunk is needed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pizero.types import UserError


class ChunkExecutor:
    """The queue of one robot, kept outside the network so that many robots can share a model.

    execution_horizon: how many actions of each chunk are played before the next is needed; at most the chunk's length.
    """

    def __init__(self, execution_horizon: int) -> None:
        if execution_horizon < 1:
            raise UserError(f"execution_horizon must be at least 1, got {execution_horizon}")
        self.execution_horizon = execution_horizon
        self._chunk: NDArray[np.float32] | None = None
        self._played = 0

    @property
    def needs_chunk(self) -> bool:
        """Whether `load` must be called before `next_action`."""
        return self.remaining == 0

    @property
    def remaining(self) -> int:
        """Actions that are played before the next chunk is needed."""
        return 0 if self._chunk is None else self.execution_horizon - self._played

    def load(self, chunk: NDArray[np.float32]) -> None:
        """Takes a new chunk [H, robot_action_dim]; what is left of the old one is dropped."""
        if chunk.ndim != 2:
            raise UserError(f"an action chunk has the shape [H, robot_action_dim], got {chunk.shape}")
        if len(chunk) < self.execution_horizon:
            raise UserError(
                f"execution_horizon {self.execution_horizon} is longer than the policy's action chunk of {len(chunk)}; "
                f"choose at most {len(chunk)}"
            )
        self._chunk, self._played = chunk, 0

    def next_action(self) -> NDArray[np.float32]:
        """The action [robot_action_dim] of this control step."""
        if self._chunk is None or self.needs_chunk:
            raise RuntimeError("the chunk is used up: call load before next_action")
        self._played += 1
        return self._chunk[self._played - 1]

    def reset(self) -> None:
        """Forgets the chunk; call it between episodes."""
        self._chunk, self._played = None, 0
