"""Connections that nobody has let in yet cost next to nothing, and no connection keeps the others waiting by many
small frames.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

from websockets.asyncio.server import ServerConnection
from websockets.frames import DATA_OPCODES, Frame

from pizero.serving.log import log

FIRST_BYTES = 4096
"""Of a message before it is known who sends it."""
PIECE = 1024
"""Bytes that are read as frames at once; twice as many where they held none."""
CONTROL, BEFORE_KEY, PAGE, ROBOT = (100, 20), (8, 0), (200, 100), (10_000, 10_000)
"""Frames at once and frames a second: pings, pongs; of data before the key, of a page, of a robot."""


class Newcomers:
    """Connections before they are let in, or answered. most: in all; one address may have half of them."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._by_address: Counter[str] = Counter()

    def enter(self, address: str) -> bool:
        """Whether there is room for one more."""
        if self._by_address.total() >= self.most or self._by_address[address] >= max(self.most // 2, 1):
            return False
        self._by_address[address] += 1
        return True

    def leave(self, address: str) -> None:
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]


def most_newcomers() -> int:
    """A quarter of the files that this process may open, 256 at most."""
    try:
        import resource
    except ImportError:  # Windows
        return 256
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 256 if files < 0 else min(256, max(files // 4, 8))


class Allowance:
    """So many at once, and so many a second: of frames, of requests. What is refused takes nothing."""

    def __init__(self, burst: float, rate: float) -> None:
        self._burst, self._rate = burst, rate
        self._left, self._when = float(burst), time.monotonic()

    def take(self) -> bool:
        """Whether one more is allowed."""
        now = time.monotonic()
        self._left = min(self._left + (now - self._when) * self._rate, self._burst)
        self._when = now
        allowed = self._left >= 1
        self._left -= allowed
        return allowed


class PacedConnection(ServerConnection):
    """A connection of websockets that is ended where it sends more frames than anybody needs.

    What arrived at once is read in pieces, so that not even the first thousands of frames hold up the event loop.
    """

    def __init__(self, *arguments: Any, newcomers: Newcomers, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._newcomers, self._address, self._new = newcomers, "", False
        self._control, self._data = Allowance(*CONTROL), Allowance(*BEFORE_KEY)
        self._frames, self._over = 0, False

    def let_in(self, allowance: tuple[int, int], max_bytes: int) -> None:
        """From now on it may send messages of up to `max_bytes`, in so many frames at once and a second."""
        self._data = Allowance(*allowance)
        name = "max_message_size" if hasattr(self.protocol, "max_message_size") else "max_size"  # before websockets 16
        setattr(self.protocol, name, max_bytes)
        self._leave()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._address = str((transport.get_extra_info("peername") or ("unknown",))[0])
        self._new = self._newcomers.enter(self._address)
        if not self._new:
            self._end("refused: too many connections that are not let in yet")

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        start, size = 0, PIECE
        while start < len(data) and not self._over:
            before = self._frames
            super().data_received(data[start : start + size])
            start, size = start + size, PIECE if self._frames != before else 2 * size

    def process_event(self, event: Any) -> None:
        if isinstance(event, Frame):
            self._frames += 1
            allowed = self._data if event.opcode in DATA_OPCODES else self._control
            if not self._over and not allowed.take():
                self._end("ended: it sent too many frames")
        if not self._over:
            super().process_event(event)

    def _end(self, why: str) -> None:
        self._over = True
        log(f"connection {why}", at_most=1, address=self._address)
        self.transport.abort()

    def _leave(self) -> None:
        if self._new:
            self._new = False
            self._newcomers.leave(self._address)
