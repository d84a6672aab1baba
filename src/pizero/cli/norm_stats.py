"""pizero norm-stats: statistics of a dataset's state and actions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class Arguments:
    """Mean, standard deviation, extremes and quantiles of state and actions, exact, from the parquet files alone.

    Example: pizero norm-stats runs/tabletop-data --embodiment tabletop
    """

    dataset: Annotated[Path, tyro.conf.Positional]
    """LeRobot dataset: its folder, or its id on the Hugging Face hub (owner/name)."""
    embodiment: str | None = None
    """Robot, by name or as a TOML file, whose relative actions are taken into account; without it the one that
    the dataset describes."""
    mode: Literal["zscore", "quantile"] = "zscore"
    """How to normalise with them: zscore for π0, quantile for π0.5. Stored in the file."""
    horizon: int = 50
    """Action horizon, for relative actions."""
    format: Literal["pizero", "openpi", "lerobot"] = "pizero"
    """Whose file to write. openpi: norm_stats.json, which it looks for in assets/<asset id>. lerobot: the dataset's
    stats.json with exact statistics of its numbers, quantiles included."""
    output: Path | None = None
    """File to write; without it (pizero's alone) norm_stats.json inside the dataset's meta folder."""
    skip_bad_episodes: bool = False
    """Skips episodes whose files are missing, damaged or contradictory, with one warning that lists them."""


def run(arguments: Arguments) -> int:
    from rich.table import Table

    from pizero.workflows.norm_stats import norm_stats
    from pizero.workflows.progress import console

    stats, path, frames, seconds = norm_stats(
        arguments.dataset,
        arguments.embodiment,
        arguments.mode,
        arguments.horizon,
        arguments.output,
        arguments.skip_bad_episodes,
        arguments.format,
    )
    for name, values in (("state", stats.state), ("actions", stats.actions)):
        table = Table(title=name)
        for heading in ("dim", *values.to_json()):
            table.add_column(heading, justify="right")
        for dim in range(values.dim):
            table.add_row(str(dim), *(f"{column[dim]:.4g}" for column in values.to_json().values()))
        console.print(table)
    console.print(f"{frames} frames in {seconds:.2f} s, mode {stats.mode}: {path}")
    return 0
