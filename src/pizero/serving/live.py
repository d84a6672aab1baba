"""Who is connected, and what each robot asked and got last: the state that the page shows."""

from __future__ import annotations

import itertools
import statistics
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pizero.policy.held_subtask import HeldSubtask
from pizero.types import RobotDict

LARGEST_SIDE = 400
"""Pixels of an image that is kept to be shown, in each direction."""
REMEMBERED, RECENT = 240, 5.0
"""Requests that a robot's figures are made of, at most, and seconds that its rate looks back."""


@dataclass
class Figures:
    """Of one robot's requests: how many, how fast; timing: of the last one, by stage, in ms."""

    requests: int = 0
    errors: int = 0
    timing: dict[str, float] = field(default_factory=dict)
    answered: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    """When, and after how many seconds."""

    def add(self, seconds: float) -> None:
        """A request that was answered after `seconds`."""
        self.requests += 1
        self.answered.append((time.monotonic(), seconds))

    def rate(self, connected: float) -> float:
        """Requests per second, lately. connected: since when."""
        now = time.monotonic()
        return sum(now - when < RECENT for when, _ in self.answered) / min(RECENT, max(now - connected, 0.5))

    def latency(self, share: float) -> float:
        """Milliseconds that this share of the remembered requests did not exceed."""
        seconds = sorted(seconds for _, seconds in self.answered)
        return 1000 * seconds[min(int(share * len(seconds)), len(seconds) - 1)] if seconds else 0.0


@dataclass
class Last:
    """What a robot sent and got last, as the page shows it. played: what it played of the chunk before, if known.
    picture: of the simulated robot's scene, number `pictures`.
    """

    observation: RobotDict | None = None
    chunk: NDArray[np.float32] | None = None
    played: NDArray[np.float32] | None = None
    picture: NDArray[np.uint8] | None = None
    pictures: int = 0


@dataclass(eq=False)
class Robot:
    """One connection. prompt: the robot's own; new_prompt: one from the page, in its place. busy: a request runs.

    subtask: of a policy that takes one, as it was written last and holds; new_subtask: one from the page, in the place
    of that and of the robot's own.
    """

    number: int
    checkpoint: str
    address: str
    owner: str
    simulated: bool = False
    connected: float = field(default_factory=time.monotonic)
    prompt: str = ""
    new_prompt: str | None = None
    subtask: HeldSubtask | None = None
    new_subtask: str | None = None
    busy: bool = False
    figures: Figures = field(default_factory=Figures)
    last: Last = field(default_factory=Last)

    def question(self, observation: RobotDict) -> RobotDict:
        """With what the page says in place of the robot's own words, and a subtask that was written and holds."""
        if self.new_prompt is not None:
            observation = {**observation, "prompt": self.new_prompt}
        if self.subtask is None:
            return observation
        if self.new_subtask is not None:
            observation = {**observation, "subtask": self.new_subtask}
        return self.subtask.question(observation)

    def remember(self, observation: RobotDict, reply: Mapping[str, Any], seconds: float) -> None:
        """A request that was answered after `seconds`."""
        last, chunk = self.last, reply["actions"]
        if self.subtask is not None:
            self.subtask.heard(observation, reply)
        if not self.simulated:  # what an executor did not hand back, it has played
            left = observation.get("previous_actions", ())
            last.played = last.chunk[: -len(left)] if last.chunk is not None and len(left) else None
        last.observation, last.chunk = small(observation), chunk
        self.figures.add(seconds)

    def to_json(self) -> dict[str, Any]:
        figures = self.figures
        return {
            "robot": self.number,
            "checkpoint": self.checkpoint,
            "address": self.address,
            "simulated": self.simulated,
            "seconds": round(time.monotonic() - self.connected, 1),
            "requests": figures.requests,
            "errors": figures.errors,
            "rate": round(figures.rate(self.connected), 1),
            "p50": round(figures.latency(0.5), 2),
            "p95": round(figures.latency(0.95), 2),
            "prompt": self.prompt,
            "new_prompt": self.new_prompt,
            "subtask": None if self.subtask is None else self.subtask.text,
            "written": self.subtask is not None and self.subtask.written,
            "new_subtask": self.new_subtask,
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

    def join(
        self, checkpoint: str, address: str, owner: str, simulated: bool = False, subtask: HeldSubtask | None = None
    ) -> Robot:
        robot = Robot(next(self._numbers), checkpoint, address, owner, simulated, subtask=subtask)
        self.robots[robot.number] = robot
        return robot

    def leave(self, robot: Robot) -> None:
        self.robots.pop(robot.number, None)

    def latency_now(self) -> float:
        """Milliseconds, the median of the last second's requests of all robots; 0 without any."""
        now = time.monotonic()
        lately = [
            seconds for robot in self.robots.values() for when, seconds in robot.figures.answered if now - when < 1.0
        ]
        return 1000 * statistics.median(lately) if lately else 0.0
