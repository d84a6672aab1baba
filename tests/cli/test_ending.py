"""A command that is ended from outside: no process of it is left, nor anything half-written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pizero.cli.main import run
from pizero.processes import Workers
from pizero.train.run_folder import list_checkpoints
from pizero.types import UserError
from pizero.workflows.collect import CollectConfig, collect

MAIN = "from pizero.cli.main import main; main()"
SECONDS = 5.0
pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads the processes of a group in /proc")


def alive(group: int) -> set[int]:
    """The processes of a group that run."""
    found: set[int] = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, own, *_ = path.read_text().rpartition(")")[2].split()
        except OSError:  # ended meanwhile
            continue
        if int(own) == group and state not in "ZX":
            found.add(int(path.parent.name))
    return found


def as_from_a_terminal() -> None:
    """Signals that whoever started the tests ignores (nohup, a shell's background) are not ignored by the command."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


@contextmanager
def started(*arguments: str, code: str = MAIN) -> Iterator[subprocess.Popen[str]]:
    """A command in a group of its own."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=as_from_a_terminal,
    )  # fmt: skip
    try:
        yield process
    finally:
        for left in alive(process.pid):
            os.kill(left, signal.SIGKILL)
        process.wait()


def until(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def gone(group: int) -> bool:
    deadline = time.monotonic() + SECONDS
    while alive(group) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(group)


def busy_workers(group: int) -> int:
    """Processes of the group that have computed for a second, beside the first one."""
    ticks = os.sysconf("SC_CLK_TCK")
    count = 0
    for process in alive(group) - {group}:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        count += (int(fields[11]) + int(fields[12])) / ticks > 1
    return count


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGKILL"])
def test_collect_with_workers(tmp_path: Path, name: str) -> None:
    number = getattr(signal, name)
    options = ["--workers", "2", "--episodes", "100000", "--image-size", "28", "--image-format", "png"]
    with started("collect", "tabletop", "--output", str(tmp_path / "data"), *options) as process:
        until(lambda: busy_workers(process.pid) == 2, process)
        assert list(tmp_path.iterdir())
        process.send_signal(number)
        assert gone(process.pid)
        status, shown = process.wait(), process.communicate()[1]
    if name == "SIGKILL":
        collect(CollectConfig(episodes=1, image_size=28, image_format="png"), tmp_path / "data")
        assert [path.name for path in tmp_path.iterdir()] == ["data"]
    else:
        assert status == 128 + number
        assert "Traceback" not in shown
        assert "nothing half-written is left" in shown
        assert list(tmp_path.iterdir()) == []


STUCK = """
from threading import Event
from pizero.processes import ended_by_signals
with ended_by_signals():
    try:
        print("ready", flush=True)
        Event().wait()
    finally:
        Event().wait()
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_clean_up_that_never_ends(name: str) -> None:
    number = getattr(signal, name)
    with subprocess.Popen(
        [sys.executable, "-c", STUCK], stdout=subprocess.PIPE, text=True, preexec_fn=as_from_a_terminal
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            process.send_signal(number)
            assert process.wait(SECONDS) == 128 + number
        finally:
            process.kill()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL"])
def test_train_with_workers(tmp_path: Path, name: str) -> None:
    collect(CollectConfig(episodes=2, image_size=28, image_format="png"), tmp_path / "data")
    run_folder = tmp_path / "run"
    options = ["--workers", "2", "--threads", "1", "--batch-size", "2", "--draws", "1", "--save-every", "1"]
    arguments = [str(tmp_path / "data"), "--preset", "tabletop", "--output", str(run_folder), *options]
    with started("train", *arguments) as process:
        until(lambda: list_checkpoints(run_folder), process)
        process.send_signal(getattr(signal, name))
        assert gone(process.pid)
        status, shown = process.wait(), process.communicate()[1]
    assert status == (143 if name == "SIGTERM" else -signal.SIGKILL)
    assert "Traceback" not in shown
    assert run("train", [*arguments[:-1], "1000", "--resume", "--steps", "1600", "--plan"]) == 0


ENDLESS = """
import numpy as np
from pizero.evaluation.benchmark import RolloutConfig, evaluate
from pizero.processes import ended_by_signals
class Still:
    def infer_batch(self, observations):
        return [{"actions": np.zeros((25, 5), np.float32)} for _ in observations]
with ended_by_signals():
    evaluate(Still(), RolloutConfig("tabletop", 100_000, execution_horizon=20, processes=2))
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGKILL"])
def test_simulators_in_processes_of_their_own(name: str) -> None:
    with started(code=ENDLESS) as process:
        until(lambda: busy_workers(process.pid) == 2, process)
        process.send_signal(getattr(signal, name))
        assert gone(process.pid)


def _work_for_ever(folder: Path) -> None:
    try:
        (folder / "begun").touch()
        time.sleep(600)
    finally:
        (folder / "tidy").touch()


def _interrupted_at_work(folder: Path) -> None:
    with Workers(1) as workers:
        workers.submit(_work_for_ever, folder)
        while not (folder / "begun").exists():
            time.sleep(0.02)
        raise KeyboardInterrupt


def test_a_worker_cleans_up(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        _interrupted_at_work(tmp_path)
    assert (tmp_path / "tidy").exists()


def _fail(how: str) -> None:
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    raise UserError("no such task")


@pytest.mark.parametrize(("how", "message"), [("killed", "ended from outside.*--workers"), ("asked", "no such task")])
def test_a_worker_that_fails_is_one_line(how: str, message: str) -> None:
    with pytest.raises(UserError, match=message), Workers(2) as workers:
        workers.submit(_fail, how).result()


def test_the_end_comes_in_the_middle_of_a_long_step() -> None:
    """Outside of Python no handler runs."""
    code = (
        "import hashlib; from pizero.processes import ended_by_signals\n"
        "with ended_by_signals():\n    print('ready', flush=True); hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.5)  # into the long step
    process.terminate()
    assert process.wait(SECONDS) == 143


def test_under_nohup_a_hangup_is_ignored() -> None:
    code = (
        "import os, signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from pizero.processes import ended_by_signals\n"
        "with ended_by_signals():\n    os.kill(os.getpid(), signal.SIGHUP); print('goes on')\n"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "goes on\n"


def much(number: int) -> bytes:
    return bytes(300_000 + number)


def test_workers_that_are_stopped_in_the_middle_of_a_result() -> None:
    """More than a pipe holds; nothing waits for the rest, at the end of the process least of all."""
    workers = Workers(2)
    answers = [workers.submit(much, number) for number in range(1000)]
    manager = workers._pool._executor_manager_thread
    answers[20].result()
    workers.__exit__(GeneratorExit, None, None)
    assert manager is not None
    manager.join(SECONDS)
    assert not manager.is_alive()
