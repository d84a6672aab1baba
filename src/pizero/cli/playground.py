"""pizero playground: a page to watch a policy, talk to it, and get in its way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Arguments:
    """A page on this machine: choose a scene, type an instruction, watch the policy act and its chunks come out of the
    noise; move an object with the mouse; change steps, horizon, delay and noise. For policies of the built-in
    simulator's robot.

    Examples: pizero playground
              pizero playground runs/mine --beside runs/diffusion
              pizero playground runs/plans --beside flat
    """

    checkpoint: Annotated[str | None, tyro.conf.Positional] = None
    """Checkpoint folder, folder of a run or hub id; without it the quick start's policy, trained first if there is
    none."""
    beside: str | None = None
    """A second policy in the same scene, with the same noise: a checkpoint, or flat for the first one without the text
    that it writes."""
    port: int = 8010
    """Of the page."""


def run(arguments: Arguments) -> int:
    import asyncio

    from pizero.serving.playground.server import PlaygroundServer
    from pizero.workflows.playground import find_checkpoint, players
    from pizero.workflows.progress import console

    server = PlaygroundServer(players(find_checkpoint(arguments.checkpoint), arguments.beside), arguments.port)

    async def serve() -> None:
        await server.start()
        console.print(f"playground: http://127.0.0.1:{server.port}/   (Ctrl-C ends it)")
        await asyncio.Event().wait()

    asyncio.run(serve())
    return 0
