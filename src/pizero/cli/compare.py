"""pizero compare: the ladder from the diffusion baseline to π0."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Arguments:
    """Trains every rung from the diffusion policy to π0.5 on the same demonstrations, evaluates all of them on the same
    episodes, and writes a table, compare.json and report.html.

    An interrupted comparison continues where it stopped; more seeds or rungs can be added to a finished one.
    """

    output: Path = Path("runs/compare")
    """Folder for dataset, runs, compare.json and report.html."""
    study: Literal["ladder", "single", "demonstrations", "steps", "rates"] = "ladder"
    """ladder: each rung on top of the one before. single: rung 0 with one change. demonstrations: 10 to 100 of each
    task. steps: trained rungs with 1 to 100 inference steps. rates: learning rates of each rung. One folder takes all.
    """
    env: str = "metaworld"
    """Simulator: tabletop, metaworld, metaworld-mt10, metaworld-mt50, pusht, or one that an installed package offers
    with a preset of the same name (docs/simulators.md)."""
    rungs: tuple[int, ...] = tuple(range(9))
    """0: the diffusion policy as it is, to 7: π0 and 8: π0.5."""
    seeds: tuple[int, ...] = (0,)
    """One training per variant and seed."""
    steps: int = 1_500
    """Optimizer steps of 32 samples, the same for all variants."""
    seconds: float = 0.0
    """Above 0: the same time for all variants instead, in CPU seconds of one core."""
    demonstrations: int = 50
    """Of each task."""
    episodes: int = 10
    """Of each task, for the evaluation of a run."""
    tasks: tuple[str, ...] = ()
    """Tasks by name; all of the simulator's default tasks when none is given."""
    workers: int = 2
    """Runs at a time, each on one core."""
    smoke: bool = False
    """A check of the machinery in minutes: the smallest networks, a few steps, the built-in simulator."""


def run(arguments: Arguments) -> int:
    from pizero.configs.ladder import LadderConfig
    from pizero.workflows.compare import CompareConfig, compare, print_comparison

    given = {name: getattr(arguments, name) for name in ("study", "rungs", "seeds", "workers")}
    if arguments.smoke:
        ladder = LadderConfig("tabletop", size="nano", steps=20, batch_size=8)
        config = CompareConfig(ladder, demonstrations=7, episodes=2, **given)
    else:
        ladder = LadderConfig(arguments.env, steps=arguments.steps, seconds=arguments.seconds)
        config = CompareConfig(ladder, arguments.tasks, arguments.demonstrations, arguments.episodes, **given)
    results = compare(config, arguments.output)
    print_comparison(results, arguments.output)
    return 0
