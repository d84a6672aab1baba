"""The server's log: one event a line, as text or as JSON; of the same event so many lines a second, with a count."""

from __future__ import annotations

import json
import logging
import sys
import time
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

LOGGER = logging.getLogger("pizero.serving")
ASYNCIO = logging.getLogger("asyncio")
"""Tells errors of sockets, which clients can cause in any number."""
AT_MOST = 50
"""Lines a second of one event, unless it says fewer."""


def log(
    event: str, *, level: int = logging.INFO, error: BaseException | None = None, at_most: int = AT_MOST, **fields: Any
) -> None:
    """One event with its facts; `error` adds its traceback. at_most: lines a second of this event; the next one that is
    written after with how many `more` there were.
    """
    LOGGER.log(level, event, exc_info=error, extra={"fields": fields, "at_most": at_most})


@contextmanager
def logging_to_stderr(style: Literal["text", "json"]) -> Generator[None]:
    """Writes the events to standard error meanwhile, and as events warnings, such as that of a prompt that was cut, and
    what asyncio has to say.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if style == "json" else _Text())
    limit = _Limit()
    handler.addFilter(limit)
    before = [(logger, logger.level, logger.propagate) for logger in (LOGGER, ASYNCIO)]
    for logger, _, _ in before:
        logger.addHandler(handler)
        logger.propagate = False
    LOGGER.setLevel(logging.INFO)
    shown, warnings.showwarning = warnings.showwarning, _log_warning
    try:
        yield
    finally:
        warnings.showwarning = shown
        limit.tell_rest()
        for logger, level, propagate in before:
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate


def _log_warning(message: Warning | str, *_: Any) -> None:
    log("note", level=logging.WARNING, text=str(message))


@dataclass
class _Second:
    began: float
    shown: int = 0
    more: int = 0


class _Limit(logging.Filter):
    """Counts lines of the same event by the second; those beyond its `at_most` are one number."""

    def __init__(self) -> None:
        super().__init__()
        self._seconds: dict[tuple[str, str], _Second] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        key = (record.name, record.getMessage().partition("\n")[0][:80])
        now, second = time.monotonic(), self._seconds.get(key)
        if second is None or now - second.began >= 1:
            if len(self._seconds) > 1000:  # messages that all differ
                self._seconds.clear()
            more = 0 if second is None else second.more
            second = self._seconds[key] = _Second(now)
            if more:
                record.fields = {**getattr(record, "fields", {}), "more": more}
        if second.shown >= getattr(record, "at_most", 1):
            second.more += 1
            return False
        second.shown += 1
        return True

    def tell_rest(self) -> None:
        """What was not logged yet."""
        rest, self._seconds = self._seconds, {}
        for (_, event), second in rest.items():
            if second.more:
                log(event, more=second.more)


def _when(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        values = {"time": _when(record), "level": record.levelname.lower(), "event": record.getMessage()}
        values |= getattr(record, "fields", {})
        if record.exc_info:
            values["trace"] = self.formatException(record.exc_info)
        return json.dumps(values, default=str)


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = "  ".join(f"{name}={_plain(value)}" for name, value in getattr(record, "fields", {}).items())
        event = " ".join(record.getMessage().split())
        line = f"{_when(record)} {record.levelname.lower():7} {event}  {fields}".rstrip()
        return line + ("\n" + self.formatException(record.exc_info) if record.exc_info else "")


def _plain(value: Any) -> str:
    """Without line breaks, so that nobody outside can write lines of his own into the log."""
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    return text if text.isprintable() else ascii(text)
