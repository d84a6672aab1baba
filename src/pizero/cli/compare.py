"""pizero compare: the ladder from the diffusion baseline to π0."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class Arguments:
    """Trains every rung from the diffusion policy to π0.5 on the same demonstrations, evaluates all of them on the same
    episodes, and writes a table, compare.json and report.html.

    With a LeRobot dataset nothing is played: the rungs learn from it, and the error of their actions on held-out
    episodes stands beside that of a constant action and of the action before.

    An interrupted comparison continues where it stopped; more seeds or rungs can be added to a finished one.
    """

    dataset: Annotated[str, tyro.conf.Positional] = ""
    """LeRobot folder or hub id of a real robot's recording, instead of a simulator."""
    skip_bad_episodes: bool = False
    """Skips episodes of the dataset whose files are missing, damaged or contradictory."""

    output: Path = Path("runs/compare")
    """Folder for dataset, runs, compare.json and report.html."""
    study: Literal["ladder", "single", "demonstrations", "steps", "rates"] = "ladder"
    """ladder: each rung on top of the one before. single: rungs 0, 6 and 7 with one change. demonstrations: 10
    to 100 of each task. steps: trained rungs with 1 to 100 inference steps. rates: learning rates of each rung. One
    folder takes all, demonstrations first: it records most."""
    env: str = "metaworld"
    """Simulator: tabletop, metaworld, metaworld-mt10, metaworld-mt50, pusht, or one that an installed package offers
    with a preset of the same name (docs/simulators.md)."""
    rungs: tuple[int, ...] = tuple(range(9))
    """0: the diffusion policy as it is, to 7: π0 and 8: π0.5; 9: π0-FAST."""
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
    """A check of the machinery in minutes: the smallest networks, a few steps, the built-in simulator if no dataset."""


def run(arguments: Arguments) -> int:
    from pizero.configs.ladder import LadderConfig
    from pizero.workflows.compare import CompareConfig, compare, print_comparison

    names = ("study", "rungs", "seeds", "workers", "dataset", "skip_bad_episodes")
    given = {name: getattr(arguments, name) for name in names}
    preset = "small" if arguments.dataset else "tabletop" if arguments.smoke else arguments.env
    if arguments.smoke:
        ladder = LadderConfig(preset, size="nano", steps=20, batch_size=8)
        config = CompareConfig(ladder, demonstrations=7, episodes=2, **given)
    else:
        ladder = LadderConfig(preset, steps=arguments.steps, seconds=arguments.seconds)
        config = CompareConfig(ladder, arguments.tasks, arguments.demonstrations, arguments.episodes, **given)
    results = compare(config, arguments.output)
    print_comparison(results, arguments.output)
    return 0
