"""pizero serve: a policy server for robots."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from pizero.serving import config

if TYPE_CHECKING:
    from pizero.serving.hosted import Load


@dataclass(frozen=True)
class Access(config.Access):
    """Where and to whom the server listens."""

    api_keys: Path | None = None
    """File of keys, one a line; a robot must then send one: Authorization: Api-Key KEY. A line "KEY admin" is of a key
    whose pages see and command all robots, not those of its own alone."""


@dataclass(frozen=True)
class Policy:
    """How the checkpoints are loaded and sampled."""

    device: str = "cpu"
    """Where the models run."""
    dtype: str = "float32"
    """Of the weights."""
    kernels: Literal["auto", "int8", "float8"] = "auto"
    """int8 (CPU) and float8 (NVIDIA) are faster and change the numbers; see `pizero bench int8`."""
    keep: tuple[str, ...] = ()
    """Layers that int8 or float8 leave alone, such as 'prefix.17.*'."""
    num_steps: int | None = None
    """Steps of sampling; without it the model's own number."""
    jacobian: Literal["paper", "identity"] = "paper"
    """How a model that was not trained for it continues a chunk; identity takes no longer than an ordinary chunk."""
    embodiment: str | None = None
    """Robot, if the checkpoint does not record it: a name, a TOML file, module:function, or the folder of a dataset
    that describes it. Same for the options below."""
    norm_stats: Path | None = None
    """norm_stats.json of the robot's data, pizero's or openpi's; the folder that holds it, or a dataset's."""
    tokenizer: Path | None = None
    """SentencePiece model."""
    codec: Path | None = None
    """Of a π0-FAST: folder of its action codec."""
    arch: Path | None = None
    """JSON with the model's sizes, as `pizero inspect --json` writes it."""


@tyro.conf.configure(tyro.conf.OmitArgPrefixes)
@dataclass(frozen=True)
class Arguments:
    """Serves a checkpoint to robots, by the wire protocol of openpi; a page at / shows what happens.

    Examples: pizero serve runs/tabletop
              pizero serve red=runs/a blue=runs/b --host 0.0.0.0 --api-keys keys.txt
              pizero serve base=runs/base lift=runs/base+runs/lift/checkpoints/0002000
              pizero serve runs/tabletop --device cuda --replicas 4

    SIGTERM answers what runs, then ends; SIGHUP loads the checkpoints anew without dropping a connection.
    """

    checkpoints: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Checkpoint folder of any format, folder of a run (its newest checkpoint), or hub id; with LoRA adapters
    BASE+ADAPTERS; of several, each NAME=PATH. Robots reach the first one at /, each at /NAME."""
    access: Access
    batches: config.Batches
    subtasks: config.Subtasks
    bounds: config.Bounds
    recording: config.Recording
    policy: Policy
    replicas: int = 1
    """Servers behind one address, each with its own models: by Ray Serve, which the extra `ray` installs."""
    log: Literal["text", "json"] = "text"
    """How events are written to standard error."""


def run(arguments: Arguments) -> int:
    from functools import partial

    from pizero.policy.real_time import RealTime
    from pizero.serving.log import logging_to_stderr
    from pizero.types import UserError
    from pizero.workflows.serve import loaders, named

    if arguments.replicas < 1:
        raise UserError(f"replicas must be at least 1, got {arguments.replicas}")
    names = named(arguments.checkpoints)
    policy = vars(arguments.policy).copy()
    policy["real_time"] = RealTime(jacobian=policy.pop("jacobian"))
    settings = {
        name: value
        for group in (arguments.access, arguments.batches, arguments.subtasks, arguments.bounds, arguments.recording)
        for name, value in vars(group).items()
    }
    keys = settings.pop("api_keys")
    serving = config.ServeConfig(**settings, api_keys=() if keys is None else config.read_keys(keys))
    loads = partial(loaders, names, **policy)
    with logging_to_stderr(arguments.log):
        if arguments.replicas == 1:
            import asyncio

            asyncio.run(_serve_alone(loads, serving))
        else:
            from pizero.serving.replicas import run as serve_replicas

            gpu = arguments.policy.device.startswith("cuda")
            serve_replicas(loads, serving, arguments.replicas, style=arguments.log, gpu=gpu)
    return 0


async def _serve_alone(loads: Callable[[], Mapping[str, Load]], settings: config.ServeConfig) -> None:
    """Where a model call is left behind, that cannot be stopped, the process ends here, with the status that it would
    have: the interpreter cannot end in good order beside it.
    """
    import logging

    from pizero.serving.log import log
    from pizero.serving.running import SWITCH_S
    from pizero.serving.running import run as serve
    from pizero.serving.server import PolicyServer
    from pizero.types import UserError

    sys.setswitchinterval(SWITCH_S)
    server, status = PolicyServer(loads(), settings), 0
    try:
        await serve(server)
    except UserError as error:
        if not server.left_behind:
            raise
        log("failed", level=logging.ERROR, reason=str(error))
        status = 2
    if server.left_behind:
        logging.shutdown()
        sys.stderr.flush()
        os._exit(status)
