"""pizero compare: the ladder from the diffusion baseline to π0."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Arguments:
    """Trains every rung from the diffusion policy to π0.5 on the same demonstrations, evaluates all of them on the same
    episodes, and writes a table, compare.json and report.html.

    An interrupted comparison goes on where it stopped; more seeds or rungs can be added to a finished one.
    """

    output: Path = Path("runs/compare")
    """Folder for dataset, runs, compare.json and report.html."""
    env: Literal["tabletop", "metaworld"] = "metaworld"
    """Simulator."""
    rungs: tuple[int, ...] = tuple(range(9))
    """0: the diffusion policy as it is, to 7: π0 and 8: π0.5."""
    seeds: tuple[int, ...] = (0,)
    """One training per rung and seed."""
    steps: int = 2_500
    """Optimizer steps of 32 samples, the same for all rungs."""
    demonstrations: int = 300
    """In all, shared by the tasks."""
    episodes: int = 10
    """Of each task, for the evaluation of a run."""
    tasks: tuple[str, ...] = ()
    """Tasks by name; all of the simulator's default tasks when none is given."""
    smoke: bool = False
    """A check of the machinery in minutes: the smallest networks, a few steps, the built-in simulator."""


def run(arguments: Arguments) -> int:
    from pizero.configs.ladder import LadderConfig
    from pizero.workflows.compare import CompareConfig, compare, print_comparison

    if arguments.smoke:
        config = CompareConfig(
            LadderConfig("tabletop", size="nano", steps=20, batch_size=8), arguments.rungs, arguments.seeds,
            demonstrations=20, episodes=2,
        )  # fmt: skip
    else:
        config = CompareConfig(
            LadderConfig(arguments.env, steps=arguments.steps), arguments.rungs, arguments.seeds, arguments.tasks,
            arguments.demonstrations, arguments.episodes,
        )  # fmt: skip
    results = compare(config, arguments.output)
    print_comparison(results, arguments.output)
    return 0
