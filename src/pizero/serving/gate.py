"""Who may connect, and the plain HTTP answers: health, metrics, the page's files."""

from __future__ import annotations

import hmac
import json
from http import HTTPStatus
from importlib.resources import files
from ipaddress import ip_address
from urllib.parse import urlsplit

from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from pizero.serving.config import ServeConfig

LIVE = "/live"
"""Path of the page's own connection."""
PAGE = {
    "/": ("page.html", "text/html"),
    "/page/page.css": ("page.css", "text/css"),
    "/page/page.js": ("page.js", "text/javascript"),
    "/page/uPlot.js": ("uPlot.iife.min.js", "text/javascript"),
    "/page/uPlot.css": ("uPlot.min.css", "text/css"),
}
_SAFE = [
    (
        "Content-Security-Policy",
        "default-src 'self'; img-src 'self' data:; connect-src 'self' ws: wss:; frame-ancestors 'none'",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cache-Control", "no-cache"),
]


class Gate:
    """Decides on each request for a connection, before it is one."""

    def __init__(self, config: ServeConfig) -> None:
        self.config = config

    def owner(self, request: Request, address: str) -> str | None:
        """Whose connection this is: a key's number, or the address; None if it brings no key that is known."""
        if not self.config.api_keys:
            return address
        return self.owner_of(request.headers.get("Authorization", "").removeprefix("Api-Key "))

    def owner_of(self, given: str) -> str | None:
        """The name of an API key; all are compared, each in constant time."""
        found = None
        for number, key in enumerate(self.config.api_keys):
            if hmac.compare_digest(given.encode("utf-8", "surrogateescape"), key.encode()):
                found = f"key {number + 1}"
        return found

    def foreign(self, request: Request) -> bool:
        """Whether a browser shows somebody else's page: it must not reach a server that listens to this machine."""
        origin = request.headers.get("Origin")
        if origin is None:
            return False
        host = urlsplit(origin).hostname or ""
        if urlsplit(origin).netloc != request.headers.get("Host"):
            return True
        if host == "localhost" or host in (self.config.host, *self.config.origins):
            return False
        try:
            ip_address(host)
        except ValueError:
            return True  # another name that leads here
        return False


def wants_websocket(request: Request) -> bool:
    return request.headers.get("Upgrade", "").lower() == "websocket"


def respond(status: HTTPStatus, body: bytes | str, kind: str = "text/plain") -> Response:
    """A whole HTTP answer."""
    data = body.encode() if isinstance(body, str) else body
    headers = [
        ("Content-Type", f"{kind}; charset=utf-8"), ("Content-Length", str(len(data))), ("Connection", "close"), *_SAFE
    ]  # fmt: skip
    if status == HTTPStatus.UNAUTHORIZED:
        headers.append(("WWW-Authenticate", "Api-Key"))
    return Response(status.value, status.phrase, Headers(headers), data)


def page_file(path: str) -> Response | None:
    """A file of the page; None for another path."""
    if path not in PAGE:
        return None
    name, kind = PAGE[path]
    return respond(HTTPStatus.OK, files("pizero.serving").joinpath("page", name).read_bytes(), kind)


def not_found(names: list[str]) -> Response:
    return respond(HTTPStatus.NOT_FOUND, f"no checkpoint of this name; there are {json.dumps(names)}\n")
