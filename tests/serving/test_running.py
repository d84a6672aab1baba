"""How a served process ends, and what its simulated robot does after a failure."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from pizero.envs.tabletop.env import TabletopEnv
from pizero.serving import running
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


@pytest.mark.parametrize(
    ("left_behind", "failure", "status"), [(False, "", None), (True, "", 0), (True, "no recording", 2)]
)
def test_a_process_does_not_wait_for_what_cannot_be_stopped(
    left_behind: bool,
    failure: str,
    status: int | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ended: list[int] = []

    def end(status: int) -> None:
        ended.append(status)
        raise SystemExit(status)

    monkeypatch.setattr(running.os, "_exit", end)
    monkeypatch.setattr(logging, "shutdown", lambda: None)
    with suppress(SystemExit):
        asyncio.run(running.run(Ending(left_behind, failure)))  # type: ignore[arg-type]
    assert ended == ([] if status is None else [status])
    assert [record.fields["reason"] for record in caplog.records] == ([failure] if failure else [])  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="disk"):  # where nothing is left behind it is told as ever
        asyncio.run(running.run(Ending(False, "disk")))  # type: ignore[arg-type]


def test_the_simulated_robot_starts_again_after_a_failure(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    background = serve()
    server, simulation = background.server, background.server.feed.simulation

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
        wait_for(lambda: simulation.robot is None and not server.live.robots)
    background.call(lambda _: simulation.start("policy"))
    wait_for(lambda: any(robot.requests for robot in server.live.robots.values()))
