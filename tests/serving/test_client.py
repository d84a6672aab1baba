"""The client against small servers: replies, refusals, broken connections, back-off, and the two files alone."""

from __future__ import annotations

import shutil
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import Server, ServerConnection, serve

from pizero.serving import client as module
from pizero.serving.client import BusyError, PolicyClient, ServerError, UnreachableError
from pizero.serving.protocol import ProtocolError, pack, unpack

METADATA = pack({"action_horizon": 2})


@contextmanager
def serving(handler: Callable[[ServerConnection], None], port: int = 0, **options: Any) -> Iterator[str]:
    server: Server = serve(handler, "127.0.0.1", port, **options)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
    finally:
        server.shutdown()
        thread.join()


def echo(connection: ServerConnection) -> None:
    """Doubles the state; refuses what has none."""
    connection.send(METADATA)
    for message in connection:
        value = unpack(message)
        if "busy" in value:
            connection.send("busy: 4 requests wait")
        elif "state" in value:
            connection.send(pack({"actions": 2 * value["state"]}))
        else:
            connection.send("bad request: no 'state'")


def test_replies_and_refusals_over_one_connection() -> None:
    with serving(echo) as uri, PolicyClient(uri) as client:
        assert client.metadata == {"action_horizon": 2}
        for value in (1.0, 2.0):
            np.testing.assert_array_equal(client.infer({"state": np.full(3, value)})["actions"], np.full(3, 2 * value))
            with pytest.raises(ServerError, match="bad request: no 'state'"):
                client.infer({})
            with pytest.raises(BusyError, match="4 requests wait"):
                client.infer({"busy": 1})
        client.reset()
        assert client.connections == 1


def test_a_request_whose_connection_breaks_is_sent_again() -> None:
    seen: list[Any] = []

    def fragile(connection: ServerConnection) -> None:
        connection.send(METADATA)
        message = connection.recv()
        seen.append(message)
        if len(seen) < 3:
            connection.socket.close()  # without a word
            return
        connection.send(pack({"actions": np.zeros(1)}))

    with serving(fragile) as uri, PolicyClient(uri, patience=20) as client:
        assert client.infer({"state": 1})["actions"].shape == (1,)
        assert client.connections == 3
    assert len(set(seen)) == 1


def test_the_pauses_grow_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(module.time, "sleep", pauses.append)
    monkeypatch.setattr(module.random, "random", lambda: 0.5)
    clock = iter(range(1000))
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(clock)))
    with pytest.raises(UnreachableError, match=":9 cannot be reached"):
        PolicyClient("ws://127.0.0.1:9", patience=60)
    assert pauses[:8] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


def test_a_server_that_comes_late_is_waited_for() -> None:
    with serving(echo) as uri:
        port = int(uri.rsplit(":", 1)[1])
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(PolicyClient(uri, patience=20).metadata["action_horizon"]))
    thread.start()
    time.sleep(0.3)
    with serving(echo, port):
        thread.join(10)
        assert found == [2]


def test_refused_by_status() -> None:
    def refuse(connection: ServerConnection, request: Any) -> Any:
        if request.headers.get("Authorization") == "Api-Key secret":
            return None
        return connection.respond(HTTPStatus.UNAUTHORIZED, "an API key is needed\n")

    with serving(echo, process_request=refuse) as uri:
        started = time.monotonic()
        with pytest.raises(UnreachableError, match="an API key is needed"):
            PolicyClient(uri)
        assert time.monotonic() - started < 5
        assert PolicyClient(uri, api_key="secret").infer({"state": 1})["actions"] == 2


def test_no_answer_in_time_leaves_no_answer_for_the_next() -> None:
    def slow(connection: ServerConnection) -> None:
        connection.send(METADATA)
        try:
            value = unpack(connection.recv())["state"]
            time.sleep(0.5 * value)
            connection.send(pack({"actions": value}))
        except ConnectionClosed:
            pass

    with serving(slow) as uri, PolicyClient(uri, timeout=0.2) as client:
        with pytest.raises(UnreachableError, match="gave no answer"):
            client.infer({"state": 1})
        assert client.infer({"state": 0})["actions"] == 0


def test_a_request_larger_than_the_server_takes_is_told() -> None:
    with serving(echo, max_size=1000) as uri, PolicyClient(uri) as client:
        with pytest.raises(ServerError, match="larger than the server takes"):
            client.infer({"state": np.zeros(1000)})
        assert client.infer({"state": 1})["actions"] == 2


def test_an_answer_that_is_none_costs_no_connection() -> None:
    def odd(connection: ServerConnection) -> None:
        connection.send(METADATA)
        for message in connection:
            value = unpack(message)["state"]
            connection.send(b"\xc1" if value < 0 else pack({"actions": value}))

    with serving(odd) as uri, PolicyClient(uri) as client:
        for _ in range(2):
            with pytest.raises(ProtocolError, match="a type that is not taken"):
                client.infer({"state": -1})
            assert client.infer({"state": 1})["actions"] == 1
        assert client.connections == 1


def test_the_two_files_alone(tmp_path: Path) -> None:
    for name in ("client.py", "protocol.py"):
        shutil.copy(Path(module.__file__).parent / name, tmp_path)
    code = (
        "import sys; sys.modules['pizero'] = None; import client; "
        "actions = client.PolicyClient(sys.argv[1]).infer({'state': 4})['actions']; "
        "print(actions, 'torch' in sys.modules, client.__file__)"
    )
    with serving(echo) as uri:
        command = [sys.executable, "-c", code, uri]
        shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.split()
    assert shown == ["8", "False", str(tmp_path / "client.py")]


def test_the_client_loads_no_torch() -> None:
    code = "import sys, pizero.serving.client; print('torch' in sys.modules, 'pyarrow' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["False", "False"]


VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "socks_proxy", "ws_proxy", "wss_proxy", "no_proxy")


@contextmanager
def proxying(answer: bytes, port: int = 0) -> Iterator[tuple[str, list[str]]]:
    """A proxy on this machine: its address, and the hosts it was asked for. It answers, then tunnels to `port`."""
    asked: list[str] = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            asked.append(self.rfile.readline().decode().split()[1])
            while self.rfile.readline().strip():
                pass
            self.wfile.write(answer)
            if not port:
                return
            with socket.create_connection(("127.0.0.1", port)) as inner:
                back = threading.Thread(target=self.copy, args=(inner, self.connection))
                back.start()
                self.copy(self.connection, inner)
                back.join()

        def copy(self, source: socket.socket, target: socket.socket) -> None:
            with suppress(OSError):
                while data := source.recv(4096):
                    target.sendall(data)
                target.shutdown(socket.SHUT_WR)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield f"http://me:secret@127.0.0.1:{server.server_address[1]}", asked
        server.shutdown()


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return monkeypatch


@pytest.mark.parametrize("variable", ["http_proxy", "HTTPS_PROXY", "all_proxy", "socks_proxy"])
def test_a_proxy_is_not_asked_for_this_machine(variable: str, no_proxies: pytest.MonkeyPatch) -> None:
    with proxying(b"HTTP/1.1 403 Forbidden\r\n\r\n") as (address, asked), serving(echo) as uri:
        no_proxies.setenv(variable, address)
        for host in ("127.0.0.1", "localhost"):
            with PolicyClient(uri.replace("127.0.0.1", host), patience=0) as client:
                assert client.connections == 1
    assert asked == []


@pytest.mark.parametrize(
    ("host", "near"),
    [
        ("127.0.0.1", True), ("[::1]", True), ("10.1.2.3", True), ("192.168.0.9", True), ("172.31.0.1", True),
        ("169.254.1.1", True), ("100.64.0.1", True), ("[fd00::1]", True), ("[fe80::1%lo]", True), ("gpu-box", True),
        ("1.1.1.1", False), ("[2606:4700::1]", False), ("robots.example", False), ("mixed.example", False),
    ],
)  # fmt: skip
def test_private_addresses_are_reached_directly(host: str, near: bool, no_proxies: pytest.MonkeyPatch) -> None:
    names = {"gpu-box": ["192.168.7.7"], "mixed.example": ["10.0.0.1", "1.1.1.1"]}
    real = socket.getaddrinfo

    def resolve(name: str, port: int) -> list[Any]:
        if name == "robots.example":
            raise socket.gaierror("unknown")
        return [entry for address in names.get(name, [name]) for entry in real(address, port)]

    no_proxies.setattr(module.socket, "getaddrinfo", resolve)
    no_proxies.setenv("http_proxy", "http://proxy:3128")
    assert module._proxy(f"ws://{host}:8000") == (None if near else "http://proxy:3128")
    no_proxies.setenv("no_proxy", host)
    assert near or "[" in host or module._proxy(f"ws://{host}:8000") is None


def test_a_public_address_goes_through_the_proxy(no_proxies: pytest.MonkeyPatch) -> None:
    with serving(echo) as uri, proxying(b"HTTP/1.1 200 OK\r\n\r\n", int(uri.rpartition(":")[2])) as (address, asked):
        no_proxies.setenv("http_proxy", address)
        with PolicyClient("ws://1.1.1.1:8000", patience=0) as client:
            assert client.infer({"state": np.ones(2)})["actions"].tolist() == [2, 2]
    assert asked == ["1.1.1.1:8000"]


@pytest.mark.parametrize("status", ["403 Forbidden", "407 Proxy Authentication Required", "502 Bad Gateway"])
def test_a_proxy_that_refuses_is_named(status: str, no_proxies: pytest.MonkeyPatch) -> None:
    with proxying(f"HTTP/1.1 {status}\r\n\r\n".encode()) as (address, _):
        no_proxies.setenv("http_proxy", address)
        named = rf"through the proxy {address.replace('me:secret@', '')} of the environment \(.*{status[:3]}.*no_proxy"
        patience = 0 if status.startswith("5") else 60  # a refusal is final
        with pytest.raises(UnreachableError, match=rf"1.1.1.1:8000 cannot be reached {named}") as told:
            PolicyClient("ws://1.1.1.1:8000", patience=patience)
        assert "secret" not in str(told.value)


@pytest.mark.parametrize(("value", "proxy"), [("127.0.0.1:3128", "http://127.0.0.1:3128"), (" ", None)])
def test_a_proxy_without_a_scheme(value: str, proxy: str | None, no_proxies: pytest.MonkeyPatch) -> None:
    no_proxies.setenv("http_proxy", value)
    assert module._proxy("ws://1.1.1.1:8000") == proxy


@pytest.mark.parametrize(
    "proxy", ["socks5://127.0.0.1:1", "ftp://127.0.0.1:1", "http://127.0.0.1:1", "http://127.0.0.1:99999"]
)
def test_a_proxy_that_cannot_be_used_is_named(proxy: str, no_proxies: pytest.MonkeyPatch) -> None:
    no_proxies.setenv("https_proxy", proxy)
    with pytest.raises(UnreachableError, match=f"cannot be reached through the proxy {proxy} of the environment"):
        PolicyClient("wss://1.1.1.1:8000", patience=0 if proxy.endswith("http://127.0.0.1:1") else 60)


def test_an_address_that_is_none_is_told_at_once() -> None:
    with pytest.raises(UnreachableError, match="isn't a valid URI"):
        PolicyClient("127.0.0.1:8000")
    with pytest.raises(UnreachableError, match=r"cannot be reached .*0-65535"):
        PolicyClient("ws://127.0.0.1:99999")
