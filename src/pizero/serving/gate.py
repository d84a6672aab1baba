"""Who may connect, and the plain HTTP answers: health, metrics, the page's files."""

from __future__ import annotations

import hmac
import json
import socket
from http import HTTPStatus
from importlib.resources import files
from ipaddress import ip_address
from urllib.parse import urlsplit

from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from pizero.serving.config import ADMIN, ServeConfig

LIVE = "/live"
"""Path of the page's own connection."""
_ONCE = ("Host", "Origin", "Authorization", "Upgrade")
"""Headers that decide; two of one kind could mean either."""
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
        self._keys = [key.removesuffix(ADMIN).strip().encode() for key in config.api_keys]
        self._admins = {f"key {number + 1}" for number, key in enumerate(config.api_keys) if key.endswith(ADMIN)}

    def owner(self, request: Request, address: str) -> str | None:
        """Whose connection this is: a key's number, or the address; None if it brings no key that is known."""
        if not self.config.api_keys:
            return address
        return self.owner_of(request.headers.get("Authorization", "").removeprefix("Api-Key "))

    def owner_of(self, given: str) -> str | None:
        """The name of an API key; all are compared, each in constant time."""
        found = None
        for number, key in enumerate(self._keys):
            if hmac.compare_digest(given.encode("utf-8", "surrogatepass"), key):
                found = f"key {number + 1}"
        return found

    def commands(self, owner: str, other: str) -> bool:
        """Whether a page of `owner` sees and commands the robots of `other`: without keys everybody does."""
        return not self._keys or owner == other or owner in self._admins

    def share(self, most: int) -> int:
        """How many of `most` places one owner may take, so that others find one."""
        if self._keys:
            return -(-most // len(self._keys))
        return most if self.config.local_only else -(-most // 2)

    def malformed(self, request: Request) -> str:
        """What is wrong with the headers that decide; nothing where they can be read."""
        for name in _ONCE:
            if len(request.headers.get_all(name)) > 1:
                return f"more than one {name} header"
        for name in ("Host", "Origin"):
            try:
                text = request.headers.get(name, "")
                _ = urlsplit(text if name == "Origin" else f"//{text}").hostname
            except ValueError:
                return f"the {name} header cannot be read"
        return ""

    def strange_name(self, request: Request) -> bool:
        """Whether the server was reached by a name that it does not know, as a page's that was made to lead here.

        Names without a dot, and this machine's own, are nobody else's.
        """
        host = urlsplit("//" + request.headers.get("Host", "")).hostname or "localhost"
        known = ("localhost", self.config.host, *self.config.origins, socket.gethostname().lower())
        return "." in host and host not in known and not _is_address(host)

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
        return not _is_address(host)  # another name that leads here


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


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
