"""The tabletop's physics: quasi-static, exact for a given action, without randomness.

World frame: the table is [-1, 1] x [-1, 1] seen from above, x to the right, y up, z in [0, 1] with the table at 0.
Lengths are in table units (half a table), angles in radians, counter-clockwise. Blocks and discs behave alike: both
are round for contact, and differ in looks only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

MAX_STEP = 0.25  # table units per control step of a full action, along x, y and z
MAX_TURN = 0.5  # radians per control step
GRIP_RATE = 0.5  # gripper opening per control step
OBJECT_RADIUS = 0.17
TIP_RADIUS = 0.06
CONTACT = OBJECT_RADIUS + TIP_RADIUS  # distance between tip and object centre while pushing
STICKING = 0.6  # cosine of the friction cone's half angle: pushed within it, an object does not slip off the tip
LOW = 0.3  # height of an object: below it the tip can touch one
HELD_OPENING = 0.6  # opening of a gripper that is closed around an object
LIMIT = 1.0 - OBJECT_RADIUS  # an object on the table stays on it
SUBSTEPS = 6  # a quarter of a full step is far less than a radius, so nothing is jumped over


@dataclass(slots=True)
class Thing:
    """One object: pose of its centre (z is its height above the table), colour and shape."""

    colour: str
    shape: str
    x: float
    y: float
    z: float = 0.0
    yaw: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(slots=True)
class World:
    """Objects and the gripper. `opening` is 0 (closed) to 1; `held` is the index of the held object."""

    things: list[Thing]
    x: float
    y: float
    z: float
    yaw: float
    opening: float
    held: int | None = None

    def distance(self, index: int) -> float:
        """Distance on the table plane from the tip to the centre of object `index`."""
        thing = self.things[index]
        return math.hypot(thing.x - self.x, thing.y - self.y)

    def touching(self) -> bool:
        """True while the gripper holds an object, or is low against one or around one."""
        if self.held is not None:
            return True
        return self.z < LOW and any(self.distance(i) < CONTACT + 0.01 for i in range(len(self.things)))

    def put(self, index: int, x: float, y: float) -> None:
        """Puts object `index` on the table at (x, y), whoever holds it; others there make room."""
        thing = self.things[index]
        if self.held == index:
            self.held = None
        thing.z = 0.0
        _place(thing, x, y)
        self._push_others(thing)

    def step(self, action: Sequence[float]) -> None:
        """Applies one action [5] in [-1, 1]: dx, dy, dz, dyaw, gripper command (above 0 closes)."""
        dx, dy, dz = (a * MAX_STEP / SUBSTEPS for a in action[:3])
        for _ in range(SUBSTEPS):
            self._move(dx, dy, dz, action[3] * MAX_TURN / SUBSTEPS)
        self.yaw = math.remainder(self.yaw, math.tau)
        self._grip(close=action[4] > 0)

    def _move(self, dx: float, dy: float, dz: float, dyaw: float) -> None:
        # An object under the tip is between the jaws: the tip can come there from above only.
        under = [self.distance(i) < OBJECT_RADIUS for i in range(len(self.things))]
        old_x, old_y = self.x, self.y
        self.x = min(max(self.x + dx, -1.0), 1.0)
        self.y = min(max(self.y + dy, -1.0), 1.0)
        self.z = min(max(self.z + dz, 0.0), 1.0)
        self.yaw += dyaw
        if self.held is not None:
            self._carry(self.things[self.held], old_x, old_y, dyaw)
            return
        if self.opening < HELD_OPENING and any(under):
            self.z = max(self.z, LOW)  # jaws too narrow to go around the object land on top of it
        if self.z < LOW:
            for index, between in enumerate(under):
                self._touch(index, between, self.x - old_x, self.y - old_y)

    def _carry(self, thing: Thing, old_x: float, old_y: float, dyaw: float) -> None:
        """The held object is fixed to the hand: it moves, lifts and turns with it."""
        cos, sin = math.cos(dyaw), math.sin(dyaw)
        along, across = thing.x - old_x, thing.y - old_y
        thing.x = self.x + cos * along - sin * across
        thing.y = self.y + sin * along + cos * across
        thing.z = self.z
        thing.yaw += dyaw
        if self.z < LOW:
            self._push_others(thing)

    def _touch(self, index: int, between: bool, moved_x: float, moved_y: float) -> None:
        """Resolves the contact of a low tip, just moved, with one object; one at the table's border blocks the tip."""
        thing = self.things[index]
        apart_x, apart_y = thing.x - self.x, thing.y - self.y
        distance = math.hypot(apart_x, apart_y)
        # Between the jaws it is dragged along; otherwise the tip pushes it.
        wanted = min(distance, 0.99 * OBJECT_RADIUS) if between else max(distance, CONTACT)
        if wanted == distance:
            return
        step = math.hypot(moved_x, moved_y)
        ahead = (apart_x * moved_x + apart_y * moved_y) / max(step, 1e-9)  # how far the object is along the motion
        if not between and step > 0 and ahead > STICKING * distance:  # friction: it goes where the tip goes
            way = (math.sqrt(ahead**2 + wanted**2 - distance**2) - ahead) / step
            _place(thing, thing.x + way * moved_x, thing.y + way * moved_y)
        else:  # it slips along the contact normal
            _place(thing, self.x + apart_x * wanted / distance, self.y + apart_y * wanted / distance)
        back_x, back_y = self.x - thing.x, self.y - thing.y
        scale = wanted / max(math.hypot(back_x, back_y), 1e-9)
        self.x = min(max(thing.x + back_x * scale, -1.0), 1.0)
        self.y = min(max(thing.y + back_y * scale, -1.0), 1.0)
        self._push_others(thing)

    def _push_others(self, pusher: Thing) -> None:
        for other in self.things:
            apart_x, apart_y = other.x - pusher.x, other.y - pusher.y
            distance = math.hypot(apart_x, apart_y)
            if other is not pusher and 0 < distance < 2 * OBJECT_RADIUS:
                scale = 2 * OBJECT_RADIUS / distance
                _place(other, pusher.x + apart_x * scale, pusher.y + apart_y * scale)

    def _grip(self, close: bool) -> None:
        self.opening = min(max(self.opening + (-GRIP_RATE if close else GRIP_RATE), 0.0), 1.0)
        if not close and self.held is not None:
            dropped = self.things[self.held]
            self.held, dropped.z = None, 0.0
            _place(dropped, dropped.x, dropped.y)
            self._push_others(dropped)
        if close and self.held is None and self.z < LOW and self.opening <= HELD_OPENING:
            near = min(range(len(self.things)), key=self.distance)
            if self.distance(near) < OBJECT_RADIUS:
                self.held = near
                self.things[near].z = self.z
        if self.held is not None:
            self.opening = HELD_OPENING


def _place(thing: Thing, x: float, y: float) -> None:
    thing.x = min(max(x, -LIMIT), LIMIT)
    thing.y = min(max(y, -LIMIT), LIMIT)
