"""What goes wrong on a network, and frames made to hurt: the server goes on, and so do the other robots."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from serving_helpers import observation
from test_server import get
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from pizero.serving.client import BusyError, PolicyClient
from pizero.serving.protocol import ARRAY, pack, unpack
from pizero.serving.running import Background

Serve = Callable[..., Background]


def robots(server: Background) -> int:
    return len(server.server.service.live.robots)


def wait_for(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def raw_connection(server: Background) -> socket.socket:
    """A websocket by hand, after the handshake and the metadata."""
    raw = socket.create_connection(("127.0.0.1", server.server.port), timeout=10)
    raw.sendall(
        b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    data = b""
    while b"pizero" not in data.partition(b"\r\n\r\n")[2]:
        data += raw.recv(4096)
    return raw


def frame(payload: bytes, announced: int | None = None) -> bytes:
    """A masked binary frame; `announced` is the length that it claims."""
    length = len(payload) if announced is None else announced
    return b"\x82" + bytes([0x80 | 127]) + struct.pack(">Q", length) + bytes(4) + payload


def test_a_client_that_vanishes_in_mid_message(serve: Serve) -> None:
    server = serve()
    message = pack(observation())
    with PolicyClient(server.uri) as other:
        for _ in range(5):
            raw = raw_connection(server)
            raw.sendall(frame(message)[: len(message) // 2])
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # reset, without a word
            raw.close()
            assert other.infer(observation())["actions"].shape == (6, 5)
        wait_for(lambda: robots(server) == 1)


def test_a_client_that_vanishes_before_its_answer(serve: Serve) -> None:
    server = serve()
    for _ in range(5):
        raw = raw_connection(server)
        raw.sendall(frame(pack(observation())))
        raw.close()
    with PolicyClient(server.uri) as other:
        assert other.infer(observation())["actions"].shape == (6, 5)
        wait_for(lambda: robots(server) == 1)


def test_a_half_open_connection_is_noticed(serve: Serve) -> None:
    """The other end says nothing any more, not even to pings."""
    server = serve(ping_s=0.2)
    raw = raw_connection(server)
    with PolicyClient(server.uri) as other:
        assert robots(server) == 2
        wait_for(lambda: robots(server) == 1)
        assert other.infer(observation())["actions"].shape == (6, 5)
    raw.close()


def test_a_slow_reader_holds_up_nobody(serve: Serve) -> None:
    """It asks and asks, and never reads: its own line fills up, then it is dropped."""
    server = serve(ping_s=0.5)
    raw = raw_connection(server)
    raw.settimeout(0.2)
    message = frame(pack(observation()))
    with PolicyClient(server.uri) as other:
        seconds, ended = [], time.monotonic() + 1.0
        while time.monotonic() < ended:
            with suppress(OSError):
                raw.sendall(message)
            started = time.monotonic()
            other.infer(observation())
            seconds.append(time.monotonic() - started)
        assert max(seconds) < 1.0
        wait_for(lambda: robots(server) == 1)
    raw.close()


def test_a_thousand_connections_leave_nothing(serve: Serve) -> None:
    server = serve()
    with PolicyClient(server.uri) as client:
        client.infer(observation())
        files = len(os.listdir("/proc/self/fd"))
        for turn in range(1000):
            if turn % 2:
                socket.create_connection(("127.0.0.1", server.server.port)).close()
            else:
                raw_connection(server).close()
        wait_for(lambda: robots(server) == 1)
        wait_for(lambda: len(os.listdir("/proc/self/fd")) <= files + 2)
        assert client.infer(observation())["actions"].shape == (6, 5)
        assert get(server, "/metrics")[1].count('pizero_robots{checkpoint="policy"} 1.0') == 1


def test_a_flood_gets_busy_and_the_server_goes_on(serve: Serve) -> None:
    server = serve(max_queue=3, max_batch=2)
    clients = [PolicyClient(server.uri) for _ in range(12)]
    counts = {"answered": 0, "busy": 0}

    def ask(client: PolicyClient) -> None:
        for _ in range(10):
            try:
                client.infer(observation())
                counts["answered"] += 1
            except BusyError:
                counts["busy"] += 1

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(ask, clients))
    assert counts["answered"] + counts["busy"] == 120
    assert counts["answered"] >= 10
    assert counts["busy"] >= 10
    assert server.server.service.hosted["policy"].batcher.length == 0
    assert clients[0].infer(observation())["actions"].shape == (6, 5)
    for client in clients:
        client.close()


def test_a_clock_that_jumps(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server, real = serve(idle_s=60.0), time.time
    with PolicyClient(server.uri) as client:
        for jump in (0.0, -1e8, 1e8):
            monkeypatch.setattr(time, "time", lambda jump=jump: real() + jump)
            reply = client.infer(observation())
            assert all(0 <= value < 60_000 for value in reply["server_timing"].values())
        assert client.connections == 1


# ---------------------------------------------------------------- frames made to hurt


def hostile_frames(seed: int) -> Iterator[bytes | str]:
    """Frames without end: noise, broken messages, bombs, lies about shapes, wrong keys and values."""
    rng = np.random.default_rng(seed)
    good = pack(observation())
    while True:
        kind = int(rng.integers(12))
        if kind == 0:
            yield rng.bytes(int(rng.integers(0, 300)))
        elif kind == 1:  # a good message with some bytes changed
            broken = bytearray(good)
            for place in rng.integers(0, len(good), int(rng.integers(1, 20))):
                broken[place] = int(rng.integers(256))
            yield bytes(broken)
        elif kind == 2:
            yield good[: int(rng.integers(len(good)))]
        elif kind == 3:
            yield bytes([int(rng.choice([0x91, 0x81]))]) * int(rng.integers(1, 5000))
        elif kind == 4:  # announces far more than it has
            yield bytes([int(rng.integers(0xC4, 0xE0))]) + rng.bytes(int(rng.integers(0, 10)))
        elif kind == 5:
            yield b"\xdd" + struct.pack(">I", int(rng.integers(1 << 32))) + b"\x90" * int(rng.integers(5000))
        elif kind == 6:
            yield pack({**observation(), **_wrong_value(rng)})
        elif kind == 7:
            yield "text \x00 é" * int(rng.integers(1, 20))
        else:
            yield msgpack.packb({**_names(rng), "x": _lying_array(rng)})


def _names(rng: np.random.Generator) -> dict[str, Any]:
    names = ["state", "images", "prompt", "noise", "observation/state", "observation/top", "\x00", "../../etc/passwd"]
    return {names[int(index)]: _lying_array(rng) for index in rng.integers(0, len(names), 3)}


def _lying_array(rng: np.random.Generator) -> Any:
    dtypes = ["<f4", "|u1", "O", "V9", "(9,)f4", "<f99", "M8", "|S9", "", "f4,f4", 7, None, "<U3", ">i8", "|b1"]
    shapes = [[1], [], [2**40], [-1], [2**63 - 1, 2], [0], [0, 2**60], [1] * 40, "7", [1.5], [[1]], None, [True]]
    data = [b"", b"\x00" * 4, b"\xff" * 8, "text", 1, None, [1], bytes(int(rng.integers(200)))]
    array = {
        ARRAY: True,
        b"data": data[int(rng.integers(len(data)))],
        b"dtype": dtypes[int(rng.integers(len(dtypes)))],
        b"shape": shapes[int(rng.integers(len(shapes)))],
    }
    if rng.random() < 0.2:
        array[b"__npgeneric__"] = array.pop(ARRAY)
    return array if rng.random() < 0.8 else {"nested": [array, {"deep": array}]}


def _wrong_value(rng: np.random.Generator) -> dict[str, Any]:
    nan, huge = np.full((28, 28, 3), np.nan, np.float32), np.full(7, 1e39)
    image = observation()["images"]["top"]
    return [
        {"images": {"top": nan, "ego": nan}}, {"images": {"top": image[:, :0], "ego": image}}, {"state": huge},
        {"images": {"top": image[..., :2], "ego": image}}, {"images": {"top": image, "../ego": image}},
        {"state": np.full(7, np.inf)}, {"state": np.zeros((7, 7))}, {"state": None}, {"state": "x" * 100},
        {"prompt": b"\xff\xfe"}, {"prompt": ["a"]}, {"prompt": "\x00" * 4000}, {"prompt": "é" * 4000},
        {"noise": np.full((6, 5), np.nan)}, {"noise": [[[[1]]]]}, {"images": [image]}, {"images": {}}, {"images": None},
        {"images": {"top": np.zeros((4000, 1, 3), np.uint8), "ego": image}}, {"state": [[1], [2, 3]]},
        {"images": {"top": np.zeros((1, 1, 1, 1, 3), np.uint8)}}, {"state": np.zeros(7, bool)}, {"played": 1 << 63},
        {"played": [3]}, {"inference_delay": np.float32(2)}, {"previous_actions": np.full((3, 5), np.nan)},
        {"previous_actions": np.full((3, 5), 1e39)}, {"previous_actions": np.full((6, 5), 1e30), "inference_delay": 1},
        {"previous_actions": np.full((6, 5), 4e5)}, {"noise": np.full((6, 5), 1e30)}, {"noise": np.full((6, 5), -9e5)},
    ][int(rng.integers(31))]  # fmt: skip


def bombard(server: Background, count: int) -> dict[str, int]:
    """Sends hostile frames over one connection after another; counts what comes back."""
    counts = {"error": 0, "actions": 0, "connections": 1}
    frames = hostile_frames(0)
    connection = connect(server.uri, compression=None, max_size=None).__enter__()
    connection.recv()
    for number in range(count):
        connection.send(next(frames))
        reply = connection.recv(timeout=30)
        if isinstance(reply, str):
            counts["error"] += 1
            assert reply.startswith(("bad request: ", "failed: ", "busy: ")), reply
            assert not reply.startswith("failed: "), reply
            assert "Traceback" not in reply
            assert ".py" not in reply
            assert "/tmp" not in reply
            assert "/home" not in reply
            assert len(reply) < 600
        else:
            counts["actions"] += 1
            assert np.isfinite(unpack(reply)["actions"]).all()
        if number % 5000 == 4999:
            connection.close()
            connection = connect(server.uri, compression=None, max_size=None).__enter__()
            connection.recv()
            counts["connections"] += 1
    connection.close()
    return counts


def _memory() -> float:
    """Resident megabytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


def check_bombardment(serve: Serve, count: int) -> None:
    server = serve(max_rate=1e9, max_wait_ms=0.0)
    with PolicyClient(server.uri) as other:
        before = other.infer({**observation(), "noise": np.zeros((6, 5))})["actions"]
        bombard(server, 500)  # what is made once is made
        memory = _memory()
        counts = bombard(server, count)
        after = other.infer({**observation(), "noise": np.zeros((6, 5))})["actions"]
    np.testing.assert_array_equal(before, after)
    assert counts["error"] + counts["actions"] == count
    assert counts["error"] > 0.8 * count
    assert counts["actions"] > 0
    assert _memory() - memory < 60


def test_hostile_frames(serve: Serve) -> None:
    check_bombardment(serve, 1_500)


@pytest.mark.slow
def test_a_hundred_thousand_hostile_frames(serve: Serve) -> None:
    check_bombardment(serve, 100_000)


def test_a_frame_that_lies_about_its_length(serve: Serve) -> None:
    server = serve(max_message_mb=1)
    raw = raw_connection(server)
    raw.sendall(frame(b"", announced=1 << 62))
    raw.settimeout(5)
    assert raw.recv(100)[:1] == b"\x88"  # it is closed at once, and no memory was taken
    raw.close()
    with connect(server.uri, max_size=None) as connection:
        connection.recv()
        connection.send(bytes(2 << 20))
        with pytest.raises(ConnectionClosed, match="1009"):
            connection.recv(timeout=5)
    with PolicyClient(server.uri) as other:
        assert other.infer(observation())["actions"].shape == (6, 5)
