"""pizero quickstart: the whole job in the built-in simulator."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Arguments:
    """Collects scripted demonstrations in the built-in simulator, trains a tiny π0 on the CPU, evaluates it over 200
    episodes beside the demonstrator, random actions, swapped instructions and blank images, and writes a report.

    An interrupted run continues where it stopped.
    """

    output: Path = Path("runs/quickstart")
    """Folder for dataset, checkpoints, videos, results.json and report.html."""
    model: Literal["pi0", "pi05"] = "pi0"
    """pi05: adaptive RMSNorm and the state in the prompt."""


def run(arguments: Arguments) -> int:
    from pizero.workflows.demo import print_results
    from pizero.workflows.quickstart import quickstart

    results = quickstart(arguments.output, arguments.model)
    print_results(results, arguments.output)
    return 1 if results["errors"] else 0
