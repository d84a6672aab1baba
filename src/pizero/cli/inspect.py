"""pizero inspect: the architecture as a table; with an observation, a page of what the policy does inside."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Look:
    """A page of what a policy does with one observation: attention, occlusion, flow, milliseconds."""

    dataset: Path | None = None
    """Where the observation comes from: a LeRobot dataset's folder, or its id on the Hugging Face hub."""
    episode: int = 0
    """Of the dataset."""
    frame: int = 0
    """Of the episode."""
    env: str | None = None
    """Or a simulator, such as tabletop, at the start of an episode."""
    task: str | None = None
    """Of the simulator; without it drawn from the seed."""
    seed: int = 0
    """Of the simulator's episode, and of the noise."""
    output: Path = Path("insight.html")
    """File for the page."""
    rerun: Path | None = None
    """File for the same as a recording for Rerun, NAME.rrd (extra rerun)."""


@tyro.conf.configure(tyro.conf.OmitArgPrefixes)
@dataclass(frozen=True)
class Arguments:
    """Prints each box of the architecture with measured input and output shapes, parameters, FLOPs and share. With
    --dataset or --env it writes a page of what the policy does with one observation instead.

    Examples: pizero inspect pi0 --mask mask.png
              pizero inspect runs/mine --dataset my-data --episode 3 --frame 20
              pizero inspect runs/quickstart/train --env tabletop --task lift
    """

    look: Look
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
    look = arguments.look
    if look.dataset is not None or look.env is not None or look.rerun is not None:
        from pizero.workflows.insight import InsightConfig, inspect_inside

        values = {name: value for name, value in vars(look).items() if name != "output"}
        config = InsightConfig(**values, num_steps=arguments.num_steps, arch=arguments.arch)
        inspect_inside(arguments.model, config, look.output)
        return 0
    from rich.console import Console

    from pizero.workflows.inspect import inspect

    console = Console(width=max(Console().width, 110), markup=False, emoji=False)  # narrower, the figures would be cut
    inspect(arguments.model, console, **{k: v for k, v in vars(arguments).items() if k not in ("model", "look")})
    return 0
