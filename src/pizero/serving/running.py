"""Runs a policy server: in the foreground until a signal, or in a thread beside other work."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pizero.serving.log import log
from pizero.serving.server import PolicyServer
from pizero.types import UserError


async def run(server: PolicyServer) -> None:
    """Serves until SIGTERM or SIGINT, then drains; SIGHUP loads the checkpoints anew.

    Where a model call is still running then, that cannot be stopped, the process ends here, with status 0, or 2 after a
    UserError: the interpreter cannot end in good order beside it.
    """
    await server.start()
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    reloads: set[asyncio.Task[None]] = set()

    def reload() -> None:
        task = asyncio.create_task(server.reload())
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    loop.add_signal_handler(signal.SIGHUP, reload)
    await ended.wait()
    try:
        await server.drain()
    except UserError as error:
        if server.left_behind:
            log("failed", level=logging.ERROR, reason=str(error))
            _end_process(2)
        raise
    if server.left_behind:
        _end_process(0)


def _end_process(status: int) -> None:
    logging.shutdown()
    sys.stderr.flush()
    os._exit(status)


@contextmanager
def background(make: Callable[[], PolicyServer]) -> Iterator[Background]:
    """A server in a thread of its own, drained at the end; `make` is called there."""
    running = Background(make)
    try:
        yield running
    finally:
        running.stop()


class Background:
    """A server that runs in a thread, and its event loop."""

    def __init__(self, make: Callable[[], PolicyServer]) -> None:
        self._make = make
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="server", daemon=True)
        self._thread.start()
        self._started.wait()
        if self._failure is not None:
            raise self._failure

    @property
    def uri(self) -> str:
        kind = "ws" if self.server.config.certificate is None else "wss"
        return f"{kind}://{self.server.config.host}:{self.server.port}"

    def call(self, work: Callable[[PolicyServer], object]) -> object:
        """Runs a function of the server, maybe asynchronous, in its event loop, and waits for it."""

        async def run_it() -> object:
            result = work(self.server)
            return await result if asyncio.iscoroutine(result) else result

        return asyncio.run_coroutine_threadsafe(run_it(), self.loop).result(60)

    def stop(self) -> None:
        """Drains it. Raises what went wrong in it since it started."""
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self._ended.set)
            self._thread.join(60)
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._failure = error
        finally:
            self._started.set()

    async def _serve(self) -> None:
        self.loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        self.server = self._make()
        await self.server.start()
        self._started.set()
        await self._ended.wait()
        await self.server.drain()
