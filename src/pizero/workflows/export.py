"""What `pizero export` shows while it works and when it is done."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from pizero.checkpoints.facts import GivenFacts
from pizero.export.export import Export, export
from pizero.workflows.progress import console, steps_shown, tell


def export_and_print(
    checkpoint: str, folder: Path, *, embodiment: str | None, norm_stats: Path | None, tokenizer: Path | None,
    **options: Any,
) -> Export:  # fmt: skip
    """`export` with its steps and its result in the terminal."""
    given = GivenFacts(embodiment, norm_stats, tokenizer, None)
    started = time.perf_counter()
    with steps_shown("opening") as show:
        result = export(checkpoint, folder, given=given, **options, on_step=lambda text: show(f"{text} ..."))
    seconds = time.perf_counter() - started
    console.print(f"{result.num_bytes / 1e6:,.1f} MB, {seconds:.0f} s")
    console.print(
        f"the example's chunk is at most {result.difference:.2g} from pizero's own in the robot's units, "
        f"{result.relative:.2g} of an action dimension's largest value (at most {result.tolerance:g} allowed)"
    )
    if result.layers:
        worst = sorted(result.layers, key=lambda name: -result.layers[name])[:3]
        console.print(
            "int8 in one layer alone moves the actions most in "
            + ", ".join(f"{name} ({result.layers[name]:.2g})" for name in worst)
        )
    for note in result.notes:
        tell("note", note)
    console.print(f"wrote {folder}")
    return result
