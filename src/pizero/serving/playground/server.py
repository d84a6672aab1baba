"""The playground's page and its connection: JSON texts both ways, this machine alone."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import threading
from collections.abc import Sequence
from contextlib import suppress
from http import HTTPStatus
from importlib.resources import files
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from pizero.serving.config import ServeConfig
from pizero.serving.feed import LARGEST_COMMAND, LONGEST_PROMPT, as_command, encode_pictures
from pizero.serving.gate import LIVE, Gate, page_file, respond, wants_websocket
from pizero.serving.playground.session import PICTURE, Player, Session, about, lane_pictures, lane_state
from pizero.types import UserError

FILES = {
    "/": ("playground.html", "text/html"), "/page/playground.css": ("playground.css", "text/css"),
    "/page/playground.js": ("playground.js", "text/javascript"),
}  # fmt: skip
MOST_PAGES = 4


class PlaygroundServer:
    """Each page has a session of its own; they share the policies, which answer one at a time."""

    def __init__(self, players: Sequence[Player], port: int = 0) -> None:
        Session(players)  # refuses what cannot play before anything listens
        self.config = ServeConfig(host="127.0.0.1", port=port)
        self._players, self._gate = players, Gate(self.config)
        self._server: Server | None = None
        self._turn, self._pages = threading.Lock(), 0

    @property
    def port(self) -> int:
        """Where it listens."""
        assert self._server is not None
        return next(iter(self._server.sockets)).getsockname()[1]

    async def start(self) -> None:
        """Listens. UserError where that cannot be."""
        try:
            self._server = await serve(
                self._serve, self.config.host, self.config.port, process_request=self._let_in,
                max_size=LARGEST_COMMAND, compression=None, server_header="pizero",
                logger=logging.Logger("websockets", logging.CRITICAL),
            )  # fmt: skip
        except OSError as error:
            raise UserError(
                f"cannot listen on port {self.config.port} ({error}); choose another with --port"
            ) from error

    async def drain(self) -> None:
        """Closes all pages, ends."""
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    def _let_in(self, _: ServerConnection, request: Request) -> Response | None:
        path, upgrade = request.path.split("?")[0], wants_websocket(request)
        if wrong := self._gate.malformed(request):
            return respond(HTTPStatus.BAD_REQUEST, f"{wrong}\n")
        if self._gate.foreign(request) or self._gate.strange_name(request):
            return respond(HTTPStatus.FORBIDDEN, "the playground is for its own page on this machine\n")
        if upgrade and path == LIVE:
            if self._pages < MOST_PAGES:
                return None
            return respond(HTTPStatus.SERVICE_UNAVAILABLE, f"{MOST_PAGES} pages are open\n")
        if path in FILES:
            name, kind = FILES[path]
            return respond(HTTPStatus.OK, files("pizero.serving").joinpath("page", name).read_bytes(), kind)
        return page_file(path) or respond(HTTPStatus.NOT_FOUND, "the playground is at /\n")

    async def _serve(self, connection: ServerConnection) -> None:
        session, paused = await asyncio.to_thread(Session, self._players), False
        commands: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._pages += 1
        reading = asyncio.create_task(_read(connection, commands))
        try:
            await connection.send(json.dumps({"about": about(session)}))
            while not reading.done():
                while not commands.empty():
                    command = commands.get_nowait()
                    paused = bool(command.get("on")) if command.get("do") == "pause" else paused
                    await asyncio.to_thread(self._obey, session, command)
                text = await asyncio.to_thread(self._advance, session, paused)
                await connection.send(text)
                with suppress(TimeoutError):  # a command is obeyed at once
                    await asyncio.wait_for(_any(commands, reading), 1 / session.lanes[0].env.fps)
        except ConnectionClosed:
            pass
        finally:
            self._pages -= 1
            reading.cancel()

    def _obey(self, session: Session, command: dict[str, Any]) -> None:
        session.note = ""
        try:
            obey(session, command)
        except (UserError, ValueError, TypeError) as error:
            session.note = str(error)

    def _advance(self, session: Session, paused: bool) -> str:
        """A control step, and the state that the page shows then."""
        if not paused:
            try:
                with self._turn:
                    session.step()
            except (UserError, ValueError) as error:
                session.note, session.resting = str(error), True
        judged = not session.own_words
        lanes = [
            lane_state(lane, judged) | {"pictures": encode_pictures(lane_pictures(lane), PICTURE)}
            for lane in session.lanes
        ]
        return json.dumps({
            "lanes": lanes, "prompt": session.prompt, "scene": session.scene, "task": session.task or "",
            "seed": session.seed, "own_words": session.own_words, "resting": session.resting, "paused": paused,
            "note": session.note, "settings": vars(session.settings), "suggestions": session.suggestions(),
        })  # fmt: skip


async def _read(connection: ServerConnection, commands: asyncio.Queue[dict[str, Any]]) -> None:
    with suppress(ConnectionClosed):
        async for message in connection:
            if commands.qsize() < 100 and (command := as_command(message)):
                commands.put_nowait(command)


async def _any(commands: asyncio.Queue[dict[str, Any]], reading: asyncio.Task[None]) -> None:
    while commands.empty() and not reading.done():
        await asyncio.sleep(0.01)


def obey(session: Session, command: dict[str, Any]) -> None:
    """{"do": "scene", scene, task, seed}, {"do": "instruct", text}, {"do": "set", ...}, {"do": "move", object, x, y},
    or {"do": "pause", on}. UserError, ValueError or TypeError for values that cannot be.
    """
    what = command.get("do")
    if what == "scene":
        session.begin(str(command.get("scene")), str(command["task"]) if command.get("task") else None,
                      max(int(command.get("seed", 0)), 0))  # fmt: skip
    elif what == "instruct":
        text = str(command.get("text", "")).encode(errors="replace").decode().strip()[:LONGEST_PROMPT]
        session.instruct(text or session.lanes[0].env.prompt)
    elif what == "set":
        values = {name: int(value) for name, value in command.items() if name in vars(session.settings)}
        session.change(**values)
    elif what == "move":
        x, y = float(command.get("x", math.nan)), float(command.get("y", math.nan))
        if not (math.isfinite(x) and math.isfinite(y)):
            raise UserError("an object is moved to two numbers, x and y")
        session.move(int(command.get("object", -1)), x, y)
    elif what == "pause":
        session.resting = session.resting and bool(command.get("on"))
