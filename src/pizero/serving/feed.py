"""What the page at / shows and asks for, over its own connection: JSON texts both ways."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode

from pizero.serving.live import Robot
from pizero.serving.simulated import Simulation

if TYPE_CHECKING:
    from pizero.serving.server import PolicyServer

PERIOD = 0.3
"""Seconds between two states."""
LONGEST_COMMAND, LONGEST_PROMPT, THUMBNAIL = 4096, 500, 192


class Feed:
    """All pages that are open on one server, and its simulated robot, which they share."""

    def __init__(self, server: PolicyServer) -> None:
        self._server, self._started = server, time.monotonic()
        self.simulation = Simulation(server)

    async def serve(self, connection: ServerConnection) -> None:
        """One page: waits for a key where one is needed, then tells the state until the page is closed."""
        with suppress(ConnectionClosed):
            if not await self._let_in(connection):
                return
            page = _Page(connection)
            sending = asyncio.create_task(self._tell(page))
            try:
                async for message in connection:
                    await self._obey(page, message)
            finally:
                sending.cancel()

    async def _let_in(self, connection: ServerConnection) -> bool:
        refusals = 0
        while refusals < 5:
            command = _command(await connection.recv())
            keys = self._server.config.api_keys
            if not keys or self._server.gate.owner_of(str(command.get("key", ""))) is not None:
                return True
            if "key" not in command:
                continue
            refusals += 1
            await connection.send(json.dumps({"key": "needed"}))
            await asyncio.sleep(0.5)
        await connection.close(CloseCode.POLICY_VIOLATION, "no API key")
        return False

    async def _tell(self, page: _Page) -> None:
        with suppress(ConnectionClosed):
            while True:
                state = await asyncio.get_running_loop().run_in_executor(self._server.pool, self._state, page)
                await page.connection.send(state)
                await asyncio.sleep(PERIOD)

    async def _obey(self, page: _Page, message: str | bytes) -> None:
        command = _command(message)
        robot = self._server.live.robots.get(_number(command.get("robot")))
        if command.get("do") == "watch":
            page.watched = _number(command.get("robot"))
        elif command.get("do") == "prompt" and robot is not None:
            text = str(command.get("text", "")).strip()[:LONGEST_PROMPT]
            robot.new_prompt = text or None
        elif command.get("do") == "simulate":
            await self.simulation.start(str(command.get("checkpoint", "")))
        elif command.get("do") == "stop":
            await self.simulation.stop()

    def _state(self, page: _Page) -> str:
        server = self._server
        robots = [robot.to_json() for robot in list(server.live.robots.values())]
        state: dict[str, Any] = {
            "seconds": round(time.monotonic() - self._started, 1),
            "draining": server.draining,
            "checkpoints": [hosted.metadata for hosted in server.hosted.values()],
            "robots": robots,
            "rate": round(sum(robot["rate"] for robot in robots), 1),
            "latency": round(server.live.latency_now(), 2),
            "queue": sum(hosted.batcher.length for hosted in server.hosted.values()),
            "simulation": self.simulation.to_json(),
        }
        watched = server.live.robots.get(page.watched)
        if watched is not None:
            state["watched"] = page.look(watched)
        return json.dumps(state)


class _Page:
    """One open page: the robot that it watches, whose pictures are sent once for each request."""

    def __init__(self, connection: ServerConnection) -> None:
        self.connection, self.watched = connection, 0
        self._sent: tuple[int, int, int] | None = None

    def look(self, robot: Robot) -> dict[str, Any]:
        """The watched robot's figures; chunk, timing and pictures only where they are new."""
        now = (robot.number, robot.requests, robot.pictures)
        seen: dict[str, Any] = {"robot": robot.number}
        if now == self._sent:
            return seen
        self._sent = now
        observation, chunk = robot.observation, robot.chunk
        if observation is None or chunk is None:
            return seen
        images = {name: _newest(image) for name, image in observation["images"].items() if image is not None}
        if robot.picture is not None:
            images = {"scene": robot.picture, **images}
        return seen | {
            "chunk": np.round(chunk, 4).T.tolist(),  # per dimension
            "before": np.round(robot.played, 4).T.tolist() if robot.played is not None else None,
            "timing": {name: round(value, 2) for name, value in robot.timing.items()},
            "images": {name: _picture(image) for name, image in images.items()},
        }


def _command(message: str | bytes) -> dict[str, Any]:
    """A page's command; nothing where it is something else."""
    if isinstance(message, str) and len(message) <= LONGEST_COMMAND:
        with suppress(ValueError, RecursionError):
            value = json.loads(message)
            if isinstance(value, dict):
                return value
    return {}


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


def _newest(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return image[-1] if image.ndim == 4 else image


def _picture(image: NDArray[np.uint8]) -> str:
    """A small picture as a data URI; PNG where it has few pixels, which JPEG would blur."""
    picture = Image.fromarray(np.ascontiguousarray(image))
    picture.thumbnail((3 * THUMBNAIL, THUMBNAIL))
    kind = "PNG" if picture.width * picture.height <= 96 * 96 else "JPEG"
    file = io.BytesIO()
    picture.save(file, kind)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(file.getvalue()).decode()
