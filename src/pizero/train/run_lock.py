"""One training at a time in a run's folder, whoever starts it."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pizero.files import is_running
from pizero.types import UserError

LOCK = ".training.lock"
_PATIENCE = 5.0
"""Seconds for which processes that a killed training left may still hold its lock."""


@contextmanager
def only_training(folder: Path) -> Iterator[None]:
    """Makes `folder`, and keeps other trainings out of it until the end, or until this process is gone.

    UserError when another one is in it, with its process, or when nothing can be written there.
    """
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = _locked(folder / LOCK)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{folder} cannot be written ({reason}); give another --output, a folder of yours") from error
    try:
        yield
    finally:
        with suppress(OSError):
            (folder / LOCK).unlink(missing_ok=True)
        os.close(file)
        if is_new:
            with suppress(OSError):
                folder.rmdir()  # where nothing came of it


def _locked(path: Path) -> int:
    try:
        import fcntl
    except ImportError:  # no POSIX
        return os.open(path, os.O_RDWR | os.O_CREAT)
    ends = time.monotonic() + _PATIENCE
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _same(file, path):  # and not one that its owner took away in between
                os.truncate(file, 0)
                os.write(file, f"process {os.getpid()} on {platform.node()}, since {time.ctime()}".encode())
                return file
        except BlockingIOError:
            holder = os.pread(file, 200, 0).decode(errors="replace") or "another process"
            if time.monotonic() > ends or not _is_gone(holder):
                os.close(file)
                raise UserError(
                    f"{path.parent} is in use: {holder} trains into it; wait for its end, or give another --output"
                ) from None
            time.sleep(0.1)
        os.close(file)


def _same(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _is_gone(holder: str) -> bool:
    """Whether the process that wrote this is one of this machine and has ended."""
    words = holder.replace(",", "").split()
    if len(words) < 4 or not words[1].isdigit() or words[3] != platform.node():
        return False
    return not is_running(int(words[1]))
