"""The client against small servers: replies, refusals, broken connections, back-off, and the two files alone."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import Server, ServerConnection, serve

from pizero.serving import client as module
from pizero.serving.client import BusyError, PolicyClient, ServerError, UnreachableError
from pizero.serving.protocol import pack, unpack

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
