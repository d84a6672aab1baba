"""A tiny policy of the built-in simulator, its checkpoint, and servers in threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from serving_helpers import make_policy, make_text_policy, observation

from pizero.checkpoints.native.checkpoint import save_checkpoint
from pizero.checkpoints.native.example import make_example
from pizero.policy.policy import ModelPolicy
from pizero.serving.config import ServeConfig
from pizero.serving.running import Background, background
from pizero.serving.server import PolicyServer


@pytest.fixture(scope="session")
def policy() -> ModelPolicy:
    return make_policy()


@pytest.fixture(scope="session")
def text_policy() -> ModelPolicy:
    return make_text_policy()


@pytest.fixture(scope="session")
def checkpoint(policy: ModelPolicy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a stored example."""
    import numpy as np

    folder = tmp_path_factory.mktemp("served") / "checkpoint"
    noise = np.zeros(policy.noise_shape, np.float32)
    example = make_example(policy.model, policy.pipeline, observation(), noise)
    save_checkpoint(folder, policy.model, policy.pipeline, example)  # type: ignore[arg-type]
    return folder


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No thread and no process of a test lives on after it."""
    threads, processes = set(threading.enumerate()), _children()
    yield
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and (set(threading.enumerate()) - threads or _children() - processes):
        time.sleep(0.02)
    assert not set(threading.enumerate()) - threads
    assert not _children() - processes


def _children() -> set[str]:
    """Processes of this one; empty where the system does not tell."""
    found: set[str] = set()
    for file in Path("/proc/self/task").glob("*/children"):
        with suppress(FileNotFoundError):  # a thread that has just ended
            found.update(file.read_text().split())
    return found


Serve = Callable[..., Background]


@pytest.fixture
def serve(policy: ModelPolicy) -> Iterator[Serve]:
    """serve(max_wait_ms=..., policy=...) starts a server on a free port; it is drained after the test."""
    with ExitStack() as stack:

        def start(policy: Any = policy, **settings: Any) -> Background:
            policies = policy if isinstance(policy, dict) else {"policy": policy}
            config = ServeConfig(**{"port": 0, "drain_s": 2.0, **settings})
            loads = {name: (lambda one=one: one) for name, one in policies.items()}
            return stack.enter_context(background(lambda: PolicyServer(loads, config)))

        yield start
