"""pizero serve: a policy server for robots."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    from pizero.serving.config import ServeConfig
    from pizero.serving.hosted import Load


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
    host: str = "127.0.0.1"
    """Address to listen on; only this machine can connect unless told otherwise."""
    port: int = 8000
    """Port to listen on."""
    api_keys: Path | None = None
    """File of keys, one a line; a robot must then send one: Authorization: Api-Key KEY. A line "KEY admin" is of a key
    whose pages see and command all robots, not those of its own alone."""
    certificate: Path | None = None
    """PEM file for TLS, with --private-key."""
    private_key: Path | None = None
    """PEM file."""
    default_prompt: str | None = None
    """Instruction of robots that send none."""
    max_batch: int = 16
    """Requests of one model call."""
    max_wait_ms: float = 3.0
    """How long the first request of a batch waits for those of other robots."""
    max_queue: int = 64
    """Requests that may wait for one checkpoint; beyond, the answer is "busy"."""
    max_message_mb: int = 32
    """Size of one request."""
    max_connections: int = 256
    """Robots at once."""
    max_rate: float = 500.0
    """Requests a second of one connection."""
    idle_s: float = 3600.0
    """Seconds without a request after which a connection is closed."""
    replicas: int = 1
    """Servers behind one address, each with its own models: by Ray Serve, which the extra `ray` installs."""
    drain_s: float = 20.0
    """Seconds that running requests get when the server ends."""
    origins: tuple[str, ...] = ()
    """Names, besides localhost and addresses, under which browsers may open the page."""
    record: Path | None = None
    """Folder for what comes and goes, as a LeRobot dataset for each checkpoint, complete when the server ends."""
    record_fps: float | None = None
    """Requests a second of the recording; measured unless given."""
    log: Literal["text", "json"] = "text"
    """How events are written to standard error."""
    num_steps: int | None = None
    """Steps of sampling; without it the model's own number."""
    jacobian: Literal["paper", "identity"] = "paper"
    """How a model that was not trained for it continues a chunk; identity takes no longer than a chunk by itself."""
    device: str = "cpu"
    """Where the models run."""
    dtype: str = "float32"
    """Of the weights."""
    kernels: Literal["auto", "int8", "float8"] = "auto"
    """int8 (CPU) and float8 (NVIDIA) are faster and change the numbers; see `pizero bench int8`."""
    keep: tuple[str, ...] = ()
    """Layers that int8 or float8 leave alone, such as 'prefix.17.*'."""
    embodiment: str | None = None
    """Robot, where the checkpoint does not tell it; so the following."""
    norm_stats: Path | None = None
    """norm_stats.json of the robot's data, pizero's or openpi's, or the folder that holds it."""
    tokenizer: Path | None = None
    """SentencePiece model."""
    arch: Path | None = None
    """JSON with the model's sizes, as `pizero inspect --json` writes it."""


def run(arguments: Arguments) -> int:
    from functools import partial

    from pizero.policy.real_time import RealTime
    from pizero.serving.config import ServeConfig, read_keys
    from pizero.serving.log import logging_to_stderr
    from pizero.types import UserError
    from pizero.workflows.serve import loaders, named

    values = vars(arguments).copy()
    log, replicas = values.pop("log"), values.pop("replicas")
    if replicas < 1:
        raise UserError(f"replicas must be at least 1, got {replicas}")
    names = named(values.pop("checkpoints"))
    policy = {name: values.pop(name) for name in (
        "num_steps", "device", "dtype", "kernels", "keep", "embodiment", "norm_stats", "tokenizer", "arch"
    )}  # fmt: skip
    policy["real_time"] = RealTime(jacobian=values.pop("jacobian"))
    keys = values.pop("api_keys")
    config = ServeConfig(**values, api_keys=() if keys is None else read_keys(keys))
    loads = partial(loaders, names, **policy)
    with logging_to_stderr(log):
        if replicas == 1:
            import asyncio

            asyncio.run(_serve_alone(loads, config))
        else:
            from pizero.serving.replicas import run as serve_replicas

            serve_replicas(loads, config, replicas, style=log, gpu=arguments.device.startswith("cuda"))
    return 0


async def _serve_alone(loads: Callable[[], Mapping[str, Load]], config: ServeConfig) -> None:
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
    server, status = PolicyServer(loads(), config), 0
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
