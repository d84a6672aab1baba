"""A process of its own that answers a line with a line, and sleeps between; both sides of a comparison in turns."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

from pizero.workflows.memory import proc_bytes


class Worker:
    """Started when it says "ready"; what it says before is printed where `name` is given."""

    def __init__(self, command: list[str], name: str | None = None, env: Mapping[str, str] | None = None) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        while (line := self._answer()) != "ready":
            if name is not None:
                print(f"  {name}: {line}")

    def ask(self, line: str = "") -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        return self._answer()

    def peak(self) -> int:
        """Bytes that it has held at most."""
        return proc_bytes(Path(f"/proc/{self._process.pid}/status"), "VmHWM")

    def close(self) -> None:
        self._process.kill()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("a worker ended")
        return line.strip()
