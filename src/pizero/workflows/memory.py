"""What the system says of memory (Linux)."""

from __future__ import annotations

from pathlib import Path


def free_memory() -> int | None:
    """Bytes that processes can still take; None where the system does not tell."""
    try:
        return proc_bytes(Path("/proc/meminfo"), "MemAvailable")
    except OSError:
        return None


def proc_bytes(path: Path, key: str) -> int:
    """A line such as "VmHWM: 12 kB" of a file in /proc, in bytes."""
    return 1024 * next(int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith(key))
