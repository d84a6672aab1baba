"""Which of several ways to compute the same is fastest on this machine: measured once, kept in the cache folder.

As long as `kernels.json` there is kept, the same kernels are taken, and the same call gives the same bits.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from pizero.files import cache_folder, read_json, write_bytes
from pizero.types import UserError

ROUNDS = 7
MARGIN = 0.95
"""Another way is taken where it needs less than this part of the first one's time; below that, noise would decide."""


@dataclass(frozen=True)
class Choice:
    """way: the one that is taken. median_us: of each, in microseconds."""

    way: str
    median_us: dict[str, float]


used: dict[str, Choice] = {}
"""By name, what this process asked for: `pizero bench inference` prints it."""


def fastest(name: str, ways: dict[str, Callable[[], Callable[[Tensor], Tensor]]], x: Tensor) -> str:
    """The key of the first way, or of another that takes x [1, T, in] in at least 5 % less time.

    name: what is computed, the key under which the choice and its times are kept. A way is made before it is timed.
    """
    key = f"{machine()} · {torch.get_num_threads()} threads · {name}"
    known = _read()
    if key not in known or known[key].way not in ways:
        known[key] = _measured({way: make() for way, make in ways.items()}, x)
        _write(known)
    used[name] = known[key]
    return known[key].way


@torch.no_grad()
def _measured(ways: dict[str, Callable[[Tensor], Tensor]], x: Tensor) -> Choice:
    """By the median of rounds in which the ways take turns, so that what else the machine does meets all of them."""
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(ROUNDS):
        for way, call in ways.items():
            started = time.perf_counter()
            call(x)
            times[way].append(time.perf_counter() - started)
    median = {way: 1e6 * statistics.median(taken) for way, taken in times.items()}
    first, best = next(iter(median)), min(median, key=median.__getitem__)
    way = best if median[best] < MARGIN * median[first] else first
    return Choice(way, {way: round(value, 2) for way, value in median.items()})


@cache
def machine() -> str:
    """Processor, the instruction set that PyTorch and oneDNN may use of it, and torch's version."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "")
    found = f"{model} {torch.backends.cpu.get_cpu_capability()}" + (f" oneDNN {limit}" if limit else "")
    return f"{found} · torch {torch.__version__}"


_known: dict[str, Choice] | None = None


def _read() -> dict[str, Choice]:
    """An entry that is no choice with its times, as older versions wrote, is measured again."""
    global _known
    if _known is None:
        try:
            entries = read_json(_path()).items()
        except UserError:
            entries = ()
        _known = {
            str(key): Choice(str(value["way"]), value["median_us"])
            for key, value in entries
            if isinstance(value, dict) and {"way", "median_us"} <= set(cast("dict[str, Any]", value))
        }
    return _known


def _write(known: dict[str, Choice]) -> None:
    """A folder that cannot be written costs a measurement at the next start, nothing else."""
    values = {key: dataclasses.asdict(choice) for key, choice in known.items()}
    with suppress(OSError):
        write_bytes(_path(), json.dumps(values, indent=1, ensure_ascii=False).encode())


def _path() -> Path:
    return cache_folder() / "kernels.json"
