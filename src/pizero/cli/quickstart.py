"""pizero quickstart: the whole job in the built-in simulator."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pizero.cli.demo import DemoArguments, run_demo


@dataclass(frozen=True)
class Arguments(DemoArguments):
    """Collects scripted demonstrations in the built-in simulator, trains a tiny π0 on the CPU, evaluates it over 200
    episodes beside the demonstrator, random actions, swapped instructions and blank images, and writes a report.

    Called again it goes on with a finished recording and from the training's last checkpoint; it evaluates anew.
    """

    output: Path = Path("runs/quickstart")


def run(arguments: Arguments) -> int:
    from pizero.workflows.demo import quickstart

    return run_demo(quickstart, arguments)
