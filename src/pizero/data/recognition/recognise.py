"""The robot of a dataset, with the reason for each guess and the questions that are left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from pizero.data.datasets.meta.features import IMAGE_PREFIX
from pizero.data.doctor.names import dims_text, meaning
from pizero.data.embodiments.embodiment import Embodiment, Key
from pizero.data.recognition.cameras import (
    ON_THE_HAND,
    PLACES,
    Placed,
    cameras_of_model,
    look_at_cameras,
    place_cameras,
)
from pizero.data.recognition.columns import (
    Targets,
    find_column,
    find_targets,
    joined_names,
    joined_numbers,
    joined_width,
)
from pizero.data.recognition.description import Description
from pizero.data.recognition.robots import KnownRobot, Recognised, built_in, recognise_robot
from pizero.data.recognition.units import Units, guess_units
from pizero.types import UserError

OWN = "own"
"""The name of a robot that the dataset does not name."""
ROOM = 32
"""State and action dimensions of the released models."""


@dataclass(frozen=True)
class RobotGuess:
    """robot: what training, `check` and the robot file take. like: the described robot that it is; empty where it is
    none. questions: where a guess may be wrong, and what to look at.
    """

    robot: Embodiment
    description: Description
    recognised: Recognised
    like: str
    cameras: Placed
    targets: Targets
    units: Units
    prompt: str
    questions: tuple[str, ...] = field(default=())

    @property
    def widths(self) -> tuple[int, int]:
        """(state, action) dimensions of the columns."""
        keys = self.robot.state_key, self.robot.action_key
        return joined_width(self.description, keys[0]), joined_width(self.description, keys[1])

    def names(self, key: Key) -> tuple[str, ...] | None:
        return joined_names(self.description, key)

    def table(self) -> list[tuple[str, str]]:
        """(what, how it was understood), for the terminal: about ten rows, without the questions."""
        robot, (state, action) = self.robot, self.widths
        title = "" if self.recognised.robot is None else f"{self.recognised.robot.title}, "
        like = f"described here as {self.like}, " if self.like else ""
        places = ", ".join(f"{own} as {place}" for place, own in robot.cameras.items())
        rest = "; ".join(f"{name} ({why})" for name, why in self.cameras.unused.items())
        said = self.description
        rate = "not known" if said.fps is None else f"{said.fps:g} a second"
        return [
            ("robot", f"{robot.name}: {title}{like}by {self.recognised.why}"),
            ("cameras", (places or "none") + (f"; not used: {rest}" if rest else "")),
            ("state", f"{_key_text(robot.state_key)} ({state}){_listed(self.names(robot.state_key))}"),
            ("actions", f"{_key_text(robot.action_key)} ({action}){_listed(self.names(robot.action_key))}"),
            ("relative", self.relative_text),
            ("gripper", f"{self._gripper_text()}"),
            ("units", "; ".join(self.units.reasons) or "not known"),
            ("frames", f"{rate}; {said.frames:,} in {said.episodes:,} episodes"),
            ("prompt", self.prompt),
        ]  # fmt: skip

    @property
    def relative_text(self) -> str:
        """Which actions are learned relative to the state, and why not, in a line."""
        mask = self.robot.relative_mask
        if not any(mask):
            return f"none; {self.targets.mask_reason}" if not self.like else "none"
        names = self.names(self.robot.action_key)
        return dims_text("action", [dim for dim, on in enumerate(mask) if on], names, 8) + ": joint targets"

    def _gripper_text(self) -> str:
        if not self.robot.grippers:
            return "none known"
        return dims_text("action", self.robot.grippers, self.names(self.robot.action_key))


def recognise(description: Description, model: Sequence[str] | None = None, *, needs_camera: bool = True) -> RobotGuess:
    """model: the cameras that a model has; None gives it as many as the robot has.

    UserError where there is no camera, unless none is needed, no state or no action.
    """
    if not description.cameras and needs_camera:
        raise UserError(
            f"{description.root} has no camera; a policy needs at least one: record it with one, or copy its videos too"
        )
    state_key, action_key = find_column(description, "state"), find_column(description, "action")
    recognised = recognise_robot(description, joined_names(description, action_key))
    known = recognised.robot
    like = built_in(description, known)
    prompts = [text.strip() for text in description.tasks or ()]
    default = prompts[0] if len(prompts) == 1 else ""
    prefixed = any(key.startswith(IMAGE_PREFIX) for key in description.features)
    plain = Embodiment(
        _name(description, known), {}, state_key=state_key, action_key=action_key,
        image_prefix=IMAGE_PREFIX if prefixed else "", default_prompt=default,
    )  # fmt: skip
    if like is not None and (model is None or set(like.cameras) <= set(model)):
        targets = Targets(like.relative_mask, like.state_indices, like.grippers)
        robot = replace(like, default_prompt=default)
        placed = Placed(dict(like.cameras), dict.fromkeys(like.cameras.values(), f"as {like.name} has it"), {})
        placed = replace(placed, unused=_unused(description, robot, placed))
    else:
        like = None
        placed = _places(description, plain, known)
        targets = find_targets(description, plain, known)
        robot = replace(
            plain, cameras=cameras_of_model(description.cameras, placed, model, description.root),
            relative_mask=targets.mask, state_indices=targets.indices, grippers=targets.grippers,
        )  # fmt: skip
        placed = replace(placed, unused=_unused(description, robot, placed))
    joints = [dim for dim, on in enumerate(targets.mask) if on]
    units = guess_units(
        joined_numbers(description, robot.action_key), joints, robot.grippers, known.units if known else ""
    )
    guess = RobotGuess(
        robot, description, recognised, like.name if like is not None else "", placed, targets, units,
        _prompt_text(description.tasks),
    )  # fmt: skip
    return replace(guess, questions=tuple(_questions(guess)))


def _name(description: Description, known: KnownRobot | None) -> str:
    """That the dataset says, as a folder may be called."""
    said = description.robot_type or (known.name if known is not None else OWN)
    return "".join(letter if letter.isalnum() or letter in "-_. " else "_" for letter in said).strip(" .") or OWN


def _places(description: Description, plain: Embodiment, known: KnownRobot | None) -> Placed:
    names = list(description.cameras)
    if known is not None and known.name == "libero" and set(names) == {"image", "image2"}:
        return Placed({PLACES[0]: "image", PLACES[1]: "image2"}, {"image2": "the wrist's in LIBERO"}, {})
    seen = None
    if len(names) > len(PLACES) and description.dataset is not None:
        state = description.dataset.column(plain.state_key)
        try:
            seen = look_at_cameras(description.dataset, state)
        except UserError:
            seen = None
    return place_cameras(names, seen)


def _unused(description: Description, robot: Embodiment, placed: Placed) -> dict[str, str]:
    rest = [name for name in description.cameras if name not in robot.cameras.values()]
    return {name: placed.unused.get(name, "there is no place for it") for name in rest}


def _prompt_text(tasks: Sequence[str] | None) -> str:
    if tasks is None:
        return "not known: meta/ has no table of tasks"
    texts = [text.strip() for text in tasks if text.strip()]
    if not texts:
        return "none"
    if len(texts) == 1:
        return f"{texts[0][:80]!r}, the dataset's only one"
    return f"{len(texts)} different, of each frame's task, as {texts[0][:60]!r}"


def _questions(guess: RobotGuess) -> list[str]:
    said, robot = guess.description, guess.robot
    found = [guess.recognised.doubt] if guess.recognised.doubt else []
    placed = list(robot.cameras.values())
    hands = [name for name in placed if ON_THE_HAND.search(name)]
    if len(placed) > 1 and not hands and not guess.like and set(robot.cameras) <= set(PLACES):
        found.append(
            f"no camera is on the hand by its name; {', '.join(placed[1:])} took a wrist's place: is one on the hand?"
        )
    if guess.cameras.unused:
        found.append(
            f"more cameras than places: {', '.join(guess.cameras.unused)} not used; are those the right ones to do "
            "without? Others under [cameras]"
        )
    found += guess.targets.questions
    if not guess.like:
        found += guess.units.questions
        found += _gripper_doubt(guess)
    state = guess.names(robot.state_key)
    by_name = robot.grippers and guess.targets.gripper_reason == "by its name"
    if by_name and state is not None and not any(meaning(name, of_command=False).is_gripper for name in state):
        found.append("the state does not say how far the gripper is open: the policy has to see it in the images")
    for what, width in zip(("state", "action"), guess.widths, strict=True):
        if width > ROOM:
            found.append(_too_wide(guess, what, width))
    if said.tasks is None or not any(text.strip() for text in said.tasks):
        found.append("no instruction: what does the robot do? Write it as default_prompt")
    if said.fps is None:
        found.append("no frame rate: how many frames a second?")
    return found


def _gripper_doubt(guess: RobotGuess) -> list[str]:
    """Where the gripper's range is not that of the robot that was recognised."""
    known, found = guess.recognised.robot, guess.units.gripper
    if known is None or not known.gripper or not found or found == "other":
        return []
    top = known.gripper.split(", ")[1].split()[0]
    if found == f"0 to {top}":
        return []
    return [f"the gripper goes from {found}, this robot's usually from 0 to {top} ({known.gripper}): which is open?"]


def _too_wide(guess: RobotGuess, what: str, width: int) -> str:
    key = guess.robot.state_key if what == "state" else guess.robot.action_key
    numbers = joined_numbers(guess.description, key)
    moving = [] if numbers is None else [dim for dim in range(width) if numbers.high[dim] - numbers.low[dim] > 1e-6]
    advice = f"those that move are {what}_dims = {moving}" if 0 < len(moving) <= ROOM else f"choose with {what}_dims"
    return (
        f"{width} {what} dimensions, the released models have room for {ROOM}: which matter? {advice} "
        "(a model from scratch takes all)"
    )


def _key_text(key: Key) -> str:
    return key if isinstance(key, str) else " + ".join(key)


def _listed(names: Sequence[str] | None) -> str:
    if names is None:
        return ", without names"
    return ": " + ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
