"""What a training on a CPU tells the C library."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import sys
from pathlib import Path
import numpy as np
from pizero.workflows.memory import keep_freed_memory, proc_bytes

if sys.argv[1] == "keep":
    keep_freed_memory()
before = proc_bytes(Path("/proc/self/status"), "VmRSS")
blocks = [np.ones(1 << 23) for _ in range(2)]  # 64 MiB each
del blocks
print(proc_bytes(Path("/proc/self/status"), "VmRSS") - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_is_kept() -> None:
    kept, given_back = (
        int(subprocess.run([sys.executable, "-c", SCRIPT, way], capture_output=True, text=True, check=True).stdout)
        for way in ("keep", "as it comes")
    )
    assert given_back < 32 << 20 < 120 << 20 < kept
