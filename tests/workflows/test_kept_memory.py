"""What a training on a CPU tells the C library."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

SCRIPT = """
import sys
from pathlib import Path
import numpy as np
from pizero.workflows.memory import freed_memory_kept, keep_freed_memory, proc_bytes

if sys.argv[1] == "keep":
    keep_freed_memory()
if sys.argv[1] == "for a while":
    with freed_memory_kept():
        del [np.ones(1 << 23) for _ in range(2)][:]
before = proc_bytes(Path("/proc/self/status"), "VmRSS")
blocks = [np.ones(1 << 23) for _ in range(2)]  # 64 MiB each
del blocks
print(proc_bytes(Path("/proc/self/status"), "VmRSS") - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_is_kept_unless_the_environment_decides() -> None:
    own = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    assert _after(own, "as it comes") < 32 << 20
    assert _after(own, "keep") > 120 << 20
    assert _after(own, "for a while") < 32 << 20
    assert _after(own | {"MALLOC_TRIM_THRESHOLD_": "131072"}, "keep") < 32 << 20


def _after(environment: dict[str, str], way: str) -> int:
    command = [sys.executable, "-c", SCRIPT, way]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)
