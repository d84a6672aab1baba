"""A server that is asked for long: does it keep its memory, its threads, its files? (make soak)

python benchmarks/serving/soak.py [--seconds 3600] [--robots 6] [--pause 0.01]

Feeds docs/results/server.md. Robots ask again after a pause; some connect anew again and again, some send what is
wrong. Prints the server's state each minute, and ends with status 1 if its memory grew by more than a tenth after the
first reading, or if threads or files were left.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import sys
import threading
import time
from pathlib import Path

import numpy as np
from load import make_policy, server

from pizero.serving.client import BusyError, PolicyClient, ServerError
from pizero.serving.hosted import blank_observation


def state(process: int) -> tuple[float, int, int]:
    """(resident megabytes, threads, open files) of a process."""
    folder = Path(f"/proc/{process}")
    return (
        int((folder / "statm").read_text().split()[1]) * 4096 / 1e6,
        len(list((folder / "task").iterdir())),
        len(list((folder / "fd").iterdir())),
    )


class Robots:
    """Threads that ask until they are told to end; `counts` of what came back."""

    def __init__(self, uri: str, count: int, pause: float) -> None:
        self.uri, self.pause, self.ended = uri, pause, threading.Event()
        self.counts = {"answers": 0, "refusals": 0, "connections": 0}
        self.observation = {**blank_observation(make_policy(True)), "prompt": "lift the block"}
        works = itertools.cycle((self._ask, self._ask, self._come_and_go, self._ask_wrongly))
        self.threads = [threading.Thread(target=work) for work, _ in zip(works, range(count), strict=False)]
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        self.ended.set()
        for thread in self.threads:
            thread.join()

    def _ask(self) -> None:
        with PolicyClient(self.uri) as client:
            self.counts["connections"] += 1
            while not self.ended.wait(self.pause):
                self._once(client, self.observation)

    def _come_and_go(self) -> None:
        while not self.ended.wait(self.pause):
            with PolicyClient(self.uri) as client:
                self.counts["connections"] += 1
                self._once(client, self.observation)

    def _ask_wrongly(self) -> None:
        numbers = itertools.count()
        with PolicyClient(self.uri) as client:
            while not self.ended.wait(self.pause):
                self._once(client, {**self.observation, f"key {next(numbers)}": 1, "state": np.zeros(3)})

    def _once(self, client: PolicyClient, observation: dict) -> None:
        try:
            client.infer(observation)
            self.counts["answers"] += 1
        except (ServerError, BusyError):
            self.counts["refusals"] += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--robots", type=int, default=6)
    parser.add_argument("--pause", type=float, default=0.01, help="seconds of each robot between two requests")
    options = parser.parse_args()
    settings = argparse.Namespace(port=18_081, threads=1, openpi=None)
    with contextlib.ExitStack() as stack:
        uri, process = stack.enter_context(server("pizero", True, settings))
        PolicyClient(uri).close()  # waits until it is ready
        robots = Robots(uri, options.robots, options.pause)
        stack.callback(robots.stop)
        started = time.monotonic()
        readings: list[tuple[float, int, int]] = []
        while time.monotonic() - started < options.seconds:
            time.sleep(min(60.0, options.seconds / 10))
            memory, threads, files = state(process)
            readings.append((memory, threads, files))
            minutes = (time.monotonic() - started) / 60
            print(
                f"{minutes:5.1f} min  {memory:7.1f} MB  {threads} threads  {files} files  {robots.counts}", flush=True
            )
    first, last = readings[0], readings[-1]
    growth = last[0] - first[0]
    print(f"memory grew by {growth:.1f} MB ({growth / first[0]:.1%}) after the first reading")
    sys.exit(int(growth > 0.1 * first[0] or last[1] > first[1] + 2 or last[2] > first[2] + 5))


if __name__ == "__main__":
    main()
