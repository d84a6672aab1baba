"""Runs a policy server: in the foreground until a signal, or in a thread beside other work."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress

from pizero.serving.server import PolicyServer

SWITCH_S = 0.001
"""For `sys.setswitchinterval` in a process that serves alone: the event loop does not wait 5 ms for the model's thread
to give way.
"""
END = (signal.SIGTERM, signal.SIGINT)
RELOAD: signal.Signals | None = getattr(signal, "SIGHUP", None)
"""Windows has none."""


async def run(server: PolicyServer) -> None:
    """Serves until SIGTERM or SIGINT, then drains; SIGHUP loads the checkpoints anew. In the main thread; signals do
    what they did before when it returns.

    Where `server.left_behind` then, the interpreter cannot end in good order: a model call that cannot be stopped runs.
    """
    await server.start()
    ended = asyncio.Event()
    reloads: set[asyncio.Task[None]] = set()

    def reload() -> None:
        task = asyncio.create_task(server.reload())
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    handlers: dict[signal.Signals, Callable[[], object]] = dict.fromkeys(END, ended.set)
    with _signals(handlers if RELOAD is None else {**handlers, RELOAD: reload}):
        await ended.wait()
        await server.drain()


@contextmanager
def _signals(handlers: dict[signal.Signals, Callable[[], object]]) -> Generator[None]:
    """What is done in the event loop at each signal meanwhile."""
    loop, before = asyncio.get_running_loop(), {number: signal.getsignal(number) for number in handlers}
    wakeup = signal.set_wakeup_fd(-1)
    try:
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
    except NotImplementedError:  # Windows, where the loop's own wake-up is enough
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        for number, handler in handlers.items():
            signal.signal(number, lambda *_, handler=handler: loop.call_soon_threadsafe(handler))
    try:
        yield
    finally:
        for number, handler in before.items():
            with suppress(NotImplementedError):
                loop.remove_signal_handler(number)
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)


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
