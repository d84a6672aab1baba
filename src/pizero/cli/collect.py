"""pizero collect: demonstrations of a simulator as a LeRobot v3.0 dataset."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class Arguments:
    """Records demonstrations of a simulator's scripted demonstrator as a LeRobot v3.0 dataset.

    Example: pizero collect tabletop --output runs/tabletop-data --episodes 500
    """

    env: Annotated[str, tyro.conf.Positional]
    """Simulator: tabletop, tabletop-long, metaworld, metaworld-mt10, metaworld-mt50, metaworld-mt50-lerobot, pusht,
    aloha, so101, libero-spatial, libero-object, libero-goal, libero-10 (these four also with -published); one that
    an installed package offers; or module:function (docs/simulators.md)."""
    output: Path
    """Folder of the new dataset; it must not exist."""
    episodes: int = 100
    """Successful episodes to record, in all; the tasks take turns."""
    tasks: tuple[str, ...] = ()
    """Tasks by name; all of the simulator's default tasks when none is given."""
    seed: int = 0
    """Attempt k runs with seed + k."""
    noise: float | None = None
    """Standard deviation of the noise on the executed action, in its units, instead of the simulator's noise and
    pushes; the recorded action stays clean."""
    image_size: int | None = None
    """Pixels per side of every camera; without it the simulator's own number."""
    image_format: Literal["h264", "av1", "png"] = "h264"
    """Video, or PNG (exact, larger)."""
    workers: int = 1
    """Processes that run the simulator."""


def run(arguments: Arguments) -> int:
    from pizero.types import UserError
    from pizero.workflows.collect import CollectConfig, collect
    from pizero.workflows.progress import console, progress_bar

    if arguments.episodes < 1 or arguments.workers < 1 or (arguments.noise or 0) < 0:
        raise UserError("episodes and workers must be at least 1, noise at least 0")
    values = vars(arguments).copy()
    output = values.pop("output")
    with progress_bar() as bars:
        bar = bars.add_task("recording episodes", total=arguments.episodes, note="")
        result = collect(CollectConfig(**values), output, lambda done: bars.update(bar, completed=done))
    console.print(
        f"{result.episodes} episodes, {result.frames} frames in {result.seconds:.0f} s; the demonstrator succeeded in "
        f"{result.demonstrator_success_rate:.1%} of {result.attempts} attempts\ndataset: {output}"
    )
    return 0
