"""Two replicas behind one address, by Ray Serve: connections stay where they are, all replicas reload and end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from serving_helpers import noise, observation

from pizero.checkpoints.load import load_policy
from pizero.serving.client import PolicyClient, ServerError, UnreachableError

pytestmark = pytest.mark.ray


class Process:
    """`pizero serve` with two replicas; `lines` of its standard error so far."""

    def __init__(self, checkpoint: Path, *arguments: str) -> None:
        code = "from pizero.cli.main import main; main()"
        command = [sys.executable, "-c", code, "serve", str(checkpoint), "--replicas", "2", "--port", "0", *arguments]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
        self.lines: list[str] = []

    def wait_for(self, done: Callable[[list[str]], bool]) -> None:
        assert self.process.stderr is not None
        while not done(self.lines):
            line = self.process.stderr.readline()
            assert line, "".join(self.lines)
            self.lines.append(line)

    def end(self) -> None:
        """All that it started; nothing where it ended by itself."""
        self.process.terminate()
        try:
            self.process.wait(60)
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)


def count(text: str, lines: list[str]) -> int:
    return sum(text in line for line in lines)


def ray_processes() -> set[str]:
    shown = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return {
        line.split()[0] for line in shown.splitlines() if "ray::" in line or "/raylet" in line or "gcs_server" in line
    }


def test_two_replicas(checkpoint: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text("sesame\n")
    before = ray_processes()
    server = Process(checkpoint, "--api-keys", str(keys), "--record", str(tmp_path / "record"))
    try:
        server.wait_for(lambda lines: count(" ready  host=", lines) == 1)
        port = server.lines[-1].split("port=")[1].split()[0]
        uri, asked = f"ws://127.0.0.1:{port}", {**observation(), "noise": noise()}
        with ExitStack() as stack:
            robots = [stack.enter_context(PolicyClient(uri, api_key="sesame")) for _ in range(4)]
            replicas = [robot.metadata["replica"] for robot in robots]
            assert len(set(replicas)) == 2
            expected = load_policy(checkpoint).infer(asked)["actions"]
            for _ in range(5):
                for robot in robots:
                    np.testing.assert_allclose(robot.infer(asked)["actions"], expected, rtol=1e-5, atol=1e-5)
            with pytest.raises(ServerError, match="bad request: "):
                robots[0].infer({"state": 1})
            server.process.send_signal(signal.SIGHUP)
            server.wait_for(lambda lines: count(" reloaded ", lines) == 2)
            robots[0].infer(asked)
            assert [robot.connections for robot in robots] == [1] * 4
            with pytest.raises(UnreachableError, match="an API key is needed"):
                PolicyClient(uri)
            server.process.send_signal(signal.SIGTERM)
            server.wait_for(lambda lines: " ended" in lines[-1] and "ServeReplica" not in lines[-1])
        assert server.process.wait(60) == 0
    finally:
        server.end()
    requests = [int(line.split("requests=")[1].split()[0]) for line in server.lines if " disconnected " in line]
    assert sorted(requests) == [5, 5, 5, 6]  # each robot's, all by the replica that it met first
    recorded = {path.name for path in (tmp_path / "record").iterdir()}
    assert recorded == set(replicas)
    assert ray_processes() <= before


def test_more_replicas_than_the_machine_has(checkpoint: Path) -> None:
    server = Process(checkpoint, "--replicas", "1000")
    try:
        assert server.process.wait(100) == 2
        assert server.process.stderr is not None
        assert "1000 replicas need as many CPUs" in server.process.stderr.read().splitlines()[-1]
    finally:
        server.end()
