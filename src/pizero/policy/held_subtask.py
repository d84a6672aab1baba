"""A subtask that a policy wrote, sent back to it while it holds, so that it does not write again for every chunk."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from pizero.types import RobotDict, UserError


class HeldSubtask:
    """Of one robot. `question` before each call of the policy, `heard` after it.

    It is written anew after `every` chunks, once it is older than `seconds`, when the instruction changes, and after
    `forget`, for whoever knows that it is done. With neither number it is written for every chunk. What an observation
    says itself as "subtask", a person's words, is left alone; what was held before is forgotten then.
    clock: seconds; the time of the robot.
    """

    def __init__(
        self, every: int | None = None, seconds: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """UserError for a number that makes no sense."""
        if every is not None and every < 1:
            raise UserError(f"subtask_every must be at least 1, got {every}")
        if seconds is not None and not seconds > 0:
            raise UserError(f"subtask_s must be above 0, got {seconds:g}")
        self._every = 1 if every is None and seconds is None else every
        self._seconds, self._clock = seconds, clock
        self.text = ""
        """What the last answer was for, whoever said it."""
        self.written = False
        """Whether the policy wrote that."""
        self._asked_at = 0.0
        self.forget()

    def forget(self) -> None:
        """The next chunk gets a new one: this one is done, or another episode begins."""
        self._held: str | None = None
        self._prompt: object = None
        self._since, self._chunks = 0.0, 0

    def question(self, observation: RobotDict) -> RobotDict:
        """The observation, with what was written where that still holds."""
        self._asked_at = self._clock()
        if observation.get("subtask") is not None:
            self.forget()
        elif self._held is not None:
            old = self._seconds is not None and self._asked_at - self._since > self._seconds
            used = self._every is not None and self._chunks >= self._every
            if old or used or observation.get("prompt") != self._prompt:
                self.forget()
        return observation if self._held is None else {**observation, "subtask": self._held}

    def heard(self, observation: RobotDict, answer: Mapping[str, Any]) -> None:
        """The answer to what `question` gave; one without a subtask is of a policy that has none."""
        text: str | None = answer.get("subtask")
        asked = self._held is not None or observation.get("subtask") is None
        self.text, self.written = text or "", text is not None and asked
        if not self.written:
            return
        if self._held is None:
            self._held, self._prompt, self._since = text, observation.get("prompt"), self._asked_at
        self._chunks += 1
