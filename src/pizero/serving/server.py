"""The policy server: openpi's wire protocol, several robots, several checkpoints.

A robot connects to / (the first checkpoint) or /NAME, gets the metadata, and then a reply for each request. A reply is
the chunk as bytes, or an error as text, "bad request: ...", "busy: ..." or "failed: ..."; the connection goes on.
At /vla-eval or /NAME/vla-eval it speaks as allenai's evaluation harness expects.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from typing import Any

import numpy as np
from numpy.typing import NDArray
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request, Response

from pizero.serving import vla_eval
from pizero.serving.batching import BusyError
from pizero.serving.config import ServeConfig
from pizero.serving.connection import Connection
from pizero.serving.feed import ADDRESS_PAGES, LARGEST_COMMAND, MOST_PAGES, Feed
from pizero.serving.gate import LIVE, Gate, not_found, page_file, respond, wants_websocket
from pizero.serving.hosted import Hosted, Load, Message
from pizero.serving.listener import FIRST_BYTES, PAGE, ROBOT, Allowance, Newcomers, PacedConnection, most_newcomers
from pizero.serving.live import Live, Robot
from pizero.serving.log import log
from pizero.serving.metrics import Metrics
from pizero.serving.protocol import ProtocolError, pack
from pizero.serving.turns import Turns
from pizero.types import RobotDict, UserError

_QUIET = logging.getLogger("pizero.serving.websockets")
_QUIET.setLevel(logging.CRITICAL)
RELOAD_PAUSE = 0.1
"""Seconds before a reload begins."""
CLOSING_S = 3.0
"""Seconds that connections get to close when the server ends, after those that running requests get."""


class PolicyServer:
    """checkpoints: name -> how its policy is loaded; the first is the one at /."""

    def __init__(self, checkpoints: Mapping[str, Load], config: ServeConfig | None = None) -> None:
        self.config = config or ServeConfig()
        self.hosted = {name: Hosted.start(name, load, self.config) for name, load in checkpoints.items()}
        self.live, self.metrics, self.gate = Live(), Metrics(), Gate(self.config)
        self.draining = False
        self.turns = Turns()
        self.feed = Feed(self)
        self._open: set[Connection] = set()
        self._connections: dict[Connection, Robot] = {}
        self._server: Server | None = None
        self._reloading, self._reload_waits = asyncio.Lock(), False
        for name, hosted in self.hosted.items():
            self.metrics.watch_queue(name, lambda hosted=hosted: hosted.batcher.length)

    @property
    def port(self) -> int:
        """Where it listens."""
        assert self._server is not None
        return next(iter(self._server.sockets)).getsockname()[1]

    async def start(self) -> None:
        """Listens. UserError where that cannot be."""
        sys.setswitchinterval(0.001)  # the event loop does not wait 5 ms for the model's thread to give way
        config, ping = self.config, self.config.ping_s
        paced: Any = partial(PacedConnection, newcomers=Newcomers(most_newcomers()))
        try:
            self._server = await serve(
                self.connected, config.host, config.port, ssl=_tls(config),
                process_request=self._let_in, create_connection=paced, max_size=FIRST_BYTES,
                compression=None, max_queue=2, ping_interval=ping, ping_timeout=ping,
                close_timeout=min(5.0, ping), logger=_QUIET, server_header="pizero",
            )  # fmt: skip
        except OSError as error:
            raise UserError(f"cannot listen on {config.host}:{config.port} ({error})") from error
        tell_ready(config, self.port, list(self.hosted))

    async def drain(self) -> None:
        """Takes no new connection, answers what runs, closes all connections, ends. UserError where a recording
        could not be completed; everything else has ended then as well.
        """
        self.draining = True
        log("draining", robots=len(self._connections))
        if self._server is not None:
            self._server.close(close_connections=False)
        await self.feed.simulation.stop()
        deadline = time.monotonic() + self.config.drain_s
        closing = _close([connection for connection, robot in self._connections.items() if not robot.busy])
        while self._connections and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        closing += _close(list(self._open))  # pages, and robots whose answer did not come in time
        await asyncio.sleep(0)  # they are told before their requests fail
        for hosted in self.hosted.values():
            if hosted.batcher.calling:
                log("a model call still runs; it is not waited for", level=logging.WARNING, checkpoint=hosted.name,
                    seconds=hosted.batcher.calling)  # fmt: skip
            await hosted.batcher.close()
        if self._server is not None:
            closing.append(asyncio.create_task(self._server.wait_closed()))
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(*closing, return_exceptions=True), CLOSING_S)
        self.turns.shutdown()
        failed = await self._end_recordings()
        log("ended")
        if failed:
            raise UserError("; ".join(failed))

    async def _end_recordings(self) -> list[str]:
        """What went wrong with some, which keeps none of the others from its end."""
        failed: list[str] = []
        for hosted in self.hosted.values():
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

    def ill(self) -> str:
        """Why robots get no answers; nothing where they do."""
        stuck = {name: hosted.batcher.calling for name, hosted in self.hosted.items() if hosted.batcher.stuck}
        return "; ".join(f"the model call of {name} runs for {seconds:.0f} s" for name, seconds in stuck.items())

    @property
    def left_behind(self) -> bool:
        """Whether something that was not waited for still runs in a thread after `drain`."""
        return self._reloading.locked() or any(hosted.batcher.calling for hosted in self.hosted.values())

    async def reload(self) -> None:
        """Loads every checkpoint anew; connections stay. One that fails goes on as it was.

        What asks while another one waits to begin is answered by that one.
        """
        if self._reload_waits:
            return
        self._reload_waits = True
        async with self._reloading:
            await asyncio.sleep(RELOAD_PAUSE)  # many signals are one
            self._reload_waits = False
            for name, hosted in self.hosted.items():
                if self.draining:
                    return
                started = time.monotonic()
                try:
                    await hosted.reload(self.config.max_batch)
                except Exception as error:
                    known = isinstance(error, UserError)
                    self.metrics.reloads.labels(name, "failed").inc()
                    log("not reloaded", level=logging.ERROR, error=None if known else error, checkpoint=name,
                        reason=str(error))  # fmt: skip
                else:
                    self.metrics.reloads.labels(name, "done").inc()
                    log("reloaded", checkpoint=name, seconds=time.monotonic() - started)

    async def ask(
        self, hosted: Hosted, robot: Robot, observation: RobotDict, prepared: RobotDict, started: float
    ) -> dict[str, Any]:
        """The reply to an observation, with "server_timing"; the robot's figures, the metrics and the recording learn
        of it. started: when its preparation did.
        """
        robot.prompt = robot.prompt if robot.new_prompt is not None else observation.get("prompt", "")
        seconds = {"prepare": time.monotonic() - started}
        answer = await hosted.batcher.ask(prepared, owner=robot.owner, robot=robot)
        seconds |= {"queue": answer.queued, "infer": answer.inferred}
        for stage, value in seconds.items():
            self.metrics.stages.labels(hosted.name, stage).observe(value)
        self.metrics.batches.labels(hosted.name).observe(answer.batch)
        self.metrics.requests.labels(hosted.name).inc()
        robot.timing = {f"{stage}_ms": 1000 * value for stage, value in seconds.items()} | {"batch": answer.batch}
        robot.remember(observation, answer.reply["actions"], time.monotonic() - started)
        if hosted.recorder is not None:
            await hosted.recorder.add(robot.number, observation, answer.reply["actions"][0])
        return {**answer.reply, "server_timing": robot.timing}

    # ---------------------------------------------------------------- connections

    def admit(self, request: Request, address: str) -> Response | None:
        """An HTTP answer, or None: it becomes a connection."""
        response = self._answer_http(request, address)
        if response is not None and response.status_code >= 400:
            self.metrics.refused.labels(str(response.status_code)).inc()
            reason = response.body.decode().strip()
            log("refused", at_most=1, status=response.status_code, reason=reason, address=address,
                path=request.path[:100])  # fmt: skip
        return response

    def _let_in(self, connection: ServerConnection, request: Request) -> Response | None:
        response = self.admit(request, _address(connection))
        if response is None and isinstance(connection, PacedConnection):
            if request.path.split("?")[0] != LIVE:
                connection.let_in(ROBOT, self.config.max_message_mb << 20)
            elif not self.config.api_keys:
                connection.let_in(PAGE, LARGEST_COMMAND)
        return response

    def _answer_http(self, request: Request, address: str) -> Response | None:
        if wrong := self.gate.malformed(request):
            return respond(HTTPStatus.BAD_REQUEST, f"{wrong}\n")
        path = request.path.split("?")[0]
        if path in ("/healthz", "/health"):
            ill = self.ill()
            return respond(HTTPStatus.SERVICE_UNAVAILABLE if ill else HTTPStatus.OK, f"{ill or 'OK'}\n")
        upgrade = wants_websocket(request)
        if not upgrade and (found := page_file(path)) is not None:
            return found
        if self.gate.foreign(request):
            return respond(HTTPStatus.FORBIDDEN, "this page may not use the server; see --origins\n")
        if path == LIVE and upgrade:  # gives its key in its first message: a browser cannot send it sooner
            waiting = self.feed.waiting
            many = waiting.total() >= MOST_PAGES or waiting[address] >= ADDRESS_PAGES
            text = f"{waiting.total()} pages have not given a key yet, {waiting[address]} of this address\n"
            return respond(HTTPStatus.SERVICE_UNAVAILABLE, text) if many else None
        owner = self.gate.owner(request, address)
        if owner is None:
            wrong = "an API key is needed: Authorization: Api-Key ..."
            return respond(HTTPStatus.UNAUTHORIZED, f"{wrong}\n")
        if path == "/metrics":
            if not self.config.api_keys and self.gate.strange_name(request):
                return respond(HTTPStatus.FORBIDDEN, "the server does not know this name of it; see --origins\n")
            return respond(HTTPStatus.OK, self.metrics.text())
        if self._find(path) is None:
            return not_found(list(self.hosted))
        if not upgrade:
            return respond(HTTPStatus.UPGRADE_REQUIRED, "robots connect by websocket\n")
        if self.draining:
            return respond(HTTPStatus.SERVICE_UNAVAILABLE, "the server ends\n")
        if len(self._connections) >= self.config.max_connections:
            return respond(HTTPStatus.SERVICE_UNAVAILABLE, f"{self.config.max_connections} robots are connected\n")
        own = sum(robot.owner == owner for robot in self._connections.values())
        if own >= self.gate.share(self.config.max_connections):
            return respond(HTTPStatus.SERVICE_UNAVAILABLE, f"{own} robots of {owner} are connected, its share\n")
        return None

    def _find(self, path: str) -> Hosted | None:
        name = path.removesuffix(vla_eval.PATH).strip("/")
        return self.hosted.get(name) if name else next(iter(self.hosted.values()))

    async def connected(self, connection: Connection) -> None:
        """Serves a connection that was let in, until it ends."""
        self._open.add(connection)
        try:
            await self._serve(connection)
        finally:
            self._open.discard(connection)

    async def _serve(self, connection: Connection) -> None:
        assert connection.request is not None
        path, address = connection.request.path.split("?")[0], _address(connection)
        if path == LIVE:
            await self.feed.serve(connection, address)
            return
        hosted, owner = self._find(path), self.gate.owner(connection.request, address)
        assert hosted is not None  # as admit saw
        assert owner is not None
        robot = self.live.join(hosted.name, address, owner)
        self._connections[connection] = robot
        self.metrics.connections.labels(hosted.name).inc()
        self.metrics.robots.labels(hosted.name).inc()
        log("connected", robot=robot.number, checkpoint=hosted.name, address=address, owner=owner)
        harness = vla_eval.Harness(hosted, self.turns, robot.owner) if path.endswith(vla_eval.PATH) else None
        try:
            await self._serve_robot(connection, hosted, robot, harness)
        except ConnectionClosed:
            pass
        except Exception as error:
            log("connection failed", level=logging.ERROR, error=error, at_most=5, robot=robot.number)
        finally:
            del self._connections[connection]
            self.live.leave(robot)
            hosted.batcher.forget(robot)
            if hosted.recorder is not None:
                hosted.recorder.end_episode(robot.number)
            self.metrics.robots.labels(hosted.name).dec()
            log("disconnected", robot=robot.number, requests=robot.requests, errors=robot.errors,
                code=connection.close_code)  # fmt: skip

    async def _serve_robot(
        self, connection: Connection, hosted: Hosted, robot: Robot, harness: vla_eval.Harness | None
    ) -> None:
        if harness is None:
            await connection.send(pack(hosted.metadata))
        allowance, previous = Allowance(self.config.max_rate, self.config.max_rate), None
        while not self.draining:
            try:
                message = await asyncio.wait_for(connection.recv(), self.config.idle_s)
            except TimeoutError:
                await connection.close(CloseCode.NORMAL_CLOSURE, f"no request for {self.config.idle_s:g} s")
                return
            started = time.monotonic()
            robot.busy, allowed = True, allowance.take()
            reply = await self._reply(hosted, robot, message, previous, harness, allowed)
            await asyncio.sleep(0 if allowed else 1 / self.config.max_rate)  # others come in between, whatever it sends
            sending = time.monotonic()
            if reply is not None:
                await connection.send(reply)
            previous = time.monotonic() - started
            self.metrics.stages.labels(hosted.name, "send").observe(time.monotonic() - sending)
            self.metrics.stages.labels(hosted.name, "total").observe(previous)
            robot.busy = False
        await connection.close(CloseCode.GOING_AWAY, "the server ends")

    async def _reply(
        self,
        hosted: Hosted,
        robot: Robot,
        message: bytes | str,
        previous: float | None,
        harness: vla_eval.Harness | None,
        allowed: bool,
    ) -> bytes | str | None:
        """The chunk as bytes, an error as text; the harness's form of both, None where it expects no answer.

        previous: seconds that the request before took in all. allowed: whether the robot's rate is.
        """
        try:
            if not allowed:
                raise BusyError(f"more than {self.config.max_rate:g} requests a second of one connection")
            if isinstance(message, str):
                raise ProtocolError("got a text; a request is a dictionary, packed by msgpack")
            if harness is not None:
                return await harness.reply(message, lambda value: self._chunk(hosted, robot, value))
            reply = await self._answer(hosted, robot, message)
            if previous is not None:
                reply["server_timing"]["prev_total_ms"] = 1000 * previous
            return pack(reply)
        except (ProtocolError, UserError) as error:
            kind, text = "bad request", str(error)
        except BusyError as error:
            kind, text = "busy", str(error)
        except Exception as error:
            log("failed", level=logging.ERROR, error=error, at_most=5, robot=robot.number)
            kind, text = "failed", f"the policy gave no answer; see robot {robot.number} in the log"
        self._count_error(hosted, robot, kind)
        text = f"{kind}: {text[:500]}"
        return text if harness is None else harness.error(text)

    async def _chunk(self, hosted: Hosted, robot: Robot, value: Message) -> NDArray[np.float32]:
        return (await self._answer(hosted, robot, value))["actions"]

    async def _answer(self, hosted: Hosted, robot: Robot, message: Message) -> dict[str, Any]:
        """The policy's reply to a robot's dictionary, with "server_timing"."""
        started = time.monotonic()
        observation, prepared = await hosted.read(message, robot.new_prompt, robot.chunk, self.turns, robot.owner)
        return await self.ask(hosted, robot, observation, prepared, started)

    def _count_error(self, hosted: Hosted, robot: Robot, kind: str) -> None:
        robot.errors += 1
        self.metrics.errors.labels(hosted.name, kind).inc()


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
