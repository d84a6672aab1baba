"""A robot file (TOML) of a guessed robot: each line with its reason, each doubt as a question."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from pizero.data.embodiments.embodiment import Embodiment
from pizero.data.recognition.recognise import RobotGuess

_WIDTH = 116


def robot_file(guess: RobotGuess) -> str:
    """TOML that `get_embodiment` reads as `guess.robot`."""
    return "\n".join([*_head(guess), "", *_cameras(guess), "", *_robot(guess), *_units(guess), ""])


def _head(guess: RobotGuess) -> Iterator[str]:
    said = guess.description
    rate = "an unknown frame rate" if said.fps is None else f"{said.fps:g} frames a second"
    yield from _comment(
        f"The robot of {said.root.resolve().name}, read from its own description: {rate}, "
        f"episodes: {said.episodes}, frames: {said.frames}."
    )
    if guess.recognised.robot is not None:
        yield from _comment(f"Recognised as {guess.recognised.robot.title} by {guess.recognised.why}.")
    for question in guess.questions:
        yield from _comment(f"question: {question}")


def _cameras(guess: RobotGuess) -> Iterator[str]:
    yield "[cameras]"
    for place, own in guess.robot.cameras.items():
        yield _line(_key(place), own, guess.cameras.reasons.get(own, ""))
    for name, why in guess.cameras.unused.items():
        yield from _comment(f"not used: {name}; {why}")


def _robot(guess: RobotGuess) -> Iterator[str]:
    robot, usual = guess.robot, Embodiment("any", {})
    yield "[robot]"
    yield _line("name", robot.name, "the dataset's robot_type" if guess.description.robot_type == robot.name else "")
    if guess.like:
        yield _line("like", guess.like, "columns, cameras and widths are those of this described robot")
        yield _line("default_prompt", robot.default_prompt, guess.prompt)
        return
    for what, key in (("state", robot.state_key), ("action", robot.action_key)):
        names = guess.names(key)
        width = guess.widths[0 if what == "state" else 1]
        if what == "action" and names and names == guess.names(robot.state_key):
            yield from _comment(f"the same {width}")
        else:
            yield from _comment(f"{width}: {', '.join(names)}" if names else f"{width} dimensions without names")
        yield _line(f"{what}_key", key, "")
    if robot.image_prefix != usual.image_prefix:
        yield _line("image_prefix", robot.image_prefix, "the cameras' columns have no prefix")
    yield _line("default_prompt", robot.default_prompt, guess.prompt)
    if robot.relative_mask:
        yield from _comment(guess.targets.mask_reason)
        yield _line("relative_mask", robot.relative_mask, "")
        if robot.state_indices:
            yield _line("state_indices", robot.state_indices, "the state of each action")
    else:
        yield from _comment(f"no relative_mask: {guess.targets.mask_reason}")
    if robot.grippers:
        yield _line("grippers", robot.grippers, guess.targets.gripper_reason)
    else:
        yield from _comment(f"no grippers: {guess.targets.gripper_reason}")


def _units(guess: RobotGuess) -> Iterator[str]:
    """What a conversion would be. It changes nothing where statistics are the data's own: both are linear."""
    if guess.like or not guess.units.reasons:
        return
    yield ""
    yield from _comment("units, by the range of the actions: " + "; ".join(guess.units.reasons))
    known = guess.recognised.robot
    if known is not None and known.gripper and guess.robot.grippers:
        yield from _comment(f"the gripper of {known.title}: usually {known.gripper}")
    joints = [dim for dim, on in enumerate(guess.robot.relative_mask) if on]
    tables: list[tuple[Sequence[int], tuple[float, float], tuple[float, float]]] = []
    same = not guess.robot.state_indices
    if guess.units.joints.startswith("degrees") and joints and same:
        tables.append((joints, (0.0, 180.0), (0.0, round(math.pi, 8))))
    top = {"0 to 1": 1.0, "0 to 100": 100.0}.get(guess.units.gripper)
    if known is not None and known.gripper and top is not None and guess.robot.grippers and same:
        opens = known.gripper.startswith("0 open")
        if top != 1.0 or not opens:
            tables.append((guess.robot.grippers, (0.0, top), (0.0, 1.0) if opens else (1.0, 0.0)))
    if tables:
        yield from _comment(
            "With the data's own statistics a conversion of units changes nothing, for both are linear. With the "
            "statistics of a released checkpoint (--norm-stats) take away the # of:"
        )
    for dims, own, model in tables:
        yield "# [[robot.conversions]]"
        yield f"# dims = {json.dumps(list(dims))}"
        yield f"# robot = {json.dumps(list(own))}"
        yield f"# model = {json.dumps(list(model))}"


def _line(key: str, value: Any, reason: str) -> str:
    text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    line = f"{key} = {text}"
    if not reason:
        return line
    return f"{line}  # {_one_line(reason)}" if len(line) + len(reason) < 150 else "\n".join([*_comment(reason), line])


def _key(name: str) -> str:
    plain = name.isascii() and all(letter.isalnum() or letter in "-_" for letter in name) and name
    return name if plain else json.dumps(name, ensure_ascii=False)


def _comment(text: str) -> list[str]:
    return textwrap.wrap(_one_line(text), _WIDTH, initial_indent="# ", subsequent_indent="#   ", break_long_words=False)


def _one_line(text: str) -> str:
    """TOML's comments hold no control characters."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
