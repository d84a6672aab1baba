"""Metrics as JSON lines: one object per line, with the step it belongs to."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class MetricsFile:
    """Appends to `path`. A resumed run drops the lines after its checkpoint and goes on, so no step appears twice.

    Without a path, on a rank that is not the first, nothing is written.
    """

    def __init__(self, path: Path | None, resume_step: int = 0) -> None:
        if path is None:
            self._file = open(os.devnull, "w")  # noqa: SIM115
            return
        lines = [line for line in read_metrics(path) if line["step"] <= resume_step] if resume_step else []
        partial = path.with_name(path.name + ".partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in lines))
        os.replace(partial, path)
        self._file = path.open("a", buffering=1)

    def write(self, step: int, **values: Any) -> None:
        self._file.write(json.dumps({"step": step, **values}) + "\n")

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete lines; the last one may have been cut off by a kill."""
    lines: list[dict[str, Any]] = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines
