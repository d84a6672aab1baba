"""Who is connected, and what each robot asked and got last: the state that the page shows."""

from __future__ import annotations

import itertools
import statistics
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pizero.types import RobotDict

LARGEST_SIDE = 400
"""Pixels of an image that is kept to be shown, in each direction."""
REMEMBERED, RECENT = 240, 5.0
"""Requests that a robot's figures are made of, at most, and seconds that its rate looks back."""


@dataclass(eq=False)
class Robot:
    """One connection. prompt: the robot's own; new_prompt: one from the page, in its place. busy: a request runs.

    picture: of the simulated robot's scene, number `pictures`. played: what it played of the chunk before, if it tells.
    """

    number: int
    checkpoint: str
    address: str
    owner: str
    simulated: bool = False
    connected: float = field(default_factory=time.monotonic)
    requests: int = 0
    errors: int = 0
    prompt: str = ""
    new_prompt: str | None = None
    busy: bool = False
    observation: RobotDict | None = None
    chunk: NDArray[np.float32] | None = None
    picture: NDArray[np.uint8] | None = None
    pictures: int = 0
    played: NDArray[np.float32] | None = None
    timing: dict[str, float] = field(default_factory=dict)
    answered: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=REMEMBERED))

    def remember(self, observation: RobotDict, chunk: NDArray[np.float32], seconds: float) -> None:
        """A request that was answered after `seconds`."""
        self.requests += 1
        if not self.simulated:  # what an executor did not hand back, it has played
            left = observation.get("previous_actions", ())
            self.played = self.chunk[: -len(left)] if self.chunk is not None and len(left) else None
        self.observation, self.chunk = small(observation), chunk
        self.answered.append((time.monotonic(), seconds))

    @property
    def rate(self) -> float:
        """Requests per second, lately."""
        now = time.monotonic()
        return sum(now - when < RECENT for when, _ in self.answered) / min(RECENT, max(now - self.connected, 0.5))

    def latency(self, share: float) -> float:
        """Milliseconds that this share of the remembered requests did not exceed."""
        seconds = sorted(seconds for _, seconds in self.answered)
        return 1000 * seconds[min(int(share * len(seconds)), len(seconds) - 1)] if seconds else 0.0

    def to_json(self) -> dict[str, Any]:
        return {
            "robot": self.number,
            "checkpoint": self.checkpoint,
            "address": self.address,
            "simulated": self.simulated,
            "seconds": round(time.monotonic() - self.connected, 1),
            "requests": self.requests,
            "errors": self.errors,
            "rate": round(self.rate, 1),
            "p50": round(self.latency(0.5), 2),
            "p95": round(self.latency(0.95), 2),
            "prompt": self.prompt,
            "new_prompt": self.new_prompt,
        }


def small(observation: RobotDict) -> RobotDict:
    """As much of an observation as the page shows: the newest images, at most LARGEST_SIDE to a side, by leaving out
    rows and columns.
    """
    images: dict[str, NDArray[Any] | None] = {}
    for name, image in observation["images"].items():
        if image is not None:
            image = np.asarray(image)
            newest = image[-1] if image.ndim == 4 else image
            step = max(1, -(-max(newest.shape[:2]) // LARGEST_SIDE))
            image = newest if step == 1 and newest is image else newest[::step, ::step].copy()
        images[name] = image
    return {**observation, "images": images}


class Live:
    """All robots of a server."""

    def __init__(self) -> None:
        self.robots: dict[int, Robot] = {}
        self._numbers = itertools.count(1)

    def join(self, checkpoint: str, address: str, owner: str, simulated: bool = False) -> Robot:
        robot = Robot(next(self._numbers), checkpoint, address, owner, simulated)
        self.robots[robot.number] = robot
        return robot

    def leave(self, robot: Robot) -> None:
        self.robots.pop(robot.number, None)

    def latency_now(self) -> float:
        """Milliseconds, the median of the last second's requests of all robots; 0 without any."""
        now = time.monotonic()
        lately = [seconds for robot in self.robots.values() for when, seconds in robot.answered if now - when < 1.0]
        return 1000 * statistics.median(lately) if lately else 0.0
