"""Threads that owners use in turn, so that none waits for another's many pictures."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

_T = TypeVar("_T")


class Turns:
    """`run` does work in one of a few threads. Owners that wait take turns; one of the threads is always left to the
    others.
    """

    def __init__(self, threads: int = 5) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="prepare")
        self._free, self._most = threads, threads - 1
        self._running: Counter[str] = Counter()
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    async def run(self, owner: str, work: Callable[..., _T], *arguments: Any) -> _T:
        """The result of `work`; whatever it raises."""
        loop = asyncio.get_running_loop()
        if self._may_run(owner):
            self._take(owner)
        else:
            await self._turn(owner)
        try:
            running = self._pool.submit(work, *arguments)
        except BaseException:
            self._release(owner)
            raise

        def done(_: object) -> None:
            with suppress(RuntimeError):  # the event loop has ended meanwhile
                loop.call_soon_threadsafe(self._release, owner)

        running.add_done_callback(done)  # also where nobody waits for it any more
        return await asyncio.wrap_future(running)

    def shutdown(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _turn(self, owner: str) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(owner, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it was given meanwhile
                self._release(owner)
            elif owner in self._waiting and turn in self._waiting[owner]:
                self._waiting[owner].remove(turn)
                if not self._waiting[owner]:
                    del self._waiting[owner]
            raise

    def _may_run(self, owner: str) -> bool:
        return self._free > 0 and self._running[owner] < self._most

    def _take(self, owner: str) -> None:
        self._free -= 1
        self._running[owner] += 1

    def _release(self, owner: str) -> None:
        self._free += 1
        self._running[owner] -= 1
        if not self._running[owner]:
            del self._running[owner]
        following = next((owner for owner in self._waiting if self._may_run(owner)), None)
        if following is None:
            return
        turns = self._waiting.pop(following)
        self._take(following)
        turns.popleft().set_result(None)
        if turns:
            self._waiting[following] = turns  # at the end of the row
