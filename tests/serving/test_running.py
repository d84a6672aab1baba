"""How a served process ends, and what its simulated robot does after a failure."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from pizero.cli.main import run
from pizero.envs.tabletop.env import TabletopEnv
from pizero.serving import running, server
from pizero.serving.config import ServeConfig
from pizero.serving.log import ASYNCIO, LOGGER, logging_to_stderr
from pizero.serving.replicas import Signals
from pizero.serving.running import Background
from pizero.types import UserError

Serve = Callable[..., Background]


class Ending:
    """A server whose end is all that matters."""

    def __init__(self, left_behind: bool, failure: str) -> None:
        self.left_behind, self._failure = left_behind, failure

    async def start(self) -> None:
        asyncio.get_running_loop().call_later(0.05, os.kill, os.getpid(), signal.SIGTERM)

    async def drain(self) -> None:
        if self._failure:
            raise UserError(self._failure)


HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@pytest.mark.parametrize(
    ("left_behind", "failure", "status"),
    [(False, "", None), (False, "no recording", None), (True, "", 0), (True, "no recording", 2)],
)
def test_a_command_does_not_wait_for_what_cannot_be_stopped(
    left_behind: bool,
    failure: str,
    status: int | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ended: list[int] = []

    def end(status: int) -> None:
        ended.append(status)
        raise SystemExit(status)

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(logging, "shutdown", lambda: None)
    monkeypatch.setattr(server, "PolicyServer", lambda *_: Ending(left_behind, failure))
    monkeypatch.setattr(sys, "setswitchinterval", lambda _: None)
    with suppress(SystemExit):
        assert run("serve", ["runs/none"]) == (2 if failure else 0)
    assert ended == ([] if status is None else [status])
    assert ("no recording" in capsys.readouterr().err) == bool(failure)


def test_options_reach_the_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("one\nboss admin\n")
    given: list[ServeConfig] = []
    monkeypatch.setattr(server, "PolicyServer", lambda _, config: given.append(config) or Ending(False, ""))
    monkeypatch.setattr(sys, "setswitchinterval", lambda _: None)
    options = {
        "host": "0.0.0.0", "port": 1, "certificate": Path("c"), "private_key": Path("k"), "max_batch": 2,
        "max_wait_ms": 4.0, "max_queue": 5, "default_prompt": "lift", "max_message_mb": 6, "max_connections": 7,
        "max_rate": 8.0, "idle_s": 9.0, "drain_s": 10.0, "record": Path("r"), "record_fps": 11.0,
        "subtask_every": 12, "subtask_s": 13.0,
    }  # fmt: skip
    arguments = [text for name, value in options.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    keys = ["--api-keys", str(tmp_path / "keys"), "--origins", "a", "b"]
    assert run("serve", ["runs/none", *arguments, *keys]) == 0
    assert run("serve", ["runs/none"]) == 0
    expected = ServeConfig(**options, origins=("a", "b"), api_keys=("one", "boss admin"))  # type: ignore[arg-type]
    assert given == [expected, ServeConfig()]
    untold = {"ping_s", "replica"}  # all others have another value than usual
    assert {name for name, value in vars(ServeConfig()).items() if value == vars(expected)[name]} == untold


def test_what_serves_in_a_process_leaves_it_as_it_was(serve: Serve) -> None:
    """Signals, the interpreter, loggers, warnings: all are changed by the command alone, or changed back."""

    def state() -> list[object]:
        loggers = [(logger.level, logger.propagate, list(logger.handlers)) for logger in (LOGGER, ASYNCIO)]
        return [*map(signal.getsignal, HANDLED), sys.getswitchinterval(), loggers, warnings.showwarning,
                list(warnings.filters)]  # fmt: skip

    before = state()
    background = serve()
    assert state() == before
    background.call(lambda one: one.reload())
    background.stop()
    with logging_to_stderr("text"):
        asyncio.run(running.run(Ending(False, "")))  # type: ignore[arg-type]
        assert state()[:-3] == before[:-3]
    assert state() == before
    with pytest.raises(UserError, match="disk"), logging_to_stderr("json"):
        asyncio.run(running.run(Ending(False, "disk")))  # type: ignore[arg-type]
    assert state() == before


def test_where_the_loop_takes_no_signals_they_are_handled_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows, which has no SIGHUP either."""

    def absent(*_: object) -> None:
        raise NotImplementedError

    before = list(map(signal.getsignal, HANDLED))
    monkeypatch.setattr(asyncio.SelectorEventLoop, "add_signal_handler", absent)
    monkeypatch.setattr(asyncio.SelectorEventLoop, "remove_signal_handler", absent)
    monkeypatch.setattr(running, "RELOAD", None)
    asyncio.run(running.run(Ending(False, "")))  # type: ignore[arg-type]
    assert list(map(signal.getsignal, HANDLED)) == before


def test_several_signals_are_asked_for_in_turn() -> None:
    before = list(map(signal.getsignal, HANDLED))
    with Signals() as asked:
        asked.listen()
        for _ in range(3):
            signal.raise_signal(signal.SIGHUP)
        assert asked.next() == "reload"
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGHUP):
            signal.raise_signal(number)
        assert asked.next() == "end"
    assert list(map(signal.getsignal, HANDLED)) == before


def test_the_simulated_robot_starts_again_after_a_failure(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    background = serve()
    service, simulation = background.server.service, background.server.feed.simulation

    def wait_for(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def fail(*_: object) -> None:
        raise RuntimeError("no picture")

    with monkeypatch.context() as patch:
        patch.setattr(TabletopEnv, "observe", fail)
        background.call(lambda _: simulation.start("policy"))
        wait_for(lambda: simulation.robot is None and not service.live.robots)
    background.call(lambda _: simulation.start("policy"))
    wait_for(lambda: any(robot.figures.requests for robot in service.live.robots.values()))
