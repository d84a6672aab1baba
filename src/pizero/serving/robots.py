"""The connections of robots: each gets the metadata first, then a reply for each request, until it goes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode

from pizero.serving.batching import BusyError
from pizero.serving.connection import Connection
from pizero.serving.hosted import Hosted, Message
from pizero.serving.listener import Allowance
from pizero.serving.live import Robot
from pizero.serving.log import log
from pizero.serving.protocol import ProtocolError, pack
from pizero.serving.service import Service
from pizero.serving.vla_eval import PATH, Harness
from pizero.types import UserError


class Robots:
    """All of one server. connected: the robot of each connection."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.connected: dict[Connection, Robot] = {}

    def of(self, owner: str) -> int:
        """How many an owner has connected."""
        return sum(robot.owner == owner for robot in self.connected.values())

    async def serve(self, connection: Connection, path: str, address: str, owner: str) -> None:
        """Serves one that was let in, until its connection ends."""
        service, hosted = self._service, self._service.find(path)
        assert hosted is not None  # as the admission saw
        robot = hosted.join(service.live, address, owner)
        self.connected[connection] = robot
        service.metrics.connections.labels(hosted.name).inc()
        service.metrics.robots.labels(hosted.name).inc()
        log("connected", robot=robot.number, checkpoint=hosted.name, address=address, owner=owner)
        harness = Harness(hosted, service.turns, owner) if path.endswith(PATH) else None
        try:
            await _Session(service, hosted, robot, connection, harness).run()
        except ConnectionClosed:
            pass
        except Exception as error:
            log("connection failed", level=logging.ERROR, error=error, at_most=5, robot=robot.number)
        finally:
            del self.connected[connection]
            service.live.leave(robot)
            hosted.batcher.forget(robot)
            if hosted.recorder is not None:
                hosted.recorder.end_episode(robot.number)
            service.metrics.robots.labels(hosted.name).dec()
            log("disconnected", robot=robot.number, requests=robot.figures.requests, errors=robot.figures.errors,
                code=connection.close_code)  # fmt: skip


@dataclass
class _Session:
    """One robot at its connection; harness: where it speaks as the evaluation harness does."""

    service: Service
    hosted: Hosted
    robot: Robot
    connection: Connection
    harness: Harness | None
    previous: float | None = None
    """Seconds that the request before took in all."""

    async def run(self) -> None:
        config, connection, robot = self.service.config, self.connection, self.robot
        stages = self.service.metrics.stages
        if self.harness is None:
            await connection.send(pack(self.hosted.metadata))
        allowance = Allowance(config.max_rate, config.max_rate)
        while not self.service.draining:
            try:
                message = await asyncio.wait_for(connection.recv(), config.idle_s)
            except TimeoutError:
                await connection.close(CloseCode.NORMAL_CLOSURE, f"no request for {config.idle_s:g} s")
                return
            started = time.monotonic()
            robot.busy, allowed = True, allowance.take()
            reply = await self._reply(message, allowed)
            await asyncio.sleep(0 if allowed else 1 / config.max_rate)  # others come in between, whatever it sends
            sending = time.monotonic()
            if reply is not None:
                await connection.send(reply)
            self.previous = time.monotonic() - started
            stages.labels(self.hosted.name, "send").observe(time.monotonic() - sending)
            stages.labels(self.hosted.name, "total").observe(self.previous)
            robot.busy = False
        await connection.close(CloseCode.GOING_AWAY, "the server ends")

    async def _reply(self, message: bytes | str, allowed: bool) -> bytes | str | None:
        """The chunk as bytes, an error as text; the harness's form of both, None where it expects no answer.

        allowed: whether the robot's rate is.
        """
        try:
            if not allowed:
                raise BusyError(f"more than {self.service.config.max_rate:g} requests a second of one connection")
            if isinstance(message, str):
                raise ProtocolError("got a text; a request is a dictionary, packed by msgpack")
            if self.harness is not None:
                return await self.harness.reply(message, self._chunk)
            reply = await self._answer(message)
            if self.previous is not None:
                reply["server_timing"]["prev_total_ms"] = 1000 * self.previous
            return pack(reply)
        except (ProtocolError, UserError) as error:
            kind, text = "bad request", str(error)
        except BusyError as error:
            kind, text = "busy", str(error)
        except Exception as error:
            log("failed", level=logging.ERROR, error=error, at_most=5, robot=self.robot.number)
            kind, text = "failed", f"the policy gave no answer; see robot {self.robot.number} in the log"
        self.robot.figures.errors += 1
        self.service.metrics.errors.labels(self.hosted.name, kind).inc()
        text = f"{kind}: {text[:500]}"
        return text if self.harness is None else self.harness.error(text)

    async def _chunk(self, make: Callable[[], dict[str, Any]]) -> NDArray[np.float32]:
        return (await self._answer(make))["actions"]

    async def _answer(self, message: Message) -> dict[str, Any]:
        """The policy's reply to a robot's dictionary, with "server_timing"."""
        started, robot = time.monotonic(), self.robot
        observation, prepared = await self.hosted.read(message, robot, self.service.turns)
        return await self.service.ask(self.hosted, robot, observation, prepared, started)
