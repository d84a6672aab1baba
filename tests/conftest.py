"""Shared set-up: threads, the order of a parallel run, and tests that ask for what not every machine has."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch


def _opengl() -> bool:
    from pizero.envs.offscreen import opengl_backend

    return opengl_backend() is not None


def _onednn(dtype: torch.dtype) -> bool:
    from pizero.engine.products import has_onednn

    return has_onednn(dtype)


def _int8() -> bool:
    from pizero.engine.int8 import largest_code

    return largest_code() is not None


def _float8() -> bool:
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9)


NEEDS: dict[str, tuple[Callable[[], bool], str]] = {
    "opengl": (_opengl, "no OpenGL here (install libegl1 and libgl1-mesa-dri, or libosmesa6)"),
    "onednn": (lambda: _onednn(torch.float32), "this torch was built without oneDNN"),
    "onednn_bfloat16": (lambda: _onednn(torch.bfloat16), "oneDNN has no bfloat16 on this processor"),
    "gpu": (torch.cuda.is_available, "no CUDA device here"),
    "two_gpus": (lambda: torch.cuda.device_count() > 1, "not two CUDA devices here"),
    "float8": (_float8, "no CUDA device with float8 here (NVIDIA Ada, Hopper and later)"),
    "int8": (_int8, "this torch has no exact int8 product on this processor"),
}
"""By marker: whether it is here, and why its tests are left out where it is not."""
_LEFT_OUT = pytest.StashKey[dict[str, int]]()


SLOW_FOLDERS = ("train", "workflows", "cli", "serving")
"""In parallel their files are handed out first, so that no worker ends with one of them alone."""


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_LEFT_OUT] = {}
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of processes that a test starts
    if _in_worker():
        config.pluginmanager.register(_TellsController(config))


@pytest.fixture(autouse=True)
def _one_thread() -> None:  # pyright: ignore[reportUnusedFunction]
    """The models are so small that several threads wait for each other most of the time; a training may set more."""
    torch.set_num_threads(1)


def _in_worker() -> bool:
    """Of pytest-xdist."""
    return "PYTEST_XDIST_WORKER" in os.environ


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that need what is not here are deselected; the summary says so."""
    for marker, (is_here, _) in NEEDS.items():
        needing = [item for item in items if item.get_closest_marker(marker)]
        if needing and not is_here():
            config.hook.pytest_deselected(items=needing)
            items[:] = [item for item in items if item not in needing]
            config.stash[_LEFT_OUT][marker] = len(needing)
    if _in_worker():
        items.sort(key=lambda item: item.path.parent.name not in SLOW_FOLDERS)


class _TellsController:
    """In a worker of pytest-xdist: every one collects all tests, and the controller prints the summary."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config

    def pytest_sessionfinish(self) -> None:
        self.config.workeroutput["left_out"] = self.config.stash[_LEFT_OUT]  # type: ignore[attr-defined]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object) -> None:
    found = getattr(node, "workeroutput", {}).get("left_out", {})
    node.config.stash[_LEFT_OUT].update(found)  # type: ignore[attr-defined]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for marker, count in config.stash[_LEFT_OUT].items():
        terminalreporter.write_line(f"{count} tests skipped: {NEEDS[marker][1]}")
