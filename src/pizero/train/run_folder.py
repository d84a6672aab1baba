"""The folder of a run: its checkpoints by step, and which of them are kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from pizero.files import write_bytes


def checkpoint_folder(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / f"{step:07d}"


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    paths = (folder / "checkpoints").glob("[0-9]" * 7)
    complete = ("state.pt", "shards/.metadata")  # of ranks that have all of the state, or parts of it
    return sorted(path for path in paths if any((path / "training_state" / name).is_file() for name in complete))


def note_best(folder: Path, step: int, metric: str, value: float) -> None:
    """best.json, which names the best checkpoint so far."""
    content = json.dumps({"step": step, "metric": metric, "value": value}) + "\n"
    write_bytes(folder / "best.json", content.encode())


def prune(folder: Path, keep: int, best: int | None) -> None:
    """Removes all checkpoints but the newest `keep` and that of step `best`."""
    for old in list_checkpoints(folder)[:-keep]:
        if best is None or old != checkpoint_folder(folder, best):
            shutil.rmtree(old)
