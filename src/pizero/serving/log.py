"""The server's log: one event a line, as text or as JSON."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Literal

LOGGER = logging.getLogger("pizero.serving")


def log(event: str, *, level: int = logging.INFO, error: BaseException | None = None, **fields: Any) -> None:
    """One event with its facts; `error` adds its traceback."""
    LOGGER.log(level, event, exc_info=error, extra={"fields": fields})


@contextmanager
def logging_to_stderr(style: Literal["text", "json"]) -> Generator[None]:
    """Writes the events to standard error meanwhile, and warnings, such as that of a prompt that was cut, as events."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if style == "json" else _Text())
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False
    shown, warnings.showwarning = warnings.showwarning, _log_warning
    try:
        yield
    finally:
        warnings.showwarning = shown
        LOGGER.removeHandler(handler)
        LOGGER.propagate = True


def _log_warning(message: Warning | str, *_: Any) -> None:
    log("note", level=logging.WARNING, text=str(message))


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
        line = f"{_when(record)} {record.levelname.lower():7} {record.getMessage()}  {fields}".rstrip()
        return line + ("\n" + self.formatException(record.exc_info) if record.exc_info else "")


def _plain(value: Any) -> str:
    """Without line breaks, so that nobody outside can write lines of his own into the log."""
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    return text if text.isprintable() else ascii(text)
