"""pizero check: what is wrong with a dataset, before a training run is spent on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Arguments:
    """Examines a LeRobot dataset, and with a checkpoint whether both fit: findings with evidence and what to do.

    With a checkpoint it ends with a verdict: will it evaluate as it trained? Exits with 1 when there is an error among
    the findings, or something other than too little training speaks against it.
    Example: pizero check my-data --checkpoint runs/mine
    """

    dataset: Annotated[Path, tyro.conf.Positional]
    """LeRobot dataset: its folder, or its id on the Hugging Face hub (owner/name)."""
    checkpoint: str | None = None
    """Checkpoint or training run, of any format: replays recorded episodes and compares the actions."""
    embodiment: str | None = None
    """Robot, by name or as a TOML file; without it the checkpoint's, or all columns and cameras of the dataset."""
    horizon: int | None = None
    """Actions per chunk; without it the checkpoint's, or 50."""
    episodes: tuple[int, ...] = ()
    """Episodes to replay; without any those that the checkpoint's run held out, or all."""
    codec: str | None = None
    """FAST codec, a folder or a hub id: what it would lose of the actions."""
    subtasks: str | None = None
    """What the robot does when: a column of text or a CSV file (docs/data.md); by default the dataset's own."""
    output: Path | None = None
    """Folder for check.json and check.html, the same with pictures."""


def run(arguments: Arguments) -> int:
    from pizero.workflows.check import CheckConfig, check

    config = CheckConfig(
        arguments.checkpoint,
        arguments.embodiment,
        arguments.horizon,
        arguments.episodes,
        arguments.codec,
        arguments.subtasks,
    )
    results = check(arguments.dataset, config, arguments.output)
    verdict = results["verdict"] or {"aspects": []}
    wrong = any(part["state"] == "no" and part["aspect"] != "actions" for part in verdict["aspects"])
    return int(wrong or any(finding["severity"] == "error" for finding in results["findings"]))
