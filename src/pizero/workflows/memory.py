"""Memory: what the system reports, and how to keep what was freed (Linux)."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def free_memory() -> int | None:
    """Bytes that processes can still take; None where the system does not report it."""
    try:
        return proc_bytes(Path("/proc/meminfo"), "MemAvailable")
    except OSError:
        return None


def proc_bytes(path: Path, key: str) -> int:
    """A line such as "VmHWM: 12 kB" of a file in /proc, in bytes."""
    return 1024 * next(int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith(key))


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Within it as after `keep_freed_memory`; afterwards memory is given back, by glibc's own limits."""
    keep_freed_memory()
    try:
        yield
    finally:
        if (library := _glibc()) is not None:
            library.mallopt(_M_MMAP_MAX, _DEFAULT_MMAP_MAX)
            library.mallopt(_M_TRIM_THRESHOLD, _DEFAULT_TRIM_THRESHOLD)
            library.malloc_trim(0)


def keep_freed_memory() -> None:
    """From now on this process takes memory that it freed again, and gives none back before it ends.

    With glibc alone, and not where the environment sets its MALLOC_ variables.

    As it comes, glibc returns large blocks to the system, and each step of a training on a CPU is handed new pages,
    which the kernel clears first: up to 15 % of a step, more in the first ones (docs/results/training.md).
    """
    if (library := _glibc()) is not None:
        library.mallopt(_M_MMAP_MAX, 0)
        library.mallopt(_M_TRIM_THRESHOLD, -1)


def _glibc() -> Any:
    """None where it is another C library, or where the environment decides."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    ours = hasattr(library, "malloc_trim") and not any(name.startswith("MALLOC_") for name in os.environ)
    return library if ours else None


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_DEFAULT_TRIM_THRESHOLD, _DEFAULT_MMAP_MAX = 128 << 10, 65_536
"""Of mallopt(3)."""
