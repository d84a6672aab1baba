"""Several policy servers behind one address, by Ray Serve (extra `ray`): each connection stays with one of them."""

from __future__ import annotations

import dataclasses
import logging
import os
import queue
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

from pizero.serving.asgi import application
from pizero.serving.config import ServeConfig
from pizero.serving.hosted import Load
from pizero.serving.log import log, logging_to_stderr
from pizero.serving.running import END, RELOAD, SWITCH_S
from pizero.serving.server import RELOAD_PAUSE, PolicyServer, tell_ready
from pizero.types import UserError

NAME = "pizero"
QUIET = {"log_level": "WARNING", "enable_access_log": False}
"""How much Ray Serve logs; the servers' own events are logged as always."""
SPARE = 64
"""Requests of one replica beyond its robots: pages, health, metrics."""
Style = Literal["text", "json"]
Loads = Callable[[], Mapping[str, Load]]


class Replica:
    """One server, in a process of Ray's."""

    def __init__(self, loads: Loads, config: ServeConfig, style: Style) -> None:
        from ray import serve  # pyright: ignore[reportMissingImports]

        self._log = ExitStack()
        self._log.enter_context(logging_to_stderr(style))
        sys.setswitchinterval(SWITCH_S)
        name = serve.get_replica_context().replica_id.unique_id
        record = None if config.record is None else config.record / name
        self.server = PolicyServer(loads(), dataclasses.replace(config, replica=name, record=record))

    def __serve_build_asgi_app__(self) -> Any:
        return application(self.server)

    async def reload(self) -> None:
        await self.server.reload()

    async def drain(self) -> str:
        """What went wrong, as one line; nothing else."""
        try:
            await self.server.drain()
        except UserError as error:
            return str(error)
        return ""


def run(loads: Loads, config: ServeConfig, replicas: int, *, style: Style, gpu: bool) -> None:
    """Serves until SIGTERM or SIGINT, then drains; SIGHUP loads the checkpoints anew. gpu: one for each replica.

    UserError without Ray, or where the machines have too little for so many replicas.
    """
    if config.record is not None:
        config = dataclasses.replace(config, record=config.record.resolve())
    with Signals() as asked, _cluster(replicas, "GPU" if gpu else "CPU") as serve:
        asked.listen()  # Ray has handlers of its own since it began
        port = _listen(serve, config)
        deployment = serve.deployment(
            name=NAME, num_replicas=replicas, max_ongoing_requests=config.max_connections + SPARE,
            graceful_shutdown_timeout_s=config.drain_s, ray_actor_options={"num_cpus": 1, "num_gpus": int(gpu)},
        )  # fmt: skip
        bound = deployment(serve.ingress()(Replica)).bind(loads, config, style)
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        try:
            handle = serve.run(bound, name=NAME, route_prefix="/", logging_config=QUIET)
        except RuntimeError as error:
            raise UserError("the replicas did not start; the log above says why") from error
        tell_ready(config, port, list(loads()), replicas=replicas)
        while asked.next() == "reload":
            handle.broadcast("reload").results()
        log("draining", replicas=replicas)
        failed = [reason for reason in handle.broadcast("drain").results() if reason]
    log("ended")
    if failed:
        raise UserError("; ".join(failed))


class Signals:
    """What signals ask for, in turn: "reload" or "end". A context, after which they do what they did before it."""

    def __init__(self) -> None:
        self._asked: queue.SimpleQueue[Literal["reload", "end"]] = queue.SimpleQueue()
        self._before = {number: signal.getsignal(number) for number in (*END, RELOAD) if number}

    def listen(self) -> None:
        for number in END:
            signal.signal(number, lambda *_: self._asked.put("end"))
        if RELOAD is not None:
            signal.signal(RELOAD, lambda *_: self._asked.put("reload"))

    def __enter__(self) -> Signals:
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def next(self) -> Literal["reload", "end"]:
        """Those that came at about the same time are one; the end is before all others."""
        asked = {self._asked.get()}
        if asked == {"reload"}:
            time.sleep(RELOAD_PAUSE)
        while not self._asked.empty():
            asked.add(self._asked.get())
        return "end" if "end" in asked else "reload"


@contextmanager
def _cluster(replicas: int, resource: Literal["CPU", "GPU"]) -> Iterator[Any]:
    """Ray Serve, in the cluster that RAY_ADDRESS names or in one on this machine that ends with us."""
    for name, value in ("RAY_USAGE_STATS_ENABLED", "0"), ("RAY_DEDUP_LOGS", "0"), ("RAY_COLOR_PREFIX", "0"):
        os.environ.setdefault(name, value)
    try:
        import ray  # pyright: ignore[reportMissingImports]
        from ray import serve  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError("several replicas need Ray Serve: pip install 'pizero[ray]'") from error
    logging.getLogger("ray").setLevel(logging.WARNING)
    ray.init(include_dashboard=False, logging_level=logging.WARNING)
    try:
        there = int(ray.cluster_resources().get(resource, 0))
        if there < replicas:
            raise UserError(f"{replicas} replicas need as many {resource}s; the cluster has {there}")
        yield serve
    finally:
        serve.shutdown()
        ray.shutdown()


def _listen(serve: Any, config: ServeConfig) -> int:
    """The port. UserError where it is taken."""
    try:
        with socket.create_server((config.host, config.port), reuse_port=False) as free:
            port = free.getsockname()[1]
    except OSError as error:
        raise UserError(f"cannot listen on {config.host}:{config.port} ({error})") from error
    options: dict[str, Any] = {"host": config.host, "port": port}
    if config.certificate is not None:
        options |= {"ssl_certfile": str(config.certificate), "ssl_keyfile": str(config.private_key)}
    serve.start(proxy_location="EveryNode", http_options=options, logging_config=QUIET)
    return port
