"""Plays action chunks, one action per control step, and says when the next chunk is needed.

synchronous    the robot holds still until the chunk is there, then plays it from its first action
asynchronous   the next chunk is asked for while this one plays; the actions for the time that has passed are dropped

         asked          arrives
steps    0  1  2  3  4  5  6  7
old      .  .  .  .  .  |                  played until the new one is there
new      x  x  x  x  x  n  n  n  n         x: stale, dropped; the delay is 5

A policy that is later than the old chunk's end finds the robot held where that ended. What was held was not played, so
no action is dropped for it: the new chunk continues from where the robot is.

steps    0  1  2  3  4  5  6  7
old      .  .  .  h  h  |                  h: held
new      x  x  x        n  n  n            the delay is 5, and 3 actions are stale
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pizero.policy.held_subtask import HeldSubtask
from pizero.types import RobotDict, UserError

Action = NDArray[np.float32]
Chunk = NDArray[np.float32]


class PolicyLateError(RuntimeError):
    """The robot has held still for as long as it was allowed to; stop it safely."""


@dataclass(frozen=True)
class ActionLimits:
    """Per dimension, in robot units: range of an action, and most change from one control step to the next."""

    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    max_change: Sequence[float] | None = None

    def apply(self, action: Action, last: Action | None) -> Action:
        """action and last [robot_action_dim] -> the nearest allowed action."""
        if self.max_change is not None and last is not None:
            change = np.asarray(self.max_change, np.float32)
            action = (last + np.clip(action - last, -change, change)).astype(np.float32)
        if self.low is not None or self.high is not None:
            low = -np.inf if self.low is None else np.asarray(self.low, np.float32)
            high = np.inf if self.high is None else np.asarray(self.high, np.float32)
            action = np.clip(action, low, high)
        return action.astype(np.float32)


class ChunkExecutor:
    """The queue of one robot, kept outside the network so that many robots can share a model. It never waits.

    execution_horizon: control steps from one chunk's to the next one's request (asynchronous), or played of each chunk
    (synchronous); at most the chunk's length.
    ensemble: None plays the newest chunk. A number m averages all chunks that speak of a control step with weights
        exp(-m * i), the oldest first (ACT, arXiv 2304.13705, m = 0.01); a mean of angles across +-pi is none.
    real_time: requests bring what is left of the present chunk, for real-time chunking (`policy/real_time.py`).
    first_delay: the delay in control steps that the first such request expects; later the longest of the last ten.
    hold: the action that keeps the robot still when the policy is late, [robot_action_dim], with NaN where the last
        action's value stays; None: the last action, right for positions, wrong for velocities.
    max_hold: control steps that the robot may be held for before `PolicyLateError`; None: for ever.
    """

    def __init__(
        self,
        execution_horizon: int,
        *,
        asynchronous: bool = False,
        ensemble: float | None = None,
        real_time: bool = False,
        first_delay: int = 0,
        hold: Sequence[float] | None = None,
        max_hold: int | None = None,
        limits: ActionLimits | None = None,
    ) -> None:
        if execution_horizon < 1:
            raise UserError(f"execution_horizon must be at least 1, got {execution_horizon}")
        if (real_time or ensemble is not None) and not asynchronous:
            raise UserError("real-time chunking and ensembling need an asynchronous executor")
        if first_delay < 0 or (max_hold is not None and max_hold < 0):
            raise UserError(f"first_delay and max_hold must not be negative, got {first_delay} and {max_hold}")
        self.execution_horizon, self.asynchronous, self.ensemble = execution_horizon, asynchronous, ensemble
        self.real_time, self.max_hold, self.limits = real_time, max_hold, limits or ActionLimits()
        self._first_delay = first_delay
        self._hold = None if hold is None else np.asarray(hold, np.float32)
        self.delays: deque[int] = deque(maxlen=10)
        """The last delays, in control steps."""
        self._warned = 0  # most actions that an answer was found to lack
        self.reset()

    def reset(self) -> None:
        """Forgets chunks and requests; call it between episodes. The measured delays stay."""
        self._played = 0  # control steps for which the robot was not held: the time of plans
        self._plans: list[tuple[int, Chunk]] = []  # `_played` at the first action, and the chunk; oldest first
        self._asked: int | None = None  # `_played` at the question that has no answer yet
        self._waited = 0  # control steps since then
        self._next_question = 0
        self._last: Action | None = None
        self.held = 0
        """Control steps in a row for which the robot is held."""

    @property
    def needs_chunk(self) -> bool:
        """Whether the next chunk shall be asked for now."""
        return self._asked is None and self.remaining == 0

    @property
    def remaining(self) -> int:
        """Control steps until the next chunk is asked for, or was to be."""
        return max(self._next_question - self._played, 0)

    @property
    def expected_delay(self) -> int:
        """Control steps that the next answer will take: the longest of the last ten."""
        return max(self.delays, default=self._first_delay)

    def question(self, observation: RobotDict) -> RobotDict:
        """What the policy is asked now; the answer goes to `load`. Only one question at a time."""
        if self._asked is not None:
            raise RuntimeError("the last question has no answer yet: call load first")
        self._asked, self._waited = self._played, 0
        if self.asynchronous:
            self._next_question = self._played + self.execution_horizon
        left = self._left()
        if not self.real_time or not len(left):
            return observation
        return {**observation, "previous_actions": left, "inference_delay": min(self.expected_delay, len(left))}

    def withdraw(self) -> None:
        """The last question gets no answer, since the policy failed; the next one may be asked at once."""
        self._asked, self._next_question = None, self._played

    def load(self, chunk: Chunk) -> None:
        """Takes a new chunk [H, robot_action_dim]: the answer to the last question, or without one an unasked chunk.

        UserError for a chunk that cannot be played; the one before it is played on.
        """
        width = None if self._last is None else len(self._last)
        if chunk.ndim != 2 or chunk.shape[1] != (width or chunk.shape[1]):
            expected = f"[H, {width or 'robot_action_dim'}]"
            raise UserError(f"an action chunk has the shape {expected}, got {chunk.shape}")
        if not np.isfinite(chunk).all():
            raise UserError("an action chunk with NaN or infinite values is not played; check the policy's weights")
        if len(chunk) < self.execution_horizon:
            raise UserError(
                f"execution_horizon {self.execution_horizon} is longer than the policy's action chunk of {len(chunk)}; "
                f"choose at most {len(chunk)}"
            )
        start = self._played if self._asked is None or not self.asynchronous else self._asked
        stale = start + len(chunk) <= self._played
        if self._asked is not None and self._plans:  # the first chunk is waited for
            self.delays.append(self._waited)
            if self.asynchronous and (self.held or stale):
                self._tell_late(min(len(chunk), len(self._plans[-1][1])))
        if self._asked is None or not self.asynchronous:
            self._next_question = self._played + self.execution_horizon
        self._asked = None
        if stale and self._plans:
            return  # the old chunk may have actions left
        kept = self._plans if self.ensemble is not None else []
        self._plans = [plan for plan in kept if self._speaks(plan)] + [(start, chunk)]

    def next_action(self) -> Action:
        """The action [robot_action_dim] of this control step; RuntimeError if there is none and none was asked for."""
        planned = [chunk[self._played - start] for start, chunk in self._plans if self._speaks((start, chunk))]
        self._waited += 1
        if not planned or (not self.asynchronous and self.remaining == 0):
            action = self._held_action()
        else:
            self.held = 0
            self._played += 1
            action = planned[-1] if self.ensemble is None else self._average(planned)
        self._last = self.limits.apply(action, self._last)
        return self._last

    def _left(self) -> Chunk:
        """What is left of the newest chunk."""
        if not self._plans:
            return np.zeros((0, 0), np.float32)
        start, chunk = self._plans[-1]
        return chunk[self._played - start :]

    def _speaks(self, plan: tuple[int, Chunk]) -> bool:
        return plan[0] <= self._played < plan[0] + len(plan[1])

    def _tell_late(self, horizon: int) -> None:
        """At the first answer for which the robot was held, and at the first that came after the whole of a chunk.

        horizon: length of the shorter one of the chunk that was played and the answer.
        """
        delay, played = self._waited, self._waited - self.held
        before, self._warned = self._warned, max(self._warned, self._waited)  # a warning may be raised
        if before == 0 or (delay >= horizon > before):
            longest = self.expected_delay
            advice = (
                f"an execution_horizon of {horizon - longest} or less asks early enough"
                if horizon >= 2 * longest
                else f"no execution_horizon is small enough: chunks of {2 * longest} actions would be long enough"
            )
            what = (
                f", and {played} actions were left to play of chunks of {horizon}; the robot was held for {self.held} "
                "control steps"
                if self.held
                else f", which is all of a chunk of {horizon} actions, so nothing of it is played"
            )
            warnings.warn(
                f"the policy is late: its answer took {delay} control steps{what} ({advice}; or make the policy "
                "faster, or the control steps longer)",
                stacklevel=3,
            )

    def _average(self, planned: list[Action]) -> Action:
        assert self.ensemble is not None
        weights = np.exp(-self.ensemble * np.arange(len(planned)))
        return np.average(planned, axis=0, weights=weights).astype(np.float32)

    def _held_action(self) -> Action:
        if self._last is None or self._asked is None:
            raise RuntimeError("the chunk is used up: call load before next_action")
        self.held += 1
        if self.max_hold is not None and self.held > self.max_hold:
            raise PolicyLateError(f"the policy is late: the robot was held for {self.max_hold} control steps")
        return self._last if self._hold is None else np.where(np.isnan(self._hold), self._last, self._hold)


class Infers(Protocol):
    """A local policy, or a client of one that is served."""

    def infer(self, observation: RobotDict, /) -> dict[str, Any]: ...


class RobotLoop:
    """A policy and an executor for a robot's control loop: `act` in every control step.

    Asynchronous: the policy runs in a thread, and `act` waits for the first chunk alone. What the policy raises, `act`
    raises; the next `act` asks again. Use it as a context manager, or call `close`.
    subtask: for how long one holds that the policy wrote; without it each chunk gets its own. `subtask.text` is what
    the last chunk is for; `subtask.forget` says that it is done.
    """

    def __init__(self, policy: Infers, executor: ChunkExecutor, subtask: HeldSubtask | None = None) -> None:
        self.policy, self.executor, self.subtask = policy, executor, subtask or HeldSubtask()
        self._pool = ThreadPoolExecutor(1, "policy") if executor.asynchronous else None
        self._answer: Future[dict[str, Any]] | None = None
        self._asked: RobotDict = {}
        self._started = False

    @property
    def needs_observation(self) -> bool:
        """Whether `act` will look at its observation, or may: an answer that comes just now may be overdue. Images need
        not be taken otherwise.
        """
        return self.executor.remaining == 0

    def act(self, observation: RobotDict | None) -> Action:
        """The action of this control step."""
        if self._answer is not None and (self._answer.done() or not self._started):
            self._take(self._answer)
        if self.executor.needs_chunk:
            if observation is None:
                raise UserError("this control step needs an observation: look at needs_observation first")
            with self._withdrawing():
                question = self._asked = self.subtask.question(self.executor.question(observation))
                if self._pool is None:
                    self._load(self.policy.infer(question))
                else:
                    self._answer = self._pool.submit(self.policy.infer, question)
            if self._answer is not None and not self._started:
                self._take(self._answer)
        self._started = True
        return self.executor.next_action()

    def reset(self) -> None:
        """Call it between episodes. An answer that is still to come is not played."""
        if self._answer is not None:
            self._answer.cancel()
        self._answer, self._started = None, False
        self.executor.reset()
        self.subtask.forget()

    def close(self) -> None:
        self.reset()
        if self._pool is not None:
            self._pool.shutdown()

    def __enter__(self) -> RobotLoop:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _take(self, answer: Future[dict[str, Any]]) -> None:
        self._answer = None
        with self._withdrawing():
            self._load(answer.result())

    def _load(self, answer: dict[str, Any]) -> None:
        self.executor.load(answer["actions"])
        self.subtask.heard(self._asked, answer)

    @contextmanager
    def _withdrawing(self) -> Generator[None]:
        """Whatever fails here, the next control step may ask again."""
        try:
            yield
        except BaseException:
            self.executor.withdraw()
            raise
