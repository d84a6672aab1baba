"""`pizero serve` as a process: killed and started again under a robot, loaded anew, and ended by SIGTERM."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from serving_helpers import noise, observation

from pizero.cli.main import run
from pizero.policy.policy import ModelPolicy
from pizero.serving.client import PolicyClient


def start(checkpoint: Path, port: int = 0) -> tuple[subprocess.Popen[str], int]:
    """The process, ready, and its port."""
    code = "from pizero.cli.main import main; main()"
    command = [sys.executable, "-c", code, "serve", str(checkpoint), "--log", "json", "--port", str(port)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        event = json.loads(line)
        if event["event"] == "ready":
            return process, int(event["port"])
    raise AssertionError("it ended")


def test_killed_started_again_loaded_anew_and_drained(checkpoint: Path, policy: ModelPolicy) -> None:
    asked = {**observation(), "noise": noise()}
    process, port = start(checkpoint)
    with ThreadPoolExecutor(1) as pool, PolicyClient(f"ws://127.0.0.1:{port}") as client:
        try:
            first = client.infer(asked)["actions"]
            process.kill()
            process.wait()
            again = pool.submit(start, checkpoint, port)
            np.testing.assert_array_equal(client.infer(asked)["actions"], first)  # waits, as if nothing had happened
            assert client.connections == 2
            process = again.result()[0]
            os.kill(process.pid, signal.SIGHUP)
            assert process.stderr is not None
            events = []
            while not events or events[-1]["event"] != "reloaded":
                events.append(json.loads(process.stderr.readline()))
            np.testing.assert_array_equal(client.infer(asked)["actions"], first)
            assert client.connections == 2
            process.send_signal(signal.SIGTERM)
            events += [json.loads(line) for line in process.stderr]
            assert process.wait(20) == 0
        finally:
            process.kill()
    names = [event["event"] for event in events]
    assert names[-1] == "ended"
    assert {"connected", "reloaded", "draining", "disconnected"} <= set(names)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a checkpoint"),
        (["{tmp}/none"], "there is nothing at this path"),
        (["a", "b"], "each is NAME=PATH"),
        (["a=x", "a=y"], "'a' is taken"),
        (["live=x"], "'live' is taken"),
        (["{tmp}", "--api-keys", "{tmp}/none"], "cannot be read"),
        (["{tmp}", "--certificate", "x"], "both the certificate and its private key"),
        (["{tmp}", "--max-batch", "0"], "max_batch must be above 0"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("serve", [argument.format(tmp=tmp_path) for argument in arguments]) == 2
    shown = capsys.readouterr().err.strip().splitlines()
    assert message in shown[-1]
    assert shown[-1].startswith("pizero serve: ")
