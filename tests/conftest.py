"""Shared set-up: threads, and the Meta-World tests where OpenGL is there."""

from __future__ import annotations

import pytest
import torch


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(2)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without OpenGL the tests that draw are deselected; the summary says so."""
    needing = [item for item in items if item.get_closest_marker("opengl")]
    if not needing:
        return
    from pizero.envs.offscreen import opengl_backend

    if opengl_backend() is None:
        config.hook.pytest_deselected(items=needing)
        items[:] = [item for item in items if item not in needing]
        config.stash[_DESELECTED] = len(needing)


_DESELECTED = pytest.StashKey[int]()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    count = config.stash.get(_DESELECTED, 0)
    if count:
        terminalreporter.write_line(
            f"{count} Meta-World tests deselected: no OpenGL here (install libegl1 and libgl1-mesa-dri, or libosmesa6)"
        )
