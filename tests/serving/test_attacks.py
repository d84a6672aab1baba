"""Clients that mean harm, before and after their key: they are ended, and told of; the robots that work go on."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import numpy as np
import pytest
from serving_helpers import noise, observation
from test_server import get
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.sync.client import ClientConnection, connect

from pizero.policy.policy import ModelPolicy
from pizero.serving import feed, listener
from pizero.serving.client import PolicyClient, UnreachableError
from pizero.serving.live import Live
from pizero.serving.log import ASYNCIO, log, logging_to_stderr
from pizero.serving.running import Background
from pizero.serving.turns import Turns
from pizero.types import UserError
from pizero.workflows.serve import named

Serve = Callable[..., Background]
KEYS = ("one", "two", "boss admin")


def raw(server: Background, path: str, *headers: str) -> socket.socket:
    """A websocket by hand, after the handshake."""
    found = socket.create_connection(("127.0.0.1", server.server.port), timeout=10)
    lines = [f"GET {path} HTTP/1.1", "Host: x", "Upgrade: websocket", "Connection: Upgrade",
             "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13", *headers, "", ""]  # fmt: skip
    found.sendall("\r\n".join(lines).encode())
    data = b""
    while b"\r\n\r\n" not in data:
        data += found.recv(4096)
    assert b" 101 " in data.splitlines()[0]
    return found


def frame(opcode: Opcode, data: bytes = b"", fin: bool = True) -> bytes:
    return Frame(opcode, data, fin).serialize(mask=True)


def is_ended(sock: socket.socket) -> bool:
    """Whether the other side ends the connection, whatever it says before."""
    with suppress(ConnectionError):
        while sock.recv(65536):
            pass
    return True


def robot(server: Background, key: str) -> PolicyClient:
    return PolicyClient(server.uri, api_key=key, patience=0)


@contextmanager
def page(server: Background, key: str) -> Iterator[ClientConnection]:
    """A page that gave its key."""
    with connect(server.uri + "/live") as connection:
        connection.send(json.dumps({"key": key}))
        yield connection


def state(connection: ClientConnection, of: Callable[[dict], bool] = lambda _: True) -> dict:
    """The next state for which `of` holds."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        found = json.loads(connection.recv(timeout=10))
        if "robots" in found and of(found):
            return found
    raise AssertionError("there was no such state")


FLOODS = {
    "pings": frame(Opcode.PING, b"x") * 30_000,
    "pongs": frame(Opcode.PONG) * 30_000,
    "empty texts": frame(Opcode.TEXT) * 30_000,
    "empty parts": frame(Opcode.TEXT, b"", fin=False) + frame(Opcode.CONT, b"", fin=False) * 30_000,
    "commands": frame(Opcode.TEXT, b'{"x": "' + b"y" * 1000 + b'"}') * 300,
    "wrong keys": frame(Opcode.TEXT, b'{"key": "three"}') * 9_000,
    "a large message": frame(Opcode.TEXT, b"x" * 5_000, fin=False),
    "a large binary": frame(Opcode.BINARY, b"x" * 300_000),
}


@pytest.mark.parametrize("kind", FLOODS)
def test_a_flood_before_the_key_is_ended_at_once(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, kind: str, policy: ModelPolicy
) -> None:
    frames = 0
    real = listener.PacedConnection.process_event

    def count(connection: listener.PacedConnection, event: object) -> None:
        nonlocal frames
        frames += isinstance(event, Frame) and connection.request is not None and connection.request.path == "/live"
        real(connection, event)

    monkeypatch.setattr(listener.PacedConnection, "process_event", count)
    server, asked = serve(api_keys=KEYS), {**observation(), "noise": noise()}
    with robot(server, "one") as client:
        first = client.infer(asked)["actions"]
        for _ in range(3):  # and it comes again
            before, sock = frames, raw(server, "/live")
            with suppress(ConnectionError):
                sock.sendall(FLOODS[kind])
            assert is_ended(sock)
            sock.close()
            assert frames - before <= 300  # of all that came at once
            np.testing.assert_array_equal(client.infer(asked)["actions"], first)
        assert client.connections == 1
    with page(server, "boss") as late:
        state(late)


@pytest.mark.parametrize("kind", ["pings", "pongs"])
def test_a_flood_of_a_robot_ends_that_robot_alone(serve: Serve, kind: str) -> None:
    server = serve(api_keys=KEYS)
    with robot(server, "one") as client:
        client.infer(observation())
        sock = raw(server, "/", "Authorization: Api-Key two")
        with suppress(ConnectionError):
            sock.sendall(FLOODS[kind])
        assert is_ended(sock)
        sock.close()
        assert client.infer(observation())["actions"].shape == (6, 5)
        assert client.connections == 1
    with robot(server, "two") as again:
        assert again.infer(observation())["actions"].shape == (6, 5)


def test_a_robot_may_ping_and_send_in_parts(serve: Serve) -> None:
    from pizero.serving.protocol import pack, unpack

    with connect(serve(max_message_mb=4).uri, max_size=None) as connection:
        connection.recv()
        message = pack({**observation(), "extra": np.zeros(3 << 20, np.uint8)})
        for _ in range(3):
            for _ in range(20):
                assert connection.ping().wait(10)
            connection.send(message[at : at + 2000] for at in range(0, len(message), 2000))
            assert unpack(connection.recv(timeout=10))["actions"].shape == (6, 5)


def test_before_the_key_there_is_one_message_and_a_short_time(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    server = serve(api_keys=KEYS)
    for first in ('{"key": "three"}', "{}", "", '{"key": ["one"]}', '{"key": "\\ud800"}', '{"key": "boss admin"}'):
        with connect(server.uri + "/live") as sock:
            sock.send(first)
            assert json.loads(sock.recv(timeout=10)) == {"key": "needed"}
            with pytest.raises(ConnectionClosed, match="no API key"):
                sock.recv(timeout=10)
    assert "wrong key" in caplog.text
    assert "three" not in caplog.text
    monkeypatch.setattr(feed, "KEY_S", 0.2)
    with connect(server.uri + "/live") as silent, pytest.raises(ConnectionClosed):
        silent.recv(timeout=10)
    monkeypatch.setattr(feed, "KEY_S", 10.0)
    with page(server, "one") as good:
        assert state(good)["robots"] == []


def test_pages_without_a_key_are_few_and_take_no_places(serve: Serve) -> None:
    server = serve(api_keys=KEYS)
    with ExitStack() as stack:
        for _ in range(5):  # with a key they are not counted any more
            state(stack.enter_context(page(server, "two")))
        for _ in range(feed.ADDRESS_PAGES):
            stack.enter_context(connect(server.uri + "/live"))
        with pytest.raises(InvalidStatus, match="503"):
            connect(server.uri + "/live")
        with robot(server, "one") as client:
            assert client.infer(observation())["actions"].shape == (6, 5)
    deadline = time.monotonic() + 10
    while server.server.feed.waiting:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with page(server, "one") as late:
        state(late)


def test_an_owner_has_his_share_of_the_places(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(api_keys=KEYS, max_connections=6)
    with robot(server, "one") as first, robot(server, "one") as second:
        with pytest.raises(UnreachableError, match="2 robots of key 1 are connected, its share"):
            robot(server, "one")
        with robot(server, "two") as other:
            for client in (first, second, other):
                assert client.infer(observation())["actions"].shape == (6, 5)
    monkeypatch.setattr(feed, "MOST_PAGES", 3)
    with page(server, "one") as open_page:
        state(open_page)
        with page(server, "one") as more, pytest.raises(ConnectionClosed, match="1 pages are open"):
            more.recv(timeout=10)
        with page(server, "two") as other:
            state(other)


def test_a_page_has_the_robots_of_its_key(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    server = serve(api_keys=KEYS)
    asked = {**observation(), "noise": noise()}
    with robot(server, "one") as client:
        first = client.infer(asked)["actions"]
        with page(server, "two") as foreign:
            for command in ({"do": "prompt", "robot": 1, "text": "fall"}, {"do": "watch", "robot": 1}):
                foreign.send(json.dumps(command))
            state(foreign)
            seen = state(foreign)
            assert seen["robots"] == []
            assert "watched" not in seen
            np.testing.assert_array_equal(client.infer(asked)["actions"], first)
        for key, text in (("one", "lift"), ("boss", "rise")):
            with page(server, key) as own:
                own.send(json.dumps({"do": "watch", "robot": 1}))
                assert state(own, lambda seen: "images" in seen.get("watched", {}))["robots"][0]["robot"] == 1
                own.send(json.dumps({"do": "prompt", "robot": 1, "text": text}))
                state(own, lambda seen, text=text: seen["robots"][0]["new_prompt"] == text)
                client.infer(asked)
                kept = server.server.service.live.robots[1].last.observation
                assert kept is not None
                assert kept["prompt"] == text
    told = [record.fields for record in caplog.records if record.getMessage() == "instruction changed by a page"]  # type: ignore[attr-defined]
    assert told == [{"robot": 1, "by": "key 1", "prompt": "lift"}, {"robot": 1, "by": "key 3", "prompt": "rise"}]


def test_a_page_goes_on_after_a_round_that_fails(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(feed, "PERIOD", 0.02)
    server = serve()
    with PolicyClient(server.uri) as client, page(server, "") as open_page:
        open_page.send(json.dumps({"do": "watch", "robot": 1}))
        client.infer(observation())
        state(open_page, lambda seen: "images" in seen.get("watched", {}))
        failed = threading.Event()

        def fail(_: Live) -> float:
            failed.set()
            raise RuntimeError("deque mutated during iteration")

        with monkeypatch.context() as patch:
            patch.setattr(Live, "latency_now", fail)
            assert failed.wait(10)
        client.infer(observation(1))
        assert state(open_page, lambda seen: seen["robots"][0]["requests"] == 2)["latency"] > 0
        with monkeypatch.context() as patch:  # an image that cannot be shown costs that image
            patch.setattr(feed, "_picture", lambda _: 1 / 0)
            client.infer(observation(2))
            assert state(open_page, lambda seen: "images" in seen["watched"])["watched"]["images"] == {}
        client.infer(observation(3))
        assert set(state(open_page, lambda seen: seen["watched"].get("images"))["watched"]["images"]) == {"top", "ego"}
    assert "page not told" in caplog.text


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (["Authorization: Api-Key one", "Authorization: Api-Key two"], 400),
        (["Authorization: Api-Key one", "Origin: http://a", "Origin: http://b"], 400),
        (["Authorization: Api-Key one", "Host: b"], 400),
        (["Authorization: Api-Key one", "Origin: http://["], 400),
        (["Authorization: Api-Key one", "Origin: http://[::1"], 400),
        (["Authorization: Api-Key \udce9\udcff"], 401),
        (["Authorization: Api-Key "], 401),
        (["Authorization: Api-Key boss admin"], 401),
        (["Authorization: Api-Key boss"], 200),
    ],
)
def test_headers_that_cannot_be_right(
    serve: Serve, headers: list[str], status: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    server = serve(api_keys=KEYS)
    with socket.create_connection(("127.0.0.1", server.server.port), timeout=10) as sock:
        lines = ["GET /metrics HTTP/1.1", "Host: x", *headers, "", ""]
        sock.sendall("\r\n".join(lines).encode("utf-8", "surrogateescape"))
        assert f" {status} ".encode() in sock.recv(4096).splitlines()[0]
    assert ("refused" in caplog.text) == (status != 200)
    assert get(server, "/metrics", {"Authorization": "Api-Key two"})[0] == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [("evil.example:1", 403), ("robots.example", 200), ("127.0.0.1:1", 200), ("[::1]:1", 200), ("localhost", 200),
     ("pizero:8000", 200), ("127.0.0.1.evil.example", 403)],
)  # fmt: skip
def test_metrics_are_told_under_known_names(serve: Serve, host: str, status: int) -> None:
    assert get(serve(origins=("robots.example",)), "/metrics", {"Host": host})[0] == status


def test_half_open_connections_are_bounded(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pizero.serving.server.most_newcomers", lambda: 4)
    server = serve()
    with PolicyClient(server.uri) as client, ExitStack() as stack:
        idle = [
            stack.enter_context(socket.create_connection(("127.0.0.1", server.server.port), timeout=10))
            for _ in range(5)
        ]
        assert all(is_ended(one) for one in idle[2:])  # half of them for one address
        assert client.infer(observation())["actions"].shape == (6, 5)
        for one in idle[:2]:
            one.close()
        deadline = time.monotonic() + 10
        while True:
            with suppress(UnreachableError), PolicyClient(server.uri, patience=0) as other:
                assert other.infer(observation())["actions"].shape == (6, 5)
                break
            assert time.monotonic() < deadline


# ---------------------------------------------------------------- the log


@pytest.mark.parametrize("style", ["text", "json"])
def test_floods_are_a_line_a_second_with_a_count(
    style: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with logging_to_stderr(style):  # type: ignore[arg-type]
        for second in range(3):
            now[0] = 100.0 + 1.5 * second
            for _ in range(1000):
                ASYNCIO.warning("socket.send() raised exception.")
                ASYNCIO.error("socket.accept() out of system resource\nsocket: %s", "x")
                log("refused", at_most=1, status=401)
            log("connected", robot=second)
        for number in range(20):
            log("disconnected", robot=number)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 * 4 + 20 + 3
    assert sum("999" in line for line in lines) == 9
    if style == "json":
        events = [json.loads(line) for line in lines]
        assert [event.get("more", 0) for event in events if event["event"] == "refused"] == [0, 999, 999, 999]
    else:
        assert all(line[:4].isdigit() for line in lines)
    assert not ASYNCIO.handlers


def test_many_reloads_are_one(serve: Serve, policy: ModelPolicy) -> None:
    loads = 0

    def load() -> ModelPolicy:
        nonlocal loads
        loads += 1
        return policy

    server = serve()
    server.server.service.hosted["policy"].load = load
    with PolicyClient(server.uri) as client:
        server.call(lambda s: asyncio.wait([asyncio.ensure_future(s.reload()) for _ in range(30)]))
        assert loads == 1
        assert client.infer(observation())["actions"].shape == (6, 5)
        server.call(lambda s: s.reload())  # a later one is another one
        assert loads == 2
        assert client.infer(observation())["actions"].shape == (6, 5)


# ---------------------------------------------------------------- turns, names


def test_owners_take_turns_and_one_thread_is_left() -> None:
    go, order = threading.Event(), []

    def work(owner: str) -> None:
        order.append(owner)
        go.wait(10)

    async def run() -> None:
        turns = Turns(3)
        many = [asyncio.create_task(turns.run("many", work, "many")) for _ in range(6)]
        await asyncio.sleep(0)
        few = [asyncio.create_task(turns.run(owner, work, owner)) for owner in ("few", "other")]
        deadline = time.monotonic() + 10
        while len(order) < 3:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.001)
        assert order == ["many", "many", "few"]
        many[3].cancel()
        go.set()
        found = await asyncio.gather(*many, *few, return_exceptions=True)
        assert [isinstance(one, asyncio.CancelledError) for one in found] == [False] * 3 + [True] + [False] * 4
        assert "other" in order[3:6]  # three start at once, so their threads may write in any order
        with pytest.raises(ZeroDivisionError):
            await turns.run("few", lambda: 1 / 0)
        assert await turns.run("few", lambda: 5) == 5
        order.clear()
        again = [asyncio.create_task(turns.run("many", order.append, "many")) for _ in range(9)]
        await asyncio.gather(*again)  # every thread is free again
        assert order == ["many"] * 9
        turns.shutdown()

    asyncio.run(run())


@pytest.mark.parametrize("name", [".", "..", "...", ".hidden"])
def test_names_that_lead_elsewhere(name: str) -> None:
    with pytest.raises(UserError, match="NAME=PATH"):
        named([f"{name}=runs/a"])
    assert list(named(["a.b=runs/a"])) == ["a.b"]
