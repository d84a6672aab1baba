"""Which checkpoint is the best by held-out data, and when nothing gets better any more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pizero.train.config import SelectionConfig

_HIGHER_IS_BETTER = {"success_rate"}


class Selection:
    """Follows one metric through a run. Without a setting that needs it, it only watches."""

    def __init__(self, config: SelectionConfig) -> None:
        self._config = config
        self.best_step: int | None = None
        self.best = float("nan")
        self.worse_since = 0
        """Measurements since the best one."""

    def take(self, step: int, measured: Mapping[str, float]) -> bool:
        """Notes what was measured after training step `step`; true for the best so far."""
        if self._config.metric not in measured:
            return False
        value = float(measured[self._config.metric])
        higher = self._config.metric in _HIGHER_IS_BETTER
        better = value == value and (self.best_step is None or (value > self.best if higher else value < self.best))
        if better:
            self.best_step, self.best, self.worse_since = step, value, 0
        else:
            self.worse_since += 1
        return better

    @property
    def ended(self) -> bool:
        """Whether the run should end early."""
        return 0 < self._config.patience <= self.worse_since

    def state(self) -> dict[str, Any]:
        return {"best_step": self.best_step, "best": self.best, "worse_since": self.worse_since}

    def load(self, state: Mapping[str, Any]) -> None:
        self.best_step, self.best, self.worse_since = state["best_step"], state["best"], state["worse_since"]
