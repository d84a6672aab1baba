"""Settings of a policy server."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from pizero.types import UserError

ADMIN = " admin"
"""How the line of a key ends whose pages see and command every robot."""


@dataclass(frozen=True)
class ServeConfig:
    """Where and to whom a server listens, how it joins requests, and what it refuses.

    default_prompt: instruction of robots that send none. max_wait_ms: how long the first request of a batch waits for
    others. max_queue: waiting requests of one checkpoint. max_rate: requests per second of one connection. idle_s:
    silence after which a connection is closed. ping_s: seconds between pings, and for the answer to one; a robot that
    vanished is noticed after at most two. drain_s: seconds that running requests get when the server ends. origins:
    hosts, besides localhost and addresses, under which browsers may show the page. api_keys: "KEY", or "KEY admin" for
    one whose pages see and command the robots of all keys. record: folder for what came and
    went; record_fps: control steps a second of the recording, None measures it. replica: which of several servers
    behind one address this is; told to robots.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    default_prompt: str | None = None
    max_batch: int = 16
    max_wait_ms: float = 3.0
    max_queue: int = 64
    api_keys: tuple[str, ...] = ()
    certificate: Path | None = None
    private_key: Path | None = None
    max_message_mb: int = 32
    max_connections: int = 256
    max_rate: float = 500.0
    idle_s: float = 3600.0
    ping_s: float = 20.0
    drain_s: float = 20.0
    origins: tuple[str, ...] = ()
    record: Path | None = None
    record_fps: float | None = None
    replica: str | None = None

    def __post_init__(self) -> None:
        for name in (
            "max_batch", "max_queue", "max_message_mb", "max_connections", "max_rate", "idle_s", "ping_s"
        ):  # fmt: skip
            if getattr(self, name) <= 0:
                raise UserError(f"{name} must be above 0, got {getattr(self, name)}")
        if not 0 <= self.max_wait_ms <= 1000:
            raise UserError(f"max_wait_ms must be from 0 to 1000, got {self.max_wait_ms}")
        if not 0 <= self.port < 1 << 16:
            raise UserError(f"port must be from 0 to 65535, got {self.port}")
        if (self.certificate is None) != (self.private_key is None):
            raise UserError("TLS needs both the certificate and its private key")
        if any(not key.isascii() or not key.removesuffix(ADMIN).strip() for key in self.api_keys):
            raise UserError("API keys must be of ASCII characters and not empty")

    @property
    def local_only(self) -> bool:
        """Whether no other machine can connect."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def read_keys(path: Path) -> tuple[str, ...]:
    """Lines of a file, "KEY" or "KEY admin"; empty ones and those that start with # are left out."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error})") from error
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise UserError(f"{path} holds no API key; write one a line")
    return keys
