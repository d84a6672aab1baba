"""Work that has a process of its own otherwise, where the test is not about processes, which take seconds to begin."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Any


class Here(AbstractContextManager["Here"]):
    """In the place of `Workers`: this process does the work, at once."""

    def __init__(self, count: int, start: Callable[..., None] | None = None, **_: Any) -> None:
        pass

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(function(*arguments))
        return done

    def __exit__(self, *_: object) -> None:
        pass
