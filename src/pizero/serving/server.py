"""The policy server: openpi's wire protocol, several robots, several checkpoints.

A robot connects to / (the first checkpoint) or /NAME, gets the metadata, and then a reply for each request. A reply is
the chunk as bytes, or an error as text, "bad request: ...", "busy: ..." or "failed: ..."; the connection stays open.
At /vla-eval or /NAME/vla-eval it speaks as allenai's evaluation harness expects.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.frames import CloseCode
from websockets.http11 import Request, Response

from pizero.serving.admission import Admission
from pizero.serving.config import ServeConfig
from pizero.serving.connection import Connection
from pizero.serving.feed import LARGEST_COMMAND, Feed
from pizero.serving.gate import LIVE
from pizero.serving.hosted import Load
from pizero.serving.listener import FIRST_BYTES, PAGE, ROBOT, Newcomers, PacedConnection, most_newcomers
from pizero.serving.log import log
from pizero.serving.robots import Robots
from pizero.serving.service import Service
from pizero.types import UserError

RELOAD_PAUSE = 0.1
"""Seconds before a reload begins."""
CLOSING_S = 3.0
"""Seconds that connections get to close when the server ends, after those that running requests get."""


class PolicyServer:
    """Begins, serves, loads anew and ends. checkpoints: name -> how its policy is loaded; the first is the one at /."""

    def __init__(self, checkpoints: Mapping[str, Load], config: ServeConfig | None = None) -> None:
        self.config = config or ServeConfig()
        self.service = Service(checkpoints, self.config)
        self.robots, self.feed = Robots(self.service), Feed(self.service)
        self.admit = Admission(self.service, self.robots, self.feed).admit
        self._open: set[Connection] = set()
        self._server: Server | None = None
        self._reloading, self._reload_waits = asyncio.Lock(), False

    @property
    def port(self) -> int:
        """Where it listens."""
        assert self._server is not None
        return next(iter(self._server.sockets)).getsockname()[1]

    async def start(self) -> None:
        """Listens. UserError where that cannot be."""
        config, ping, quiet = self.config, self.config.ping_s, logging.Logger("websockets", logging.CRITICAL)
        paced: Any = partial(PacedConnection, newcomers=Newcomers(most_newcomers()))
        try:
            self._server = await serve(
                self.connected, config.host, config.port, ssl=_tls(config),
                process_request=self._let_in, create_connection=paced, max_size=FIRST_BYTES,
                compression=None, max_queue=2, ping_interval=ping, ping_timeout=ping,
                close_timeout=min(5.0, ping), logger=quiet, server_header="pizero",
            )  # fmt: skip
        except OSError as error:
            raise UserError(f"cannot listen on {config.host}:{config.port} ({error})") from error
        tell_ready(config, self.port, list(self.service.hosted))

    async def drain(self) -> None:
        """Takes no new connection, answers what runs, closes all connections, ends. UserError where a recording
        could not be completed; everything else has ended then as well.
        """
        self.service.draining = True
        log("draining", robots=len(self.robots.connected))
        if self._server is not None:
            self._server.close(close_connections=False)
        await self.feed.simulation.stop()
        deadline = time.monotonic() + self.config.drain_s
        closing = _close([connection for connection, robot in self.robots.connected.items() if not robot.busy])
        while self.robots.connected and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        closing += _close(list(self._open))  # pages, and robots whose answer did not come in time
        await asyncio.sleep(0)  # they are told before their requests fail
        for hosted in self.service.hosted.values():
            if hosted.batcher.calling:
                log("a model call still runs; it is not waited for", level=logging.WARNING, checkpoint=hosted.name,
                    seconds=hosted.batcher.calling)  # fmt: skip
            await hosted.batcher.close()
        if self._server is not None:
            closing.append(asyncio.create_task(self._server.wait_closed()))
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(*closing, return_exceptions=True), CLOSING_S)
        self.service.turns.shutdown()
        failed = await self._end_recordings()
        log("ended")
        if failed:
            raise UserError("; ".join(failed))

    async def _end_recordings(self) -> list[str]:
        """What went wrong with some, which keeps none of the others from its end."""
        failed: list[str] = []
        for hosted in self.service.hosted.values():
            if hosted.recorder is None:
                continue
            try:
                await hosted.recorder.close()
            except Exception as error:
                known = isinstance(error, UserError)
                log("recording failed", level=logging.ERROR, error=None if known else error, checkpoint=hosted.name,
                    reason=str(error))  # fmt: skip
                failed.append(str(error))
        return failed

    @property
    def left_behind(self) -> bool:
        """Whether something that was not waited for still runs in a thread after `drain`."""
        return self._reloading.locked() or any(hosted.batcher.calling for hosted in self.service.hosted.values())

    async def reload(self) -> None:
        """Loads every checkpoint anew; connections stay. One that fails stays as it was.

        What asks while another one waits to begin is answered by that one.
        """
        if self._reload_waits:
            return
        self._reload_waits = True
        async with self._reloading:
            await asyncio.sleep(RELOAD_PAUSE)  # many signals are one
            self._reload_waits = False
            for name, hosted in self.service.hosted.items():
                if self.service.draining:
                    return
                started = time.monotonic()
                try:
                    await hosted.reload(self.config.max_batch)
                except Exception as error:
                    known = isinstance(error, UserError)
                    self.service.metrics.reloads.labels(name, "failed").inc()
                    log("not reloaded", level=logging.ERROR, error=None if known else error, checkpoint=name,
                        reason=str(error))  # fmt: skip
                else:
                    self.service.metrics.reloads.labels(name, "done").inc()
                    log("reloaded", checkpoint=name, seconds=time.monotonic() - started)

    def _let_in(self, connection: ServerConnection, request: Request) -> Response | None:
        response = self.admit(request, _address(connection))
        if response is None and isinstance(connection, PacedConnection):
            if request.path.split("?")[0] != LIVE:
                connection.let_in(ROBOT, self.config.max_message_mb << 20)
            elif not self.config.api_keys:
                connection.let_in(PAGE, LARGEST_COMMAND)
        return response

    async def connected(self, connection: Connection) -> None:
        """Serves a connection that was let in, until it ends."""
        assert connection.request is not None
        path, address = connection.request.path.split("?")[0], _address(connection)
        self._open.add(connection)
        try:
            if path == LIVE:
                await self.feed.serve(connection, address)
            else:
                owner = self.service.gate.owner(connection.request, address)
                assert owner is not None  # as the admission saw
                await self.robots.serve(connection, path, address, owner)
        finally:
            self._open.discard(connection)


def _close(connections: list[Connection]) -> list[asyncio.Task[None]]:
    return [asyncio.create_task(each.close(CloseCode.GOING_AWAY, "the server ends")) for each in connections]


def tell_ready(config: ServeConfig, port: int, checkpoints: list[str], **fields: Any) -> None:
    """Logs where and how robots connect."""
    secured = "TLS" if config.certificate else "no TLS"
    keys = f"{len(config.api_keys)} API keys" if config.api_keys else "no API keys"
    log("ready", host=config.host, port=port, checkpoints=checkpoints, security=f"{secured}, {keys}", **fields)
    if not config.local_only and not config.api_keys:
        log("anybody who reaches this machine can use the server; give --api-keys", level=logging.WARNING)


def _address(connection: Connection) -> str:
    with suppress(Exception):
        return str(connection.remote_address[0])
    return "unknown"


def _tls(config: ServeConfig) -> ssl.SSLContext | None:
    if config.certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(config.certificate, config.private_key)
    except (OSError, ssl.SSLError) as error:
        raise UserError(f"{config.certificate} and its private key cannot be used ({error})") from error
    return context
