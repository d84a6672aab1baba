"""pizero metaworld: the whole job on six Meta-World tasks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pizero.cli.demo import DemoArguments, run_demo


@dataclass(frozen=True)
class Arguments(DemoArguments):
    """Collects demonstrations of six Meta-World tasks, trains one language-conditioned policy from scratch on the CPU,
    evaluates it over 50 episodes of each task, and writes a report. Needs the `sim` extra and OpenGL (EGL or OSMesa).

    Called again it goes on with a finished recording and from the training's last checkpoint; it evaluates anew.
    """

    output: Path = Path("runs/metaworld")


def run(arguments: Arguments) -> int:
    from pizero.workflows.demo import metaworld_demo

    return run_demo(metaworld_demo, arguments)
