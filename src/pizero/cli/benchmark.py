"""pizero benchmark: a suite of tasks from demonstrations to a row of a table."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Arguments:
    """Records demonstrations of a simulator's tasks (images in PNG), trains one language-conditioned policy from
    scratch, evaluates it beside the demonstrator and random actions, and writes report.html and a row of
    docs/results/benchmarks.md.

    Called again it goes on with a finished recording and from the training's last checkpoint; it evaluates anew.

    Example: pizero benchmark metaworld-mt10 --output runs/mt10
    """

    suite: Annotated[str, tyro.conf.Positional]
    """tabletop, tabletop-long, metaworld, metaworld-mt10, metaworld-mt50, pusht, aloha, so101, libero-spatial,
    libero-object, libero-goal or libero-10; with --preset any simulator that has a demonstrator."""
    output: Path
    """Folder for dataset, checkpoints, videos, results.json, report.html and benchmark.json."""
    tasks: tuple[str, ...] = ()
    """Some of the suite's tasks; without it all that its demonstrator does."""
    preset: str | None = None
    """How to train, as for `pizero train`; without it the suite's own preset."""
    demonstrations: int = 50
    """Of each task."""
    episodes: int = 50
    """Of each task, in the evaluation."""
    steps: int | None = None
    """Optimizer steps, instead of those of the preset."""
    workers: int = 1
    """Processes that record demonstrations."""
    at_least: float = 0.0
    """Success rate, 0 to 1, below which the exit status is 1."""


def run(arguments: Arguments) -> int:
    from pizero.types import UserError
    from pizero.workflows.benchmark import HEADER, BenchmarkConfig, benchmark, table_row
    from pizero.workflows.demo import print_results

    if min(arguments.demonstrations, arguments.episodes, arguments.workers) < 1:
        raise UserError("demonstrations, episodes and workers must be at least 1")
    if not 0 <= arguments.at_least <= 1:
        raise UserError(f"--at-least is a success rate from 0 to 1, got {arguments.at_least}")
    values = vars(arguments).copy()
    folder, at_least = values.pop("output"), values.pop("at_least")
    results = benchmark(BenchmarkConfig(**values, command=_command(arguments)), folder)
    print_results(results, folder)
    print(f"| {' | '.join(HEADER)} |\n{'|---' * len(HEADER)}|\n{table_row(results['row'])}")
    if results["row"]["undemonstrated"]:
        print(f"without {', '.join(results['row']['undemonstrated'])}: the demonstrator does not do them")
    if results["success_rate"] < at_least:
        print(f"success {results['success_rate']:.1%} is below {at_least:.1%}")
    return 1 if results["errors"] or results["success_rate"] < at_least else 0


def _command(arguments: Arguments) -> str:
    """The command without what does not change the result."""
    words = ["pizero", "benchmark", arguments.suite]
    for name in ("tasks", "preset", "demonstrations", "episodes", "steps"):
        value = getattr(arguments, name)
        if value != getattr(Arguments, name):
            words += [f"--{name}", *map(str, value if isinstance(value, tuple) else [value])]
    return shlex.join(words)
