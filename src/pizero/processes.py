"""The processes of a run: a signal that ends it, as Ctrl-C does, and workers that do not outlive it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TypeVar

from pizero.types import UserError

Result = TypeVar("Result")

SECONDS_TO_END = 3.0
"""After a signal, for clean-up; then the process ends as it is, in the middle of a long step too."""
_WORKER_SECONDS = 1.5
_received: int | None = None
_busy = False


class Ended(KeyboardInterrupt):
    """A signal asked this process to end; what cleans up after Ctrl-C cleans up after it too. number: the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def usable_cores() -> int:
    """That this process may run on, which a container or `taskset` may make fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usual_threads(processes: int = 1) -> int:
    """For each of so many processes that share this machine: what OMP_NUM_THREADS says, else their share of the cores.

    The 1 that torchrun sets where nobody has chosen does not count.
    """
    said = os.environ.get("OMP_NUM_THREADS", "")
    if said.isdecimal() and int(said) > 0 and (processes == 1 or said != "1"):
        return int(said)
    return max(usable_cores() // processes, 1)


def received() -> int | None:
    """The signal that asked this process to end, if one did."""
    return _received


def interrupted() -> None:
    """Ctrl-C has ended what this process did: it leaves as after a signal."""
    global _received
    _received = signal.SIGINT


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Inside, in the main thread, SIGTERM and SIGHUP raise `Ended`, once; a signal that is ignored, as under nohup,
    stays ignored. Whatever hinders it, the process ends within SECONDS_TO_END, after Ctrl-C too.
    """
    numbers = [
        number for name in ("SIGTERM", "SIGHUP")
        if (number := getattr(signal, name, None)) is not None and signal.getsignal(number) == signal.SIG_DFL
    ]  # fmt: skip
    reading, writing = socket.socketpair()  # Windows has no pipe that does not block
    writing.setblocking(False)
    deadly = {*numbers, *([signal.SIGINT] if signal.getsignal(signal.SIGINT) is signal.default_int_handler else [])}
    threading.Thread(target=_end_in_time, args=(reading, deadly), name="ends in time", daemon=True).start()
    before = signal.set_wakeup_fd(writing.detach(), warn_on_full_buffer=False)
    for number in numbers:
        signal.signal(number, _raise_once)
    try:
        yield
    finally:
        if _received is None:
            for number in numbers:
                signal.signal(number, signal.SIG_DFL)
            signal.set_wakeup_fd(before)


def _raise_once(number: int, _: object) -> None:
    global _received
    if _received is None:
        _received = number
        raise Ended(number)


def _end_in_time(reading: socket.socket, numbers: set[int]) -> None:
    """Learns of a signal while the main thread is busy outside of Python, where no handler runs."""
    while (number := reading.recv(1)[0]) not in numbers:
        pass
    time.sleep(SECONDS_TO_END)
    os._exit(128 + number)


def leave_at_once() -> None:
    """For `atexit`, registered first so that it runs last: after a signal the interpreter is not taken apart, which
    takes seconds with large libraries.
    """
    if _received is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(128 + _received)


# -------------------------------------------------------------------- workers


def end_with_parent(_: object = None) -> None:
    """In a process of `multiprocessing`: ends it as soon as the one that started it is gone, however that happened."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent.join,), name="ends with parent", daemon=True).start()


def end_with_launcher() -> None:
    """The same in a process that another program started."""
    parent = os.getppid()

    def wait() -> None:
        while os.getppid() == parent:
            time.sleep(1)

    threading.Thread(target=_end_after, args=(wait,), name="ends with launcher", daemon=True).start()


def _end_after(wait: Callable[[], object]) -> None:
    wait()
    os._exit(1)


class Workers:
    """Processes that work for this one, as a context. They end with it: at once when it is interrupted, after what runs
    at any other exception, and on their own when it is killed. Ctrl-C is the business of this process alone.
    """

    def __init__(
        self,
        count: int,
        start: Callable[..., None] | None = None,
        arguments: tuple[Any, ...] = (),
        tasks_each: int | None = None,
    ) -> None:
        """start: called by each process first. tasks_each: after which a process gives way to a new one."""
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(count, context, _begin, (start, arguments), max_tasks_per_child=tasks_each)

    def submit(self, function: Callable[..., Result], *arguments: Any) -> Future[Result]:
        return self._pool.submit(_work, function, *arguments)

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and not issubclass(kind, Exception):
            self._end()
        self._pool.shutdown(wait=True, cancel_futures=kind is not None)
        if isinstance(value, BrokenProcessPool):
            raise UserError(
                "a worker process was ended from outside, perhaps for want of memory; try with fewer --workers"
            ) from None

    def _end(self) -> None:
        """Gives the workers time to clean up."""
        workers = list(dict(self._pool._processes or {}).values())  # public from Python 3.14 on
        results: Any = self._pool._result_queue
        self._pool.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.terminate()
        deadline = time.monotonic() + _WORKER_SECONDS
        for worker in workers:
            worker.join(max(deadline - time.monotonic(), 0))
            worker.kill()
        if results is not None:  # without this end open, nobody waits for the rest of what a worker was sending
            results._writer.close()


def _begin(start: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    end_with_parent()
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_worker)
    if start is not None:
        start(*arguments)


def _end_worker(number: int, _: object) -> None:
    if _busy:
        raise Ended(number)
    os._exit(128 + number)


def _work(function: Callable[..., Result], *arguments: Any) -> Result:
    global _busy
    _busy = True
    try:
        return function(*arguments)
    except Ended as ended:
        os._exit(128 + ended.number)
    except UserError as error:
        raise UserError(str(error)) from None  # one with more to it might not travel
    finally:
        _busy = False
