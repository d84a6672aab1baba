"""pizero robot: the robot file of a dataset, written from its own description."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Arguments:
    """Writes a robot file (TOML) from what a LeRobot dataset says of itself: cameras and their places, columns, joint
    targets, grippers, units; each guess with its reason, each doubt as a question. `pizero train` without --embodiment
    takes the same.

    Example: pizero robot my-data --output my_arm.toml
    """

    dataset: Annotated[Path, tyro.conf.Positional]
    """LeRobot dataset: its folder, of which meta/ is enough, or its id on the Hugging Face hub (owner/name)."""
    output: Path | None = None
    """File to write; without it the robot file goes to standard output."""


def run(arguments: Arguments) -> int:
    from pizero.workflows.own_robot import write_robot_file

    write_robot_file(arguments.dataset, arguments.output)
    return 0
