"""A thread of its own for a model: what runs there holds up neither the event loop nor the end of the process."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeAlias

_Task: TypeAlias = "tuple[Callable[..., Any], tuple[Any, ...], asyncio.AbstractEventLoop, asyncio.Future[Any]]"


class Worker:
    """Does one thing after the other, always in the same thread. The thread is a daemon: a call that never returns is
    left behind when the process ends, where a ThreadPoolExecutor would wait for it.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def run(self, work: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]:
        """The result of `work`, to be awaited; what it raises, as an Exception in every case. RuntimeError at once
        where its thread cannot be started.
        """
        loop = asyncio.get_running_loop()
        result = loop.create_future()
        if self._thread is None:
            thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            thread.start()  # where the system has none left, the next call tries again
            self._thread = thread
        self._tasks.put((work, arguments, loop, result))
        return result

    def close(self) -> None:
        """The thread ends after what it does now."""
        self._tasks.put(None)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            work, arguments, loop, result = task
            value: Any = None
            failure: Exception | None = None
            if not result.cancelled():
                try:
                    value = work(*arguments)
                except BaseException as error:
                    failure = as_exception(error)
            with suppress(RuntimeError):  # the event loop has ended meanwhile
                loop.call_soon_threadsafe(_settle, result, value, failure)
            del task, work, arguments, result, value, failure  # nothing is kept until the next one comes


def as_exception(error: BaseException) -> Exception:
    """What can be set on a future and ends no task that awaits it: GeneratorExit, CancelledError, SystemExit and
    StopIteration, which a model may raise as well, are wrapped.
    """
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    wrapped = RuntimeError(f"the model call ended by {type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped


def _settle(result: asyncio.Future[Any], value: Any, failure: Exception | None) -> None:
    if result.done():  # nobody waits any more
        return
    if failure is None:
        result.set_result(value)
    else:
        result.set_exception(failure)
