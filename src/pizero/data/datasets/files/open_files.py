"""Open files shared by nobody: each thread and each process has its own, the most recently used are kept."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class OpenFiles(Generic[T]):
    """`get(path)` opens a file, or returns the one this thread opened before; at most `limit` stay open per thread.

    A decoder shared by two threads, or inherited over a fork, would mix up its read positions; hence the separation.
    Pickles without the open files.
    """

    def __init__(self, open_file: Callable[[Path], T], limit: int) -> None:
        self._open_file = open_file
        self._limit = limit
        self._local = threading.local()

    def get(self, path: Path) -> T:
        if getattr(self._local, "pid", None) != os.getpid():
            # Files inherited over a fork are kept, unused: closing them could wait for threads of the parent for ever.
            self._local.inherited = getattr(self._local, "files", None)
            self._local.pid = os.getpid()
            self._local.files = OrderedDict[Path, T]()
        files: OrderedDict[Path, T] = self._local.files
        if path not in files:
            files[path] = self._open_file(path)
            while len(files) > self._limit:
                files.popitem(last=False)
        files.move_to_end(path)
        return files[path]

    def __reduce__(self) -> tuple[Any, ...]:
        return OpenFiles, (self._open_file, self._limit)
