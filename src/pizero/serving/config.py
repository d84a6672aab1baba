"""Settings of a policy server: their names, defaults and meanings, for `pizero serve` too."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from pizero.policy.held_subtask import HeldSubtask
from pizero.types import UserError

ADMIN = " admin"
"""How the line of a key ends whose pages see and command every robot."""


@dataclass(frozen=True)
class Access:
    """Where and to whom the server listens."""

    host: str = "127.0.0.1"
    """Address to listen on; by default only this machine can connect."""
    port: int = 8000
    """Port to listen on."""
    certificate: Path | None = None
    """PEM file for TLS, with --private-key."""
    private_key: Path | None = None
    """PEM file."""
    origins: tuple[str, ...] = ()
    """Names, besides localhost and addresses, under which browsers may open the page."""


@dataclass(frozen=True)
class Batches:
    """How requests of several robots are joined."""

    max_batch: int = 16
    """Requests of one model call."""
    max_wait_ms: float = 3.0
    """How long the first request of a batch waits for those of other robots."""
    max_queue: int = 64
    """Requests that may wait for one checkpoint; beyond, the answer is "busy"."""
    default_prompt: str | None = None
    """Instruction of robots that send none."""


@dataclass(frozen=True)
class Subtasks:
    """How often a policy that plans in words writes what it does; without either for every request."""

    subtask_every: int | None = None
    """Requests of a robot that are answered with one, before the policy writes the next."""
    subtask_s: float | None = None
    """Seconds after which it is too old."""


@dataclass(frozen=True)
class Bounds:
    """What one connection and all of them may take."""

    max_message_mb: int = 32
    """Size of one request."""
    max_connections: int = 256
    """Robots at once."""
    max_rate: float = 500.0
    """Requests a second of one connection."""
    idle_s: float = 3600.0
    """Seconds without a request after which a connection is closed."""
    drain_s: float = 20.0
    """Seconds that running requests get when the server ends."""


@dataclass(frozen=True)
class Recording:
    """What is kept of the requests and their answers."""

    record: Path | None = None
    """Folder for what comes and goes, as a LeRobot dataset for each checkpoint, complete when the server ends."""
    record_fps: float | None = None
    """Requests a second of the recording; measured unless given."""


@dataclass(frozen=True)
class ServeConfig(Access, Batches, Subtasks, Bounds, Recording):
    """All settings of a server. UserError where one makes no sense."""

    api_keys: tuple[str, ...] = ()
    """Each "KEY", or "KEY admin" for one whose pages see and command the robots of all keys."""
    ping_s: float = 20.0
    """Seconds between pings, and for the answer to one; a robot that vanished is noticed after at most two."""
    replica: str | None = None
    """Which of several servers behind one address this is; robots see it."""

    def __post_init__(self) -> None:
        for name in (
            "max_batch", "max_queue", "max_message_mb", "max_connections", "max_rate", "idle_s", "ping_s"
        ):  # fmt: skip
            if getattr(self, name) <= 0:
                raise UserError(f"{name} must be above 0, got {getattr(self, name)}")
        HeldSubtask(self.subtask_every, self.subtask_s)  # checks them
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
    """Lines of a file, "KEY" or "KEY admin"; empty ones and those that start with # do not count."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error})") from error
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise UserError(f"{path} holds no API key; write one a line")
    return keys
