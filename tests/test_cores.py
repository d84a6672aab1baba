"""How many threads a command takes where nobody says: what the environment, the container and the other ranks leave."""

from __future__ import annotations

import os

import pytest

from pizero import processes
from pizero.processes import usable_cores, usual_threads


@pytest.mark.parametrize(
    ("said", "processes_here", "expected"),
    [(None, 1, 6), (None, 2, 3), (None, 9, 1), ("4", 1, 4), ("4", 2, 4), ("1", 1, 1), ("1", 2, 3), ("0", 1, 6),
     ("many", 1, 6), ("", 1, 6)],
)  # fmt: skip
def test_threads(said: str | None, processes_here: int, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "usable_cores", lambda: 6)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if said is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert usual_threads(processes_here) == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to cores")
def test_only_the_cores_that_it_may_run_on() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert usable_cores() == len(before)
