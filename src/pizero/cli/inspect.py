"""pizero inspect: the architecture as a table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Arguments:
    """Prints each box of the architecture with measured input and output shapes, parameters, FLOPs and share.

    Example: pizero inspect pi0 --mask mask.png
    """

    model: Annotated[str, tyro.conf.Positional] = "pi0"
    """pi0, pi05, pi0-fast, tabletop, metaworld, pusht (the presets), or a checkpoint folder."""
    cameras: int | None = None
    """Present cameras; without it all of the model's."""
    prompt_tokens: int | None = None
    """Without it the model's prompt length."""
    num_steps: int | None = None
    """Integration steps; without it the model's own number."""
    json: Path | None = None
    """File for the same as JSON, which --arch takes."""
    arch: Path | None = None
    """JSON with the model's sizes, for a checkpoint that does not record them."""
    mask: Path | None = None
    """PNG file for a picture of the attention mask."""


def run(arguments: Arguments) -> int:
    from rich.console import Console

    from pizero.workflows.inspect import inspect

    console = Console(width=max(Console().width, 110), markup=False, emoji=False)  # narrower, the figures would be cut
    inspect(arguments.model, console, **{k: v for k, v in vars(arguments).items() if k != "model"})
    return 0
