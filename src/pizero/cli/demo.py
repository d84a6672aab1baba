"""What `pizero quickstart` and `pizero metaworld` have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class DemoArguments:
    output: Path
    """Folder for dataset, checkpoints, videos, results.json and report.html."""
    model: Literal["pi0", "pi05"] = "pi0"
    """pi05: adaptive RMSNorm and the state in the prompt."""


def run_demo(demo: Callable[[Path, Literal["pi0", "pi05"]], dict[str, Any]], arguments: DemoArguments) -> int:
    from pizero.workflows.demo import print_results

    results = demo(arguments.output, arguments.model)
    print_results(results, arguments.output)
    return 1 if results["errors"] else 0
