"""The server behind an ASGI listener: the same answers, connections, limits and end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from serving_helpers import noise, observation

from pizero.policy.policy import ModelPolicy
from pizero.serving.asgi import application
from pizero.serving.config import ServeConfig
from pizero.serving.protocol import pack, unpack
from pizero.serving.server import PolicyServer


class Listener:
    """One request, as an ASGI server passes it on; `said` is what the application sent."""

    def __init__(self, server: PolicyServer, path: str, kind: str = "websocket", **headers: str) -> None:
        self.inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.outbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        scope = {
            "type": kind, "path": path, "headers": pairs, "client": ("10.0.0.7", 1234),
            "extensions": {"websocket.http.response": {}},
        }  # fmt: skip
        answered = application(server)(scope, self.inbox.get, lambda event: self.take(event))
        self.task = asyncio.create_task(self._run(answered))
        if kind == "websocket":
            self.tell("websocket.connect")

    async def take(self, event: Any) -> None:
        await self.outbox.put(event)

    async def _run(self, work: Awaitable[None]) -> None:
        await work

    def tell(self, kind: str, **values: Any) -> None:
        self.inbox.put_nowait({"type": kind, **values})

    async def hear(self, kind: str) -> dict[str, Any]:
        event = await asyncio.wait_for(self.outbox.get(), 20)
        assert event["type"] == kind, event
        return event

    async def ask(self, message: bytes | str) -> bytes | str:
        self.tell("websocket.receive", **{"bytes" if isinstance(message, bytes) else "text": message})
        event = await self.hear("websocket.send")
        return event["bytes"] if "bytes" in event else event["text"]


async def answers(server: PolicyServer) -> None:
    """A robot that comes now is served."""
    robot = Listener(server, "/")
    await robot.hear("websocket.accept")
    await robot.hear("websocket.send")
    assert unpack(await robot.ask(pack(observation())))["actions"].shape == (6, 5)  # type: ignore[arg-type]
    robot.tell("websocket.disconnect", code=1000)
    await asyncio.wait_for(robot.task, 20)


def with_server(policy: ModelPolicy, work: Callable[[PolicyServer], Awaitable[None]], **settings: Any) -> None:
    async def run() -> None:
        server = PolicyServer({"policy": lambda: policy}, ServeConfig(**{"drain_s": 1.0, "max_batch": 1, **settings}))
        try:
            await work(server)
        finally:
            if not server.service.draining:
                await server.drain()

    asyncio.run(run())


def test_a_robot_asks_and_goes(policy: ModelPolicy) -> None:
    async def work(server: PolicyServer) -> None:
        robot = Listener(server, "/")
        await robot.hear("websocket.accept")
        metadata = unpack((await robot.hear("websocket.send"))["bytes"])
        assert metadata["action_horizon"] == 6
        asked = {**observation(), "noise": noise()}
        reply = unpack(await robot.ask(pack(asked)))  # type: ignore[arg-type]
        np.testing.assert_allclose(reply["actions"], policy.infer(asked)["actions"], rtol=1e-5, atol=1e-5)
        assert str(await robot.ask(b"nonsense")).startswith("bad request: ")
        assert str(await robot.ask("text")).startswith("bad request: ")
        assert [one.address for one in server.service.live.robots.values()] == ["10.0.0.7"]
        robot.tell("websocket.disconnect", code=1000)
        await asyncio.wait_for(robot.task, 20)
        assert not server.service.live.robots

    with_server(policy, work)


def test_a_message_too_long_closes(policy: ModelPolicy) -> None:
    async def work(server: PolicyServer) -> None:
        robot = Listener(server, "/")
        await robot.hear("websocket.accept")
        await robot.hear("websocket.send")
        robot.tell("websocket.receive", bytes=bytes((1 << 20) + 1))
        assert (await robot.hear("websocket.close"))["code"] == 1009
        await asyncio.wait_for(robot.task, 20)
        await answers(server)

    with_server(policy, work, max_message_mb=1)


def test_a_listener_that_fails_ends_its_connection_alone(policy: ModelPolicy, caplog: pytest.LogCaptureFixture) -> None:
    """In mid-request, as where the network goes."""

    async def work(server: PolicyServer) -> None:
        robot = Listener(server, "/")
        await robot.hear("websocket.accept")
        await robot.hear("websocket.send")

        async def refuse(_: object) -> None:
            raise OSError("broken pipe")

        robot.take = refuse  # type: ignore[method-assign]
        robot.tell("websocket.receive", bytes=pack(observation()))
        with pytest.raises(OSError, match="broken pipe"):
            await asyncio.wait_for(robot.task, 20)
        assert not server.service.live.robots
        await answers(server)

    with_server(policy, work)
    assert "connection failed" in caplog.text


def test_a_server_that_ends_closes_who_waits(policy: ModelPolicy) -> None:
    async def work(server: PolicyServer) -> None:
        robot, page = Listener(server, "/"), Listener(server, "/live")
        await robot.hear("websocket.accept")
        await robot.hear("websocket.send")
        await page.hear("websocket.accept")
        await server.drain()
        assert (await robot.hear("websocket.close"))["code"] == 1001
        assert (await page.hear("websocket.close"))["code"] == 1001
        await asyncio.wait_for(asyncio.gather(robot.task, page.task), 20)
        late = Listener(server, "/")
        assert (await late.hear("websocket.http.response.start"))["status"] == 503

    with_server(policy, work)


@pytest.mark.parametrize(
    ("path", "kind", "headers", "status"),
    [
        ("/healthz", "http", {}, 200),
        ("/metrics", "http", {"authorization": "Api-Key sesame"}, 200),
        ("/metrics", "http", {}, 401),
        ("/page/page.js", "http", {}, 200),
        ("/policy", "http", {"authorization": "Api-Key sesame"}, 426),
        ("/", "websocket", {}, 401),
        ("/none", "websocket", {"authorization": "Api-Key sesame"}, 404),
        ("/", "websocket", {"authorization": "Api-Key sesame", "origin": "https://elsewhere.org"}, 403),
    ],
)
def test_answers(policy: ModelPolicy, path: str, kind: str, headers: dict[str, str], status: int) -> None:
    async def work(server: PolicyServer) -> None:
        response = Listener(server, path, kind, **headers)
        answer = "http.response" if kind == "http" else "websocket.http.response"
        assert (await response.hear(f"{answer}.start"))["status"] == status
        assert (await response.hear(f"{answer}.body"))["body"]
        await asyncio.wait_for(response.task, 20)

    with_server(policy, work, api_keys=("sesame",))
