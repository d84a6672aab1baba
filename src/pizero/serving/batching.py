"""Requests of several robots, joined into batches for one model.

The model runs in a thread of its own, so that the event loop never waits for it.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from pizero.serving.worker import Worker, as_exception
from pizero.types import RobotDict

Infer = Callable[[Sequence[RobotDict]], Sequence[dict[str, Any]]]
RECENT = 2.0
"""Seconds for which a robot that asked is expected to ask again."""
LONGEST_CALL, TIMES_SLOWEST = 60.0, 10.0
"""A model call is stuck after so many seconds, and so many times as long as the slowest that returned."""


class BusyError(RuntimeError):
    """More requests wait than are taken."""


@dataclass(frozen=True)
class Answer:
    """reply: the policy's. queued, inferred: seconds in the queue and in the model call. batch: its requests."""

    reply: dict[str, Any]
    queued: float
    inferred: float
    batch: int


@dataclass(eq=False)
class _Request:
    observation: RobotDict
    owner: str
    answer: asyncio.Future[Answer]
    asked: float = field(default_factory=time.monotonic)


class Batcher:
    """`ask` waits for the reply to one observation; requests that wait together become one call of `infer`.

    A batch starts when `max_batch` requests wait, or one for every robot that asked lately, or `max_wait` seconds after
    the first of them came and the model was free: robots that were just answered can join those that waited. Owners
    take turns, so that none waits for another's many requests. Of more than `max_queue` waiting requests, the last of
    the owner with most of them gets BusyError.
    """

    def __init__(self, infer: Infer, *, max_batch: int = 16, max_wait: float = 0.003, max_queue: int = 64) -> None:
        self.infer, self.max_batch, self.max_wait, self.max_queue = infer, max_batch, max_wait, max_queue
        self._waiting: OrderedDict[str, deque[_Request]] = OrderedDict()
        self._seen: dict[object, float] = {}
        self._free = time.monotonic()
        self._arrived = asyncio.Event()
        self._worker = Worker("model")
        self._running: asyncio.Task[None] | None = None
        self._batch: list[_Request] = []
        self._called: float | None = None
        self._closed = False
        self.slowest = 0.0
        """Seconds of the slowest model call so far."""

    @property
    def length(self) -> int:
        """Requests that wait."""
        return sum(map(len, self._waiting.values()))

    async def ask(self, observation: RobotDict, *, owner: str = "", robot: object = None) -> Answer:
        """The reply. owner: who takes turns with others. robot: who is expected to ask again soon, until `forget`.

        Raises what `infer` raises for this observation, and BusyError, at the end of the server too.
        """
        if self._closed:
            raise BusyError("the server ends")
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
            self._running.add_done_callback(self._ended)
        self._seen[robot] = time.monotonic()
        request = _Request(observation, owner, asyncio.get_running_loop().create_future())
        self._waiting.setdefault(owner, deque()).append(request)
        if self.length > self.max_queue:
            self._refuse_one(owner)
        self._arrived.set()
        try:
            return await request.answer
        finally:
            self._remove(request)

    def forget(self, robot: object) -> None:
        """That robot will not ask again."""
        self._seen.pop(robot, None)

    @property
    def calling(self) -> float:
        """Seconds that the model call which runs now has taken so far; 0 between calls."""
        return 0.0 if self._called is None else time.monotonic() - self._called

    @property
    def stuck(self) -> bool:
        """Whether the model call that runs now takes longer than any should."""
        return self.calling > max(LONGEST_CALL, TIMES_SLOWEST * self.slowest)

    async def close(self) -> None:
        """Ends; requests that still wait get BusyError, those of a model call that runs too: it is not waited for."""
        self._closed = True
        if self._running is not None:
            self._running.cancel()
            with suppress(asyncio.CancelledError):
                await self._running
        self._fail_all(BusyError("the server ends"))
        self._worker.close()

    def _ended(self, running: asyncio.Task[None]) -> None:
        error = RuntimeError("the batches ended")
        error.__cause__ = None if running.cancelled() else running.exception()
        self._fail_all(error)

    def _fail_all(self, error: Exception) -> None:
        """Every request that has no answer yet fails."""
        waiting = [request for requests in self._waiting.values() for request in requests]
        for request in (*self._batch, *waiting):
            if not request.answer.done():
                request.answer.set_exception(BusyError("the server ends") if self._closed else error)

    async def _run(self) -> None:
        while True:
            self._arrived.clear()
            if not self._waiting:
                await self._arrived.wait()
                continue
            await self._gather()
            self._batch = self._take()
            if self._batch:
                await self._answer(self._batch)
            self._batch = []

    async def _gather(self) -> None:
        """Waits for as many requests as can be expected, or for the deadline."""
        first = min(requests[0].asked for requests in self._waiting.values())
        deadline = max(first, self._free) + self.max_wait
        while self.length < min(self.max_batch, self._expected()):
            left = deadline - time.monotonic()
            if left <= 0:
                return
            self._arrived.clear()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), left)

    def _expected(self) -> int:
        now = time.monotonic()
        return max(1, sum(now - seen < RECENT for seen in self._seen.values()))

    def _take(self) -> list[_Request]:
        """Up to `max_batch` requests, one of each owner in turn; the owners served go to the end of the row."""
        batch: list[_Request] = []
        while self._waiting and len(batch) < self.max_batch:
            owner, requests = self._waiting.popitem(last=False)
            batch.append(requests.popleft())
            if requests:
                self._waiting[owner] = requests
        return batch

    async def _answer(self, batch: list[_Request]) -> None:
        started = time.monotonic()
        running = self._worker.run(self._call, [request.observation for request in batch])
        self._called = started
        replies = await running
        self._called, self._free = None, time.monotonic()
        seconds = self._free - started
        self.slowest = max(self.slowest, seconds)
        for request, reply in zip(batch, replies, strict=True):
            if request.answer.done():  # its robot is gone
                continue
            if isinstance(reply, Exception):
                request.answer.set_exception(reply)
            else:
                request.answer.set_result(Answer(reply, started - request.asked, seconds, len(batch)))

    def _call(self, observations: list[RobotDict]) -> Sequence[dict[str, Any] | Exception]:
        """The replies; where the batch fails, each observation alone, so that only the guilty one gets the error."""
        try:
            replies = self.infer(observations)
            if len(replies) != len(observations):
                raise RuntimeError(f"the policy gave {len(replies)} replies to {len(observations)} observations")
            return replies
        except BaseException as error:
            if len(observations) == 1:
                return [as_exception(error)]
        return [self._call([observation])[0] for observation in observations]

    def _refuse_one(self, newcomer: str) -> None:
        """The last request of the owner with most, or of the newcomer if it has as many."""
        most = max(map(len, self._waiting.values()))
        owner = next(owner for owner in (newcomer, *self._waiting) if len(self._waiting[owner]) == most)
        request = self._waiting[owner].pop()
        if not self._waiting[owner]:
            del self._waiting[owner]
        if not request.answer.done():
            request.answer.set_exception(BusyError(f"{self.max_queue} requests wait already; ask again in a moment"))

    def _remove(self, request: _Request) -> None:
        """Takes a request whose robot is gone out of the row."""
        requests = self._waiting.get(request.owner)
        if requests is not None and request in requests:
            requests.remove(request)
            if not requests:
                del self._waiting[request.owner]
