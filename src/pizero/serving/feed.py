"""What the page at / shows and asks for, over its own connection: JSON texts both ways."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode

from pizero.serving.connection import Connection
from pizero.serving.listener import PAGE, PacedConnection
from pizero.serving.live import Robot
from pizero.serving.log import log
from pizero.serving.service import Service
from pizero.serving.simulated import Simulation

PERIOD = 0.3
"""Seconds between two states."""
LONGEST_COMMAND, LARGEST_COMMAND, LONGEST_PROMPT, THUMBNAIL = 4096, 16_384, 500, 192
"""Characters of a command, beyond which it is ignored, and bytes, beyond which the page is closed."""
MOST_PAGES, KEY_S, ADDRESS_PAGES = 64, 10.0, 8
"""Pages at once, seconds that one has to give its key, and pages of one address that have not given it yet."""


class Feed:
    """All pages that are open on one server, and its simulated robot, which they share."""

    def __init__(self, service: Service) -> None:
        self._service, self._started = service, time.monotonic()
        self.simulation = Simulation(service)
        self.pages: Counter[str] = Counter()
        """How many are open, by owner."""
        self.waiting: Counter[str] = Counter()
        """How many have not given a key yet, by address."""

    async def serve(self, connection: Connection, address: str) -> None:
        """One page: takes its key where one is needed, then sends the state until the page is closed."""
        with suppress(ConnectionClosed, TimeoutError):
            with _counted(self.waiting, address):
                owner = await asyncio.wait_for(self._let_in(connection, address), KEY_S)
            if owner is None:
                return
            if isinstance(connection, PacedConnection):
                connection.let_in(PAGE, LARGEST_COMMAND)
            with _counted(self.pages, owner):
                await self._serve(_Page(connection, owner))

    async def _serve(self, page: _Page) -> None:
        sending = asyncio.create_task(self._tell(page))
        try:
            async for message in page.connection:
                await self._obey(page, message)
        finally:
            sending.cancel()

    async def _let_in(self, connection: Connection, address: str) -> str | None:
        """Whose page it is, by its first message; None where it brings no key that is known."""
        keys = self._service.config.api_keys
        given = str(as_command(await connection.recv()).get("key", ""))
        owner = self._service.gate.owner_of(given) if keys else address
        if owner is not None and self.pages[owner] < self._service.gate.share(MOST_PAGES):
            return owner
        if owner is not None:
            await connection.close(CloseCode.TRY_AGAIN_LATER, f"{self.pages[owner]} pages are open")
            return None
        if given:
            log("wrong key", level=logging.WARNING, at_most=1, address=address, at="page")
        await connection.send(json.dumps({"key": "needed"}))
        await connection.close(CloseCode.POLICY_VIOLATION, "no API key")
        return None

    async def _tell(self, page: _Page) -> None:
        """Sends the state again and again; a round that fails is logged, and the page shows that it is old."""
        with suppress(ConnectionClosed):
            while True:
                try:
                    state, images = self._state(page)
                    if images:
                        state["watched"]["images"] = await self._service.turns.run("pages", encode_pictures, images)
                    text = json.dumps(state)
                except Exception as error:
                    log("page not told", level=logging.ERROR, error=error, at_most=1)
                else:
                    await page.connection.send(text)
                await asyncio.sleep(PERIOD)

    async def _obey(self, page: _Page, message: str | bytes) -> None:
        command = as_command(message)
        robot = self._service.live.robots.get(_number(command.get("robot")))
        if robot is not None and not self._may_see(page, robot):
            robot = None
        if command.get("do") == "watch":
            page.watched = 0 if robot is None else robot.number
        elif command.get("do") == "prompt" and robot is not None:
            text = _text(command)
            robot.new_prompt = text or None
            log("instruction changed by a page", robot=robot.number, by=page.owner, prompt=text or "its own again")
        elif command.get("do") == "subtask" and robot is not None and robot.subtask is not None:
            text = _text(command)
            robot.new_subtask = text or None
            log("subtask said by a page", robot=robot.number, by=page.owner, subtask=text or "the policy's again")
        elif command.get("do") == "simulate":
            log("simulated robot asked for by a page", by=page.owner)
            await self.simulation.start(str(command.get("checkpoint", "")))
        elif command.get("do") == "stop":
            log("simulated robot stopped by a page", by=page.owner)
            await self.simulation.stop()

    def _may_see(self, page: _Page, robot: Robot) -> bool:
        return robot.simulated or self._service.gate.commands(page.owner, robot.owner)

    def _state(self, page: _Page) -> tuple[dict[str, Any], dict[str, NDArray[np.uint8]]]:
        """What a page shows, and the watched robot's images, not encoded yet. In the event loop: there nothing changes
        meanwhile.
        """
        service = self._service
        robots = [robot.to_json() for robot in service.live.robots.values() if self._may_see(page, robot)]
        state: dict[str, Any] = {
            "seconds": round(time.monotonic() - self._started, 1),
            "draining": service.draining,
            "checkpoints": [hosted.metadata for hosted in service.hosted.values()],
            "robots": robots,
            "rate": round(sum(robot["rate"] for robot in robots), 1),
            "latency": round(service.live.latency_now(), 2),
            "queue": sum(hosted.batcher.length for hosted in service.hosted.values()),
            "simulation": self.simulation.to_json(),
        }
        watched, images = service.live.robots.get(page.watched), dict[str, NDArray[np.uint8]]()
        if watched is not None and self._may_see(page, watched):
            state["watched"], images = page.look(watched)
        return state, images


class _Page:
    """One open page: the robot that it watches, whose pictures are sent once for each request."""

    def __init__(self, connection: Connection, owner: str) -> None:
        self.connection, self.owner, self.watched = connection, owner, 0
        self._sent: tuple[int, int, int] | None = None

    def look(self, robot: Robot) -> tuple[dict[str, Any], dict[str, NDArray[np.uint8]]]:
        """The watched robot's figures, and its images; chunk, timing and images only where they are new."""
        last = robot.last
        now = (robot.number, robot.figures.requests, last.pictures)
        seen: dict[str, Any] = {"robot": robot.number}
        if now == self._sent:
            return seen, {}
        self._sent = now
        observation, chunk = last.observation, last.chunk
        if observation is None or chunk is None:
            return seen, {}
        images = {name: image for name, image in observation["images"].items() if image is not None}
        if last.picture is not None:
            images = {"scene": last.picture, **images}
        return seen | {
            "chunk": np.round(chunk, 4).T.tolist(),  # per dimension
            "before": np.round(last.played, 4).T.tolist() if last.played is not None else None,
            "timing": {name: round(value, 2) for name, value in robot.figures.timing.items()},
            "images": {},
        }, images


@contextmanager
def _counted(counter: Counter[str], name: str) -> Generator[None]:
    counter[name] += 1
    try:
        yield
    finally:
        counter[name] -= 1
        if not counter[name]:
            del counter[name]


def as_command(message: str | bytes) -> dict[str, Any]:
    """A page's command; nothing where it is something else."""
    if isinstance(message, str) and len(message) <= LONGEST_COMMAND:
        with suppress(ValueError, RecursionError):
            value = json.loads(message)
            if isinstance(value, dict):
                return value
    return {}


def _text(command: dict[str, Any]) -> str:
    """What a person typed; empty takes it back."""
    return str(command.get("text", "")).encode(errors="replace").decode().strip()[:LONGEST_PROMPT]


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


def encode_pictures(images: dict[str, NDArray[np.uint8]], height: int = THUMBNAIL) -> dict[str, str]:
    """Each that can be shown, at most `height` pixels high."""
    pictures: dict[str, str] = {}
    for name, image in images.items():
        try:
            pictures[name] = _picture(image, height)
        except Exception as error:
            log("image not shown", camera=name, reason=str(error)[:200], at_most=1)
    return pictures


def _picture(image: NDArray[np.uint8], height: int) -> str:
    """A small picture as a data URI; PNG where it has few pixels, which JPEG would blur."""
    picture = Image.fromarray(np.ascontiguousarray(image))
    picture.thumbnail((3 * height, height))
    kind = "PNG" if picture.width * picture.height <= 96 * 96 else "JPEG"
    file = io.BytesIO()
    picture.save(file, kind)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(file.getvalue()).decode()
