"""A connection as the server uses it: one of websockets, or one of an ASGI server, as Ray Serve brings them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any, Protocol

from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosedError, ConnectionClosedOK
from websockets.frames import Close, CloseCode
from websockets.http11 import Request

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Connection(Protocol):
    """What the server needs. `recv` and `send` raise ConnectionClosed; iteration ends there."""

    @property
    def request(self) -> Request | None: ...
    @property
    def remote_address(self) -> Any: ...
    @property
    def close_code(self) -> int | None: ...
    async def recv(self) -> str | bytes: ...
    async def send(self, message: str | bytes) -> None: ...
    async def close(self, code: int = 1000, reason: str = "") -> None: ...
    def __aiter__(self) -> AsyncIterator[str | bytes]: ...


class AsgiConnection:
    """A websocket of ASGI, already accepted. max_bytes: of one message; a longer one closes the connection."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, max_bytes: int) -> None:
        self.request: Request | None = asgi_request(scope)
        self.remote_address: Any = scope.get("client") or ("unknown", 0)
        self._receive, self._send, self._max_bytes = receive, send, max_bytes
        self._receiving: asyncio.Task[MutableMapping[str, Any]] | None = None
        self._closed: asyncio.Future[Close] = asyncio.get_running_loop().create_future()
        self._by_other_side = False

    @property
    def close_code(self) -> int | None:
        return self._closed.result().code if self._closed.done() else None

    async def recv(self) -> str | bytes:
        if not self._closed.done():
            self._receiving = self._receiving or asyncio.ensure_future(self._receive())  # lives on if this is cancelled
            await asyncio.wait((self._receiving, self._closed), return_when=asyncio.FIRST_COMPLETED)
        if self._closed.done() or self._receiving is None:
            raise self._ended()
        event, self._receiving = self._receiving.result(), None
        if event["type"] == "websocket.disconnect":
            self._by_other_side = True
            self._closed.set_result(Close(event.get("code") or 1005, event.get("reason") or ""))
            raise self._ended()
        binary: bytes | None = event.get("bytes")
        message: str | bytes = str(event.get("text")) if binary is None else binary
        if len(message) > self._max_bytes:
            await self.close(CloseCode.MESSAGE_TOO_BIG)
            raise self._ended()
        return message

    async def send(self, message: str | bytes) -> None:
        if self._closed.done():
            raise self._ended()
        content = {"text": message} if isinstance(message, str) else {"bytes": message}
        await self._send({"type": "websocket.send", **content})

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Says why and ends what waits; nothing on a connection that is closed."""
        if not self._closed.done():
            self._closed.set_result(Close(int(code), reason))
            await self._send({"type": "websocket.close", "code": int(code), "reason": reason})

    def forget(self) -> None:
        """Ends what still listens."""
        if self._receiving is not None:
            self._receiving.cancel()

    async def __aiter__(self) -> AsyncIterator[str | bytes]:
        while True:
            try:
                yield await self.recv()
            except (ConnectionClosedOK, ConnectionClosedError):
                return

    def _ended(self) -> ConnectionClosedOK | ConnectionClosedError:
        close = self._closed.result()
        known = {"rcvd": close, "sent": None} if self._by_other_side else {"rcvd": None, "sent": close}
        kind = ConnectionClosedOK if close.code in (1000, 1001) else ConnectionClosedError
        return kind(**known)


def asgi_request(scope: Scope) -> Request:
    """The request that opened an ASGI connection."""
    headers = Headers([(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]])
    if scope["type"] == "websocket" and "Upgrade" not in headers:
        headers["Upgrade"] = "websocket"
    return Request(scope["path"], headers)
