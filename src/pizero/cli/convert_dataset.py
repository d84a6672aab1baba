"""pizero convert-dataset: LeRobot v3.0 from older versions and from HDF5."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class Arguments:
    """Writes a LeRobot v3.0 dataset from one of LeRobot v2.0 or v2.1, robomimic or ACT.

    LeRobot's video files are copied as they are. `pizero train` reads v2 datasets too; convert them for LeRobot itself.
    Example: pizero convert-dataset demo.hdf5 my-data --fps 20 --prompt "lift the cube"
    """

    source: Annotated[str, tyro.conf.Positional]
    """LeRobot folder or hub id, robomimic file, ACT file or folder of ACT files."""
    target: Annotated[Path, tyro.conf.Positional]
    """New folder."""
    fps: float | None = None
    """Frames a second; required for HDF5, which does not store it."""
    prompt: str | None = None
    """Instruction of every episode; required for HDF5."""
    image_format: Literal["h264", "av1", "png"] = "h264"
    """How images of HDF5 are stored."""
    skip_bad_episodes: bool = False
    """Skips episodes of LeRobot datasets whose files are missing, damaged or contradictory, with one warning."""


def run(arguments: Arguments) -> int:
    from pizero.workflows.convert_dataset import convert_dataset
    from pizero.workflows.progress import console, progress_bar

    with progress_bar() as bars:
        bar = bars.add_task("episodes", total=None, note="")
        result = convert_dataset(
            arguments.source, arguments.target, fps=arguments.fps, prompt=arguments.prompt,
            image_format=arguments.image_format, skip_bad_episodes=arguments.skip_bad_episodes,
            on_progress=lambda done, total: bars.update(bar, completed=done, total=total),
        )  # fmt: skip
    console.print(f"{result.episodes} episodes, {result.frames} frames: {arguments.target}")
    return 0
