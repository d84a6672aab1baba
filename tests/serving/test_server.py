"""A server with a tiny policy, over loopback: replies, refusals, several robots, keys, TLS, reload, the end."""

from __future__ import annotations

import json
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgpack
import numpy as np
import pytest
from serving_helpers import make_policy, noise, observation
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from pizero.policy.policy import ModelPolicy
from pizero.serving import batching, listener
from pizero.serving.client import BusyError, PolicyClient, ServerError, UnreachableError
from pizero.serving.hosted import describe
from pizero.serving.log import logging_to_stderr
from pizero.serving.protocol import pack, unpack
from pizero.serving.running import Background
from pizero.types import UserError

Serve = Callable[..., Background]


def get(server: Background, path: str, headers: dict[str, str] | None = None) -> tuple[int, str]:
    request = urllib.request.Request(server.uri.replace("ws", "http", 1) + path, headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


class Held:
    """The policy, whose model call waits until it is let go."""

    def __init__(self, policy: ModelPolicy) -> None:
        self._policy, self.go, self.calls, self.hold = policy, threading.Event(), 0, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)

    def infer_batch(self, observations: Any) -> Any:
        if self.hold:
            self.calls += 1
            self.go.wait(20)
        return self._policy.infer_batch(observations)


def test_the_reply_is_the_policys(serve: Serve, policy: ModelPolicy) -> None:
    with PolicyClient(serve().uri) as client:
        assert client.metadata["action_horizon"] == 6
        assert client.metadata["cameras"] == ["top", "ego"]
        for seed in range(3):
            asked = {**observation(seed, size=50), "noise": noise(seed)}
            reply = client.infer(asked)
            np.testing.assert_allclose(reply["actions"], policy.infer(asked)["actions"], rtol=1e-5, atol=1e-6)
        assert set(reply["policy_timing"]) == {"inputs_ms", "model_ms", "outputs_ms"}
        timing = reply["server_timing"]
        assert 0 < timing["infer_ms"] < timing["prev_total_ms"] + 1000
        assert timing["batch"] == 1


def test_openpis_form_gives_the_same(serve: Serve) -> None:
    raw = observation()
    columns = {f"observation/{name}": image for name, image in raw["images"].items()}
    with PolicyClient(serve().uri) as client:
        ours = client.infer({**raw, "noise": noise()})
        theirs = client.infer({"observation/state": raw["state"], "prompt": raw["prompt"], "noise": noise(), **columns})
        turned = {name: image.transpose(2, 0, 1) for name, image in raw["images"].items()}
        channels_first = client.infer({**raw, "images": turned, "noise": noise()})
    np.testing.assert_array_equal(ours["actions"], theirs["actions"])
    np.testing.assert_array_equal(ours["actions"], channels_first["actions"])


def test_a_chunk_goes_on_over_the_wire(serve: Serve, policy: ModelPolicy) -> None:
    asked = {**observation(), "noise": noise(), "previous_actions": noise(1)[:4], "inference_delay": 2}
    with PolicyClient(serve().uri) as client:
        continued = client.infer(asked)["actions"]
        alone = client.infer({**observation(), "noise": noise()})["actions"]
    np.testing.assert_allclose(continued, policy.infer(asked)["actions"], rtol=1e-5, atol=1e-6)
    assert np.abs(continued[:2] - noise(1)[:2]).mean() < np.abs(alone[:2] - noise(1)[:2]).mean()


def test_a_connection_knows_the_chunk_that_it_goes_on_with(serve: Serve, policy: ModelPolicy) -> None:
    later = {**observation(1), "noise": noise(1), "inference_delay": 2}
    server = serve()
    with PolicyClient(server.uri) as client, PolicyClient(server.uri) as other:
        first = client.infer({**observation(), "noise": noise(), "played": 3})["actions"]  # it has none yet
        other.infer(observation(5))
        continued = client.infer({**later, "played": 2})["actions"]
        played = server.server.service.live.robots[1].last.played
        over = client.infer({**observation(2), "noise": noise(2), "played": 6})["actions"]
        with pytest.raises(ServerError, match=r"played: got -1, expected a whole number"):
            client.infer({**later, "played": -1})
        with pytest.raises(ServerError, match=r"played: got 1\.5, expected a whole number"):
            client.infer({**later, "played": 1.5})
    np.testing.assert_array_equal(played, first[:2])
    expected = policy.infer({**later, "previous_actions": first[2:]})["actions"]
    np.testing.assert_allclose(continued, expected, rtol=1e-5, atol=1e-6)
    expected = policy.infer({**observation(2), "noise": noise(2)})["actions"]
    np.testing.assert_allclose(over, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ("hello", "bad request: got a text"),
        (b"", "cut off"),
        (b"\xc1" * 9, "a type that is not taken"),
        (b"\x91" * 3_000, "nested"),
        (pack([1, 2]), "a request is a dictionary, got list"),
        (pack({}), "no 'observation/state'"),
        (pack({**observation(), "state": np.zeros(3)}), r"state: got shape \(3,\), expected \(7,\)"),
        (pack({**observation(), "state": np.full(7, np.nan)}), "are NaN or infinite"),
        (pack({**observation(), "state": [[1], [2, 3]]}), "bad request: the observation cannot be read"),
        (pack({**observation(), "state": ["a"] * 7}), "bad request: state: got type"),
        (pack({**observation(), "prompt": 3}), "prompt: got int"),
        (pack({**observation(), "noise": "loud"}), "noise: got str"),
        (
            pack({**observation(), "previous_actions": "these"}),
            "previous_actions: got str, expected an array of numbers",
        ),
        (pack({**observation(), "previous_actions": np.zeros((9, 5))}), r"previous_actions: got shape \(9, 5\)"),
        (pack({**observation(), "previous_actions": noise(), "inference_delay": -1}), "inference_delay: got -1"),
        (pack({**observation(), "images": 3}), "images: got int"),
        (pack({**observation(), "images": {}}), "no 'top'"),
        (pack({**observation(), "images": {**observation()["images"], "left": 0}}), r"\['left'\].*\['ego', 'top'\]"),
        (pack({**observation(), "images": {"top": np.full((3, 4, 4), np.nan)}}), r"must lie in \[0, 1\]"),
        (pack({**observation(), "images": {"top": "text"}}), "bad request: images/top"),
        (msgpack.packb({"state": {b"__ndarray__": True}}), "bad request: an array"),
    ],
)
def test_a_bad_request_is_told_and_the_connection_lives_on(serve: Serve, message: Any, text: str) -> None:
    server = serve()
    with connect(server.uri, compression=None) as connection, PolicyClient(server.uri) as other:
        connection.recv()
        for _ in range(2):
            connection.send(message)
            reply = connection.recv()
            assert isinstance(reply, str)
            with pytest.raises(ServerError, match=text):
                raise ServerError(reply)
            assert "Traceback" not in reply
            assert "/" not in reply.replace("observation/", "").replace("images/", "")  # no path of a file
        connection.send(pack(observation()))
        assert unpack(connection.recv())["actions"].shape == (6, 5)
        assert other.infer(observation())["actions"].shape == (6, 5)


def test_a_failure_of_the_policy_is_told_without_its_trace(serve: Serve, policy: ModelPolicy) -> None:
    broken = Held(policy)
    server = serve(broken)

    def fail(observations: Any) -> Any:
        raise RuntimeError("secret /etc/path")

    broken.infer_batch = fail  # type: ignore[method-assign]
    with PolicyClient(server.uri) as client:
        with pytest.raises(ServerError, match="failed: the policy gave no answer; see robot 1") as caught:
            client.infer(observation())
        assert "secret" not in str(caught.value)
        del broken.infer_batch
        assert client.infer(observation())["actions"].shape == (6, 5)


def test_robots_share_a_model_call_and_get_their_own_answers(serve: Serve, policy: ModelPolicy) -> None:
    server = serve(max_wait_ms=500)
    clients = [PolicyClient(server.uri) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for turn in range(3):
            asked = [{**observation(seed), "noise": noise(seed)} for seed in range(4)]
            replies = list(pool.map(lambda client, one: client.infer(one), clients, asked))
            for one, reply in zip(asked, replies, strict=True):
                np.testing.assert_allclose(reply["actions"], policy.infer(one)["actions"], rtol=1e-4, atol=1e-5)
            if turn:
                assert [reply["server_timing"]["batch"] for reply in replies] == [4] * 4
    status, text = get(server, "/metrics")
    assert status == 200
    assert 'pizero_requests_total{checkpoint="policy"} 12.0' in text
    assert 'pizero_robots{checkpoint="policy"} 4.0' in text
    assert 'pizero_stage_seconds_count{checkpoint="policy",stage="infer"} 12.0' in text
    for client in clients:
        client.close()


def test_a_slow_call_blocks_nobody_else_and_a_flood_is_refused(serve: Serve, policy: ModelPolicy) -> None:
    held = Held(policy)
    server = serve(held, max_queue=2, max_batch=1)
    held.hold = True
    clients = [PolicyClient(server.uri) for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(clients[0].infer, observation())]
        while not held.calls:
            time.sleep(0.01)
        asked += [pool.submit(client.infer, observation()) for client in clients[1:]]
        started = time.perf_counter()
        while sum(one.done() for one in asked) < 3:
            time.sleep(0.01)
        assert get(server, "/healthz") == (200, "OK\n")
        with PolicyClient(server.uri) as late:
            assert late.metadata["checkpoint"] == "policy"
        assert time.perf_counter() - started < 5
        held.go.set()
        found = [one.exception() for one in asked]
    assert sum(isinstance(error, BusyError) for error in found) == 3
    assert sum(error is None for error in found) == 3
    assert clients[5].infer(observation())["actions"].shape == (6, 5)
    for client in clients:
        client.close()


def test_checkpoints_by_name(serve: Serve, policy: ModelPolicy) -> None:
    other = make_policy(1)
    server = serve({"red": policy, "blue": other})
    asked = {**observation(), "noise": noise()}
    for path, expected in (("", policy), ("/red", policy), ("/blue", other)):
        with PolicyClient(server.uri + path) as client:
            np.testing.assert_allclose(client.infer(asked)["actions"], expected.infer(asked)["actions"], rtol=1e-5)
    with pytest.raises(UnreachableError, match=r'there are \["red", "blue"\]'):
        PolicyClient(server.uri + "/green")


def test_keys(serve: Serve) -> None:
    server = serve(api_keys=("one", "two"))
    for key in (None, "", "three", "onee"):
        with pytest.raises(UnreachableError, match="an API key is needed"):
            PolicyClient(server.uri, api_key=key)
    with PolicyClient(server.uri, api_key="two") as client:
        assert client.infer(observation())["actions"].shape == (6, 5)
    assert get(server, "/metrics")[0] == 401
    assert get(server, "/metrics", {"Authorization": "Api-Key one"})[0] == 200
    assert get(server, "/healthz")[0] == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://evil.example:1", "Host": "evil.example:1"}, 403),  # its name was made to lead here
        ({"Origin": "http://robots.example:1", "Host": "robots.example:1"}, 426),
        ({"Origin": "http://127.0.0.1:1", "Host": "127.0.0.1:1"}, 426),
        ({}, 426),
    ],
)
def test_pages_of_others_are_refused(serve: Serve, headers: dict[str, str], status: int) -> None:
    assert get(serve(origins=("robots.example",)), "/policy", headers)[0] == status


def test_limits_of_a_connection(serve: Serve) -> None:
    server = serve(max_message_mb=1, max_connections=2)
    with PolicyClient(server.uri) as client:
        with pytest.raises(ServerError, match="larger than the server takes"):
            client.infer({**observation(), "extra": np.zeros(1 << 20)})
        client.infer(observation())
        with connect(server.uri), pytest.raises(UnreachableError, match="2 robots are connected"):
            PolicyClient(server.uri, patience=0)


def test_a_connection_that_asks_for_nothing_is_closed(serve: Serve) -> None:
    with connect(serve(idle_s=0.4).uri) as silent:
        silent.recv()
        with pytest.raises(ConnectionClosed, match="no request for"):
            silent.recv(timeout=20)


def test_requests_a_second_of_a_connection(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that stands still, then goes on, whatever the machine is busy with."""
    now = 100.0
    monkeypatch.setattr(listener, "time", SimpleNamespace(monotonic=lambda: now))
    with PolicyClient(serve(max_rate=5).uri) as client:
        for seconds, requests in ((0, 5), (0, 0), (0.5, 2), (60, 5)):  # what is refused takes nothing, no more is saved
            now += seconds
            for _ in range(requests):
                client.infer(observation())
            with pytest.raises(BusyError, match="more than 5 requests a second"):
                client.infer(observation())
        assert client.connections == 1


def test_tls(serve: Serve, tmp_path: Path) -> None:
    files = [str(tmp_path / name) for name in ("key.pem", "cert.pem")]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost",
               "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", files[0], "-out", files[1]]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    server = serve(certificate=Path(files[1]), private_key=Path(files[0]))
    trust = ssl.create_default_context(cafile=files[1])
    with PolicyClient(server.uri, ssl=trust) as client:
        assert client.infer(observation())["actions"].shape == (6, 5)
    with pytest.raises(UnreachableError, match="certificate verify failed"):
        PolicyClient(server.uri)
    with pytest.raises(UserError, match="cannot be used"):
        serve(certificate=Path(files[0]), private_key=Path(files[0]))


def test_reload_without_dropping_a_connection(serve: Serve, policy: ModelPolicy) -> None:
    policies = {"now": policy}

    server = serve(policy)
    hosted = server.server.service.hosted["policy"]
    hosted.load = lambda: policies["now"]
    asked = {**observation(), "noise": noise()}
    with PolicyClient(server.uri) as client:
        before = client.infer(asked)["actions"]
        policies["now"] = make_policy(7)
        server.call(lambda s: s.reload())
        after = client.infer(asked)["actions"]
        np.testing.assert_allclose(after, policies["now"].infer(asked)["actions"], rtol=1e-5)
        assert not np.allclose(before, after)
        policies["now"] = make_policy(7, action_horizon=3)  # what robots were told would no longer hold
        server.call(lambda s: s.reload())
        np.testing.assert_array_equal(client.infer(asked)["actions"], after)
        assert client.connections == 1
    text = get(server, "/metrics")[1]
    assert 'pizero_reloads_total{checkpoint="policy",result="done"} 1.0' in text
    assert 'pizero_reloads_total{checkpoint="policy",result="failed"} 1.0' in text


def test_a_port_that_is_taken_is_one_line(serve: Serve) -> None:
    taken = serve().server.port
    with pytest.raises(UserError, match=f"cannot listen on 127.0.0.1:{taken}"):
        serve(port=taken)


def test_what_runs_is_answered_at_the_end(serve: Serve, policy: ModelPolicy) -> None:
    held = Held(policy)
    server = serve(held, drain_s=10.0)
    held.hold = True
    with PolicyClient(server.uri) as client, ThreadPoolExecutor(2) as pool, connect(server.uri) as idle:
        running = pool.submit(client.infer, observation())
        while not held.calls:
            time.sleep(0.01)
        uri, ending = server.uri, pool.submit(server.stop)
        idle.recv()
        with pytest.raises(ConnectionClosed, match="the server ends"):
            idle.recv(timeout=10)
        assert not running.done()
        held.go.set()
        assert running.result(10)["actions"].shape == (6, 5)
        ending.result(10)
        with pytest.raises(UnreachableError):
            PolicyClient(uri, patience=0)


def test_a_prompt_that_is_cut_is_an_event_of_the_log(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    """In the log's own form, once for each prompt, whichever thread prepares it."""
    long = "lift the red block and hold it over the green one"
    with logging_to_stderr("json"), PolicyClient(serve(make_policy()).uri) as client:
        for _ in range(3):
            client.infer({**observation(), "prompt": long})
        client.infer({**observation(), "prompt": long + " for a while"})
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    told = [(event["level"], event["text"]) for event in events if event["event"] == "note"]
    assert told == [
        ("warning", f"prompt {long!r}: 51 tokens, of which the model takes the first 40; shorten it"),
        ("warning", f"prompt '{long} for a w...': 63 tokens, of which the model takes the first 40; shorten it"),
    ]


def test_the_end_is_bounded_whatever_the_model_does(serve: Serve, policy: ModelPolicy) -> None:
    held = Held(policy)
    server = serve(held, drain_s=0.2)
    held.hold = True
    with PolicyClient(server.uri, patience=0) as client, ThreadPoolExecutor(1) as pool:
        running = pool.submit(client.infer, observation())
        while not held.calls:
            time.sleep(0.01)
        started = time.monotonic()
        server.stop()
        assert time.monotonic() - started < 5
        assert server.server.left_behind
        with pytest.raises(UnreachableError, match="the server ends"):
            running.result(10)
    held.go.set()
    with PolicyClient(serve(held).uri) as client:  # as the robot finds the next one
        assert client.infer(observation())["actions"].shape == (6, 5)


def test_a_stuck_model_call_is_told(serve: Serve, policy: ModelPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(policy)
    server = serve(held)
    assert get(server, "/healthz") == (200, "OK\n")
    held.hold = True
    with PolicyClient(server.uri) as client, ThreadPoolExecutor(1) as pool:
        running = pool.submit(client.infer, observation())
        while not held.calls:
            time.sleep(0.01)
        monkeypatch.setattr(batching, "LONGEST_CALL", 0.0)
        monkeypatch.setattr(batching, "TIMES_SLOWEST", 0.0)
        status, text = get(server, "/healthz")
        assert (status, text) == (503, "the model call of policy runs for 0 s\n")
        held.go.set()
        assert running.result(10)["actions"].shape == (6, 5)
        assert get(server, "/healthz") == (200, "OK\n")
        assert client.infer(observation())["actions"].shape == (6, 5)


@pytest.mark.parametrize("how", [StopIteration, GeneratorExit, SystemExit])
def test_a_robot_goes_on_after_any_failure_of_the_model(
    serve: Serve, policy: ModelPolicy, monkeypatch: pytest.MonkeyPatch, how: type[BaseException]
) -> None:
    server = serve()
    asked = {**observation(), "noise": noise()}
    with PolicyClient(server.uri) as client:
        first = client.infer(asked)["actions"]
        with monkeypatch.context() as patch:
            patch.setattr(policy, "infer_batch", lambda _: (_ for _ in ()).throw(how("odd")))
            with pytest.raises(ServerError, match="failed: the policy gave no answer"):
                client.infer(asked)
        np.testing.assert_array_equal(client.infer(asked)["actions"], first)
        assert get(server, "/healthz")[0] == 200
        assert client.connections == 1


def test_a_robot_that_chooses_dimensions_is_told_which(policy: ModelPolicy) -> None:
    assert "state_dims" not in describe("x", policy)
    robot = replace(policy.pipeline.embodiment, action_dims=("x", "y", "z", "yaw", 7))
    told = describe("x", ModelPolicy(policy.model, replace(policy.pipeline, embodiment=robot)))
    assert told["action_dims"] == ["x", "y", "z", "yaw", 7]
    assert (told["action_dim"], "state_dims" in told) == (5, False)
