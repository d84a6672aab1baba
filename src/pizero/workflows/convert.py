"""What `pizero convert` shows while it works and when it is done."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from pizero.checkpoints.convert import Conversion, convert
from pizero.checkpoints.facts import GivenFacts
from pizero.workflows.progress import console, steps_shown, tell


def convert_and_print(
    source: str, target: Path, to: str, *,
    embodiment: str | None, norm_stats: Path | None, tokenizer: Path | None, codec: Path | None = None, **options: Any,
) -> Conversion:  # fmt: skip
    """`checkpoints.convert` with its steps and its result in the terminal."""
    given = GivenFacts(embodiment, norm_stats, tokenizer, codec)
    started = time.perf_counter()
    with steps_shown("opening") as show:
        result = convert(source, target, to, given=given, **options, on_step=lambda text: show(f"{text} ..."))
    seconds = time.perf_counter() - started
    console.print(
        f"{result.source} -> {result.target}: {result.parameters:,} parameters, {' and '.join(result.dtypes)}, "
        f"{result.num_bytes / 1e9:.3g} GB, {seconds:.0f} s"
    )
    console.print(
        f"sampled actions of source and result: at most {result.difference:.2g} apart "
        f"(the greatest action is {result.largest:.2g})"
    )
    console.print(f"comes along: {', '.join(result.known) or 'nothing'}")
    if result.unknown:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in result.unknown)
        console.print(f"not recorded by the source; to run it as a policy give {names}")
    for note in result.notes:
        tell("note", note)
    console.print(f"wrote {target}")
    return result
