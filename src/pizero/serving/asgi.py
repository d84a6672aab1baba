"""The policy server as an ASGI application: the same answers and connections, behind somebody else's listener."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from websockets.frames import CloseCode
from websockets.http11 import Response

from pizero.serving.connection import AsgiConnection, Receive, Scope, Send, asgi_request
from pizero.serving.feed import LARGEST_COMMAND
from pizero.serving.gate import LIVE
from pizero.serving.server import PolicyServer


def application(server: PolicyServer) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """Serves what comes in; starting and draining the server is its owner's part."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        response = server.admit(asgi_request(scope), str((scope.get("client") or ("unknown", 0))[0]))
        if scope["type"] == "http":
            assert response is not None  # as nobody asks for a websocket
            await _respond(send, response, "http.response")
        elif response is None:
            await _connect(server, scope, receive, send)
        elif "websocket.http.response" in scope.get("extensions", {}):
            await _respond(send, response, "websocket.http.response")
        else:
            await send({"type": "websocket.close", "code": int(CloseCode.POLICY_VIOLATION)})

    return app


async def _connect(server: PolicyServer, scope: Scope, receive: Receive, send: Send) -> None:
    await receive()  # "websocket.connect"
    await send({"type": "websocket.accept"})
    largest = LARGEST_COMMAND if scope["path"] == LIVE else server.config.max_message_mb << 20
    connection = AsgiConnection(scope, receive, send, largest)
    try:
        await server.connected(connection)
        await connection.close()
    finally:
        connection.forget()


async def _respond(send: Send, response: Response, kind: str) -> None:
    headers = [
        (name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in response.headers.raw_items()
    ]
    headers = [(name, value) for name, value in headers if name != b"connection"]  # the listener's part
    await send({"type": f"{kind}.start", "status": response.status_code, "headers": headers})
    await send({"type": f"{kind}.body", "body": response.body})


async def _lifespan(receive: Receive, send: Send) -> None:
    for part in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{part}.complete"})
