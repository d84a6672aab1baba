"""pizero fit-codec: a FAST codec for a dataset's actions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class Arguments:
    """Fits a FAST codec (actions as discrete tokens) to a dataset, and reports what it costs and what it loses there.

    Example: pizero fit-codec my-data --embodiment my_arm.toml --output codecs/my-arm
    """

    dataset: Annotated[Path, tyro.conf.Positional]
    """LeRobot dataset: its folder, or its id on the Hugging Face hub (owner/name)."""
    output: Path
    """New folder for the codec, in the layout of physical-intelligence/fast."""
    embodiment: str | None = None
    """Robot, by name or as a TOML file, with its relative actions; without it the dataset's own columns."""
    norm_stats: str | None = None
    """Statistics to normalise with: a file, or the checkpoint to train from; without it they are computed."""
    mode: Literal["zscore", "quantile"] = "quantile"
    """How to normalise with computed statistics."""
    horizon: int = 50
    """Actions per chunk."""
    vocab_size: int = 1024
    """Tokens at most; more of them make chunks shorter."""
    scale: float = 10.0
    """Coefficients per unit of a normalised action: a larger one is finer, with more tokens a chunk."""
    skip_bad_episodes: bool = False
    """Leaves out episodes whose files are missing, damaged or contradictory, with one warning that lists them."""


def run(arguments: Arguments) -> int:
    from rich.table import Table

    from pizero.data.doctor.names import dim_text
    from pizero.workflows.fit_codec import CodecConfig, fit_codec
    from pizero.workflows.progress import console

    config = CodecConfig(
        arguments.embodiment,
        arguments.norm_stats,
        arguments.mode,
        arguments.horizon,
        arguments.vocab_size,
        arguments.scale,
        arguments.skip_bad_episodes,
    )
    codec, found, counts = fit_codec(arguments.dataset, arguments.output, config)
    table = Table(title="error of decoded actions, robot units; the dimensions that lose most first")
    for heading in ("dimension", "median", "99 %", "worst", "rms by spread", "gripper on the wrong side"):
        table.add_column(heading, justify="left" if heading == "dimension" else "right")
    for dim in found.relative.argsort()[::-1].tolist():
        wrong = found.grippers.get(dim)
        table.add_row(
            dim_text("action", dim, found.names),
            *(f"{values[dim]:.3g}" for values in (found.median, found.p99, found.worst)),
            f"{100 * found.relative[dim]:.1f} %",
            "" if wrong is None else f"{100 * wrong:.2f} %",
        )
    console.print(table)
    tokens = found.tokens
    values = config.horizon * len(found.median)
    console.print(
        f"{tokens.mean():.1f} tokens a chunk (at most {tokens.max()}) for {values} values; measured on "
        f"{len(tokens)} chunks{' that the fit did not see' if counts['unseen'] else ''}",
        soft_wrap=True,
    )
    console.print(
        f"{codec.size} tokens, fitted on {counts['fitted']} chunks of {config.horizon}: {arguments.output}",
        soft_wrap=True,
    )
    return 0
