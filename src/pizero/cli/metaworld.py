"""pizero metaworld: the whole job on six Meta-World tasks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Arguments:
    """Collects demonstrations of six Meta-World tasks, trains one language-conditioned policy from scratch on the CPU,
    evaluates it over 50 episodes of each task, and writes a report. Needs the `sim` extra and OpenGL (EGL or OSMesa).

    An interrupted run continues where it stopped.
    """

    output: Path = Path("runs/metaworld")
    """Folder for dataset, checkpoints, videos, results.json and report.html."""
    model: Literal["pi0", "pi05"] = "pi0"
    """pi05: adaptive RMSNorm and the state in the prompt."""


def run(arguments: Arguments) -> int:
    from pizero.workflows.demo import print_results
    from pizero.workflows.metaworld import metaworld_demo

    results = metaworld_demo(arguments.output, arguments.model)
    print_results(results, arguments.output)
    return 1 if results["errors"] else 0
