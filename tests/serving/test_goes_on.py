"""After each kind of error the next request, connection, page or reload is as good as before."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from serving_helpers import make_policy, noise, observation
from websockets.sync.client import connect

from pizero.policy.policy import ModelPolicy
from pizero.serving.batching import Batcher, BusyError
from pizero.serving.client import PolicyClient, ServerError, UnreachableError
from pizero.serving.config import ServeConfig
from pizero.serving.protocol import ProtocolError
from pizero.serving.running import Background, background
from pizero.serving.server import PolicyServer
from pizero.serving.turns import Turns
from pizero.types import UserError

Serve = Callable[..., Background]


def fail(kind: type[BaseException]) -> Callable[..., Any]:
    def raising(*_: object, **__: object) -> None:
        raise kind("odd")

    return raising


def once(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, kind: type[BaseException]) -> None:
    """The next call of it fails, those after it do what it did."""
    real, calls = getattr(owner, name), iter([fail(kind)])
    monkeypatch.setattr(owner, name, lambda *arguments, **options: next(calls, real)(*arguments, **options))


@pytest.mark.parametrize("kind", [UserError, RuntimeError, MemoryError, SystemExit])
def test_a_reload_that_fails_changes_nothing_and_the_next_one_does(
    serve: Serve, policy: ModelPolicy, kind: type[BaseException]
) -> None:
    server = serve({"red": policy, "blue": policy})
    asked = {**observation(), "noise": noise()}
    new = make_policy(7)
    hosted = server.server.service.hosted
    hosted["red"].load, hosted["blue"].load = fail(kind), lambda: new
    with PolicyClient(server.uri + "/red") as red, PolicyClient(server.uri + "/blue") as blue:
        first = red.infer(asked)["actions"]
        server.call(lambda s: s.reload())
        np.testing.assert_array_equal(red.infer(asked)["actions"], first)
        changed = blue.infer(asked)["actions"]  # one that fails keeps no other one from its own
        assert not np.allclose(changed, first)
        hosted["red"].load = lambda: new
        server.call(lambda s: s.reload())
        np.testing.assert_array_equal(red.infer(asked)["actions"], changed)
        assert red.connections == blue.connections == 1


def test_a_connection_that_fails_is_told_and_the_next_one_is_served(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve()
    with PolicyClient(server.uri) as other:
        with monkeypatch.context() as patch:
            patch.setitem(server.server.service.hosted["policy"].metadata, "cameras", object())
            with pytest.raises(UnreachableError):
                PolicyClient(server.uri, patience=0)
        assert "connection failed" in caplog.text
        with PolicyClient(server.uri, patience=0) as client:
            for robot in (client, other):
                assert robot.infer(observation())["actions"].shape == (6, 5)
        assert other.connections == 1


@pytest.mark.parametrize("kind", [RuntimeError, KeyError, MemoryError])
def test_a_preparation_that_fails(
    serve: Serve, policy: ModelPolicy, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    server = serve()
    with PolicyClient(server.uri) as client, PolicyClient(server.uri) as other:
        with monkeypatch.context() as patch:
            patch.setattr(policy, "prepare", fail(kind))
            with pytest.raises(ServerError, match="failed: the policy gave no answer"):
                client.infer(observation())
        for robot in (client, other):
            assert robot.infer(observation())["actions"].shape == (6, 5)
            assert robot.connections == 1


def test_a_system_without_threads_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        turns = Turns(2)
        batcher = Batcher(lambda observations: [{"actions": 1} for _ in observations], max_wait=0.0)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", fail(RuntimeError))
            with pytest.raises(RuntimeError, match="odd"):
                await turns.run("one", int)
            with pytest.raises(RuntimeError, match="the batches ended") as told:
                await batcher.ask({"n": 1})
        assert "odd" in str(told.value.__cause__)
        assert not batcher.calling
        assert (await batcher.ask({"n": 2})).reply == {"actions": 1}
        assert await asyncio.gather(*(turns.run("one", lambda n=n: n) for n in range(4))) == [0, 1, 2, 3]
        await batcher.close()
        turns.shutdown()

    asyncio.run(asyncio.wait_for(work(), 20))


def test_what_a_client_cannot_send_costs_no_connection(serve: Serve) -> None:
    with PolicyClient(serve().uri) as client:
        with pytest.raises(ProtocolError, match="cannot be sent"):
            client.infer({**observation(), "prompt": object()})
        assert client.infer(observation())["actions"].shape == (6, 5)
        assert client.connections == 1


def test_a_silent_robot_that_was_closed_comes_back(serve: Serve) -> None:
    with PolicyClient(serve(idle_s=0.3).uri) as client:
        client.infer(observation())
        time.sleep(0.6)
        assert client.infer(observation())["actions"].shape == (6, 5)
        assert client.connections == 2


def test_a_server_that_cannot_start_takes_nothing(serve: Serve, policy: ModelPolicy) -> None:
    first = serve()
    port = first.server.port
    for _ in range(2):
        with pytest.raises(UserError, match="cannot listen"):
            serve(port=port)
    with PolicyClient(first.uri) as client:
        assert client.infer(observation())["actions"].shape == (6, 5)
    first.stop()
    with PolicyClient(serve(port=port).uri) as client:
        assert client.infer(observation())["actions"].shape == (6, 5)

    for kind in (UserError, RuntimeError, SystemExit):
        with (
            pytest.raises(kind, match="odd"),
            background(lambda kind=kind: PolicyServer({"a": lambda: policy, "b": fail(kind)}, ServeConfig(port=0))),
        ):
            pass


def test_a_simulated_robot_that_is_refused_asks_again(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    running = serve()
    batcher = running.server.service.hosted["policy"].batcher
    once(monkeypatch, batcher, "ask", BusyError)
    with connect(running.uri + "/live") as page:
        page.send("{}")
        page.send(json.dumps({"do": "simulate", "checkpoint": "policy"}))
        deadline = time.monotonic() + 10
        while not any(robot["requests"] for robot in json.loads(page.recv(timeout=10))["robots"]):
            assert time.monotonic() < deadline


def test_an_instruction_of_any_characters(serve: Serve) -> None:
    """From a page come characters that UTF-8 does not have."""
    server = serve()
    with PolicyClient(server.uri) as client, connect(server.uri + "/live") as page:
        page.send("{}")
        page.send('{"do": "prompt", "robot": 1, "text": "lift \\ud800"}')
        deadline = time.monotonic() + 10
        while not (robots := json.loads(page.recv(timeout=10))["robots"]) or robots[0]["new_prompt"] is None:
            assert time.monotonic() < deadline
        assert robots[0]["new_prompt"] == "lift ?"
        assert client.infer(observation())["actions"].shape == (6, 5)


def test_many_slow_pictures_of_one_owner_hold_up_no_other(
    serve: Serve, policy: ModelPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, go, waiting = policy.prepare, threading.Event(), threading.Semaphore(0)

    def prepare(raw: dict[str, Any]) -> Any:
        if raw["prompt"] == "slow":
            waiting.release()
            go.wait(20)
        return real(raw)

    monkeypatch.setattr(policy, "prepare", prepare)
    server = serve(api_keys=("one", "two"), max_connections=32)
    with ThreadPoolExecutor(12) as pool, ExitStack() as stack:
        stack.callback(go.set)
        slow = [stack.enter_context(PolicyClient(server.uri, api_key="one")) for _ in range(12)]
        asked = [pool.submit(client.infer, {**observation(), "prompt": "slow"}) for client in slow]
        for _ in range(4):
            assert waiting.acquire(timeout=10)
        with PolicyClient(server.uri, api_key="two", timeout=10) as other:
            for seed in range(5):
                assert other.infer(observation(seed))["actions"].shape == (6, 5)
        assert not any(one.done() for one in asked)
        go.set()
        assert all(one.result(20)["actions"].shape == (6, 5) for one in asked)


def test_a_refused_key_is_no_reason_to_refuse_the_right_one(serve: Serve) -> None:
    server = serve(api_keys=("one",))
    for _ in range(20):
        with pytest.raises(UnreachableError, match="an API key is needed"):
            PolicyClient(server.uri, api_key="wrong")
    with PolicyClient(server.uri, api_key="one") as client:
        assert client.infer(observation())["actions"].shape == (6, 5)
