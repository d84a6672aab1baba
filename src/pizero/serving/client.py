"""Asks a policy server for action chunks: pizero's, or openpi's.

This file and protocol.py can be copied alone to a robot's computer; they need NumPy, msgpack and websockets, and
Python 3.8.
"""

from __future__ import annotations

import ipaddress
import random
import socket
import time
from contextlib import ExitStack
from ssl import SSLCertVerificationError
from typing import Any
from urllib.parse import urlsplit

from websockets import exceptions
from websockets.sync.client import ClientConnection, connect
from websockets.uri import parse_uri

try:
    from pizero.serving.protocol import pack, unpack
except ImportError:  # the two files were copied alone
    from protocol import pack, unpack  # type: ignore

try:
    from websockets.proxy import get_proxy
except ImportError:  # before release 16
    try:
        from websockets.uri import get_proxy  # type: ignore
    except ImportError:  # before 15, without proxies
        get_proxy = None

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
"""Seconds before the first new try after a lost connection, and at most; each pause is twice the last."""


class ServerError(RuntimeError):
    """The server refused a request or failed at it, in one line. The connection stays open."""


class BusyError(ServerError):
    """More requests wait than the server takes; the same request may be sent again in a moment."""


class UnreachableError(ConnectionError):
    """No connection could be made in the time given, or the server does not let this client in."""


class PolicyClient:
    """A connection to a policy server, made anew when it breaks.

    uri: ws://host:port, wss:// for TLS, with /name for one of several checkpoints. api_key: sent with the connection.
    timeout: seconds that an answer may take. patience: seconds that a lost server is waited for, at the start too.
    ssl: an ssl.SSLContext for a certificate that this machine does not know. Not for use by several threads at once.

    A proxy of the environment (http_proxy, https_proxy, socks_proxy; not where no_proxy says so) is used for public
    addresses alone, never for this machine or a private network, and errors name it.
    """

    def __init__(
        self,
        uri: str = "ws://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        timeout: float = 30.0,
        patience: float = 60.0,
        ssl: Any = None,
    ) -> None:
        self.uri, self.timeout, self.patience = uri, timeout, patience
        self.metadata: dict[str, Any] = {}
        """What the server says of its policy: of pizero's, among others, action_horizon and cameras."""
        self.connections = 0
        """Connections made so far."""
        self._options: dict[str, Any] = {"compression": None, "max_size": None}
        if api_key:
            self._options["additional_headers"] = {"Authorization": f"Api-Key {api_key}"}
        if ssl is not None:
            self._options["ssl"] = ssl
        self._connection: ClientConnection | None = None
        self._open = ExitStack()
        self._connect(time.monotonic() + patience)

    def infer(self, observation: dict[str, Any]) -> dict[str, Any]:
        """The server's reply to a robot dictionary; reply["actions"] is the chunk [H, robot_action_dim].

        A request whose connection breaks is sent again over a new one. ServerError, BusyError, UnreachableError.
        """
        message, deadline = pack(observation), time.monotonic() + self.patience
        while True:
            if self._connection is None:
                self._connect(deadline)
            assert self._connection is not None
            try:
                self._connection.send(message)
                reply = self._connection.recv(timeout=self.timeout)
            except (exceptions.ConnectionClosed, OSError) as error:  # TimeoutError is an OSError
                self.close()
                if isinstance(error, TimeoutError) or time.monotonic() > deadline:
                    raise UnreachableError(f"{self.uri} gave no answer ({_reason(error)})") from error
                if isinstance(error, exceptions.ConnectionClosed) and _code(error) == 1009:
                    raise ServerError(f"the request of {len(message)} bytes is larger than the server takes") from error
                continue
            if isinstance(reply, str):
                kind = BusyError if reply.startswith("busy: ") else ServerError
                raise kind(reply)
            return unpack(reply)  # type: ignore[no-any-return]

    def reset(self) -> None:
        """Nothing is kept between requests; here so that it fits where openpi's client does."""

    def close(self) -> None:
        """Closes the connection; the next `infer` makes a new one."""
        self._connection = None
        self._open.close()

    def __enter__(self) -> PolicyClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _connect(self, deadline: float) -> None:
        """Tries until it succeeds or the time is up; at once UnreachableError where waiting does not help."""
        pause = FIRST_PAUSE
        proxy, through = _proxy(self.uri), ""
        if get_proxy is not None:
            self._options["proxy"] = proxy
        if proxy is not None:
            through = f" through the proxy {_without_password(proxy)} of the environment"
        while True:
            try:
                left = max(deadline - time.monotonic(), 2.0)
                with ExitStack() as stack:
                    connection = stack.enter_context(connect(self.uri, open_timeout=min(left, 10.0), **self._options))
                    first = connection.recv(timeout=self.timeout)
                    self.metadata = unpack(first) if isinstance(first, bytes) else {}
                    self._connection, self._open = connection, stack.pop_all()
                self.connections += 1
                return
            except (exceptions.WebSocketException, OSError, ImportError, ValueError) as error:
                refused, left = _status(error), deadline - time.monotonic()
                final = 400 <= refused < 500 and refused != 429
                if final and not isinstance(error, _PROXY_ERRORS):
                    raise UnreachableError(f"{self.uri} refuses this client{through} ({_reason(error)})") from error
                if final or left <= 0 or isinstance(error, _HOPELESS):
                    hint = "; set no_proxy where it shall not be used" if through else ""
                    raise UnreachableError(f"{self.uri} cannot be reached{through} ({_reason(error)}{hint})") from error
                time.sleep(min(pause * (0.75 + 0.5 * random.random()), left))  # robots do not come back all at once
                pause = min(2 * pause, LONGEST_PAUSE)


_PROXY_ERRORS = getattr(exceptions, "ProxyError", ())
_HOPELESS = (
    SSLCertVerificationError,
    ImportError,  # what a SOCKS proxy needs
    ValueError,  # a port beyond 65535
    exceptions.InvalidURI,
    getattr(exceptions, "InvalidProxy", exceptions.InvalidURI),
)
"""What waiting does not mend."""


def _proxy(uri: str) -> str | None:
    """The proxy that the environment names for an address, None where the host has a private one.

    One without a scheme is an HTTP proxy, as curl takes it.
    """
    if get_proxy is None:
        return None
    try:
        parsed = parse_uri(uri)
    except (exceptions.InvalidURI, ValueError):  # `connect` says so
        return None
    try:
        addresses = {str(entry[4][0]).partition("%")[0] for entry in socket.getaddrinfo(parsed.host, parsed.port)}
        if not any(ipaddress.ip_address(address).is_global for address in addresses):
            return None
    except (OSError, ValueError):  # a name that the proxy alone may know
        pass
    proxy = (get_proxy(parsed) or "").strip()
    return f"http://{proxy}" if proxy and "://" not in proxy else proxy or None


def _without_password(proxy: str) -> str:
    parts = urlsplit(proxy)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _status(error: BaseException) -> int:
    """The HTTP status with which a server refused the connection; 0 for another failure."""
    return int(getattr(getattr(error, "response", None), "status_code", 0))


def _code(error: exceptions.ConnectionClosed) -> int:
    close = getattr(error, "rcvd", None)
    return 0 if close is None else int(close.code)


def _reason(error: BaseException) -> str:
    body = getattr(getattr(error, "response", None), "body", None)
    text = body.decode("utf-8", "replace").strip() if body else str(error)
    return " ".join(text.split())[:300] or type(error).__name__
