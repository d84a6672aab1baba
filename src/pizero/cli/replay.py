"""pizero replay: what a policy would do along a recorded episode."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Arguments:
    """A page to look at before the robot moves: a recorded episode's frames, recorded and predicted actions of every
    dimension over time, the chunks at every replan, and the error in robot units. Nothing is moved.

    Example: pizero replay runs/mine my-data --episode 3
    """

    checkpoint: Annotated[str, tyro.conf.Positional]
    """Checkpoint folder of any format, the folder of a run, whose newest checkpoint is taken, or a hub id."""
    dataset: Annotated[Path, tyro.conf.Positional]
    """LeRobot dataset: its folder, or its id on the Hugging Face hub (owner/name)."""
    episode: int
    """Number of the episode."""
    execution_horizon: int | None = None
    """Actions played before the next chunk is requested; by default half of a chunk."""
    embodiment: str | None = None
    """Robot, if the checkpoint does not record it: a name, a TOML file, module:function or the dataset's folder."""
    device: str = "cpu"
    """Where the model runs."""
    output: Path | None = None
    """Folder for episode_N.html and episode_N.json; without it `replay` in the run's or checkpoint's own."""


def run(arguments: Arguments) -> int:
    from pizero.workflows.replay_episode import ReplayConfig, replay_episode

    own = arguments.checkpoint if Path(arguments.checkpoint).exists() else "."
    config = ReplayConfig(
        arguments.episode, arguments.execution_horizon, arguments.embodiment, arguments.device
    )  # fmt: skip
    replay_episode(arguments.checkpoint, arguments.dataset, config, arguments.output or Path(own) / "replay")
    return 0
