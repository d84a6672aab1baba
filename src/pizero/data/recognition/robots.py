"""Robots that many people have: how to know them, and what is known of their numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pizero.data.doctor.names import meaning
from pizero.data.embodiments import EMBODIMENTS, Embodiment
from pizero.data.recognition.description import Description

_SO = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
_SIDES = ("left", "right", "follower", "leader", "main")


@dataclass(frozen=True)
class KnownRobot:
    """title: as people call it. types: pattern of a dataset's robot_type. arm: dimensions of one arm, its gripper the
    last; 0 where that differs. joints: their names, where the names alone decide the robot. units: of the joints.
    gripper: what its numbers mean, in words; empty where makes differ. several_units: recordings of it have other
    units than the robot that is described here under this name, so that only what says to be that one is it.
    """

    name: str
    title: str
    types: str
    arm: int = 0
    joints: tuple[str, ...] = ()
    units: str = ""
    gripper: str = ""
    several_units: bool = False

    def matches_type(self, robot_type: str) -> bool:
        return re.search(self.types, robot_type, re.IGNORECASE) is not None

    def arms(self, width: int) -> int:
        return width // self.arm if self.arm and width and width % self.arm == 0 else 0


KNOWN = (
    KnownRobot(
        "so101", "SO-101", r"so[-_]?101|(^|_)so_(follower|leader)", 6, _SO, "degrees", "0 closed, 100 open",
        several_units=True,
    ),
    KnownRobot("so100", "SO-100", r"so[-_]?100", 6, _SO, "degrees", "0 closed, 100 open"),
    KnownRobot("koch", "Koch", r"koch", 6, _SO, "degrees", "0 closed, 100 open"),
    KnownRobot(
        "aloha", "ALOHA", r"aloha|viperx|trossen|(^|_)vx300", 7,
        ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper"), "radians",
        "0 closed, 1 open",
    ),
    KnownRobot("droid", "DROID", r"droid", 8, (), "radians", "0 open, 1 closed"),
    KnownRobot("franka", "Franka", r"franka|panda|fr3", 8, (), "radians"),
    KnownRobot("piper", "Piper", r"piper", 7, (), ""),
    KnownRobot("ur5", "UR5", r"ur5", 7, (), "radians"),
    KnownRobot("g1", "Unitree G1", r"(^|[_\-\s])g1($|[_\-\s])|unitree.?g1", 0, (), "radians"),
    KnownRobot("libero", "LIBERO", r"libero"),
    KnownRobot("metaworld", "Meta-World", r"meta.?world"),
)  # fmt: skip


@dataclass(frozen=True)
class Recognised:
    """robot: None where it is none of `KNOWN`. why: by what. doubt: a question; empty where there is none."""

    robot: KnownRobot | None
    why: str
    doubt: str = ""


def recognise_robot(description: Description, action_names: Sequence[str] | None) -> Recognised:
    """By robot_type, by the names of its joints, or by the columns that only one kind of dataset has."""
    said = description.robot_type
    by_type = next((robot for robot in KNOWN if said and robot.matches_type(said)), None)
    by_names = [robot for robot in KNOWN if robot.joints and _has_joints(robot, action_names)]
    columns = set(description.columns)
    if {"joint_position", "gripper_position"} <= columns:
        return Recognised(_named("droid"), "the columns joint_position and gripper_position")
    if _is_libero(description):
        return Recognised(_named("libero"), "8 state and 7 action dimensions, an image and a wrist image")
    if by_type is not None:
        if by_names and by_type.joints and by_type not in by_names:
            return Recognised(
                by_type, f"robot_type {said!r}",
                f"robot_type says {by_type.title}, the joints are named as those of {by_names[0].title}: which is it?",
            )  # fmt: skip
        both = " and the names of its joints" if by_type in by_names else ""
        return Recognised(by_type, f"robot_type {said!r}{both}")
    if by_names:
        titles = ", ".join(robot.title for robot in by_names)
        doubt = f"robot_type is {said!r}; the joints are named as those of {titles}: is it one of them?"
        return Recognised(by_names[0], "the names of its joints", doubt)
    return Recognised(None, f"robot_type {said!r} alone" if said else "its columns alone")


def built_in(description: Description, known: KnownRobot | None) -> Embodiment | None:
    """The described robot whose columns, cameras and widths the dataset has."""
    said = description.robot_type.lower().replace("-", "_")
    names = [said, "metaworld_mt", "aloha_sim", "libero_sim"] if said else []
    names += [known.name, f"{known.name}_sim"] if known is not None and not known.several_units else []
    for name in dict.fromkeys(names):
        of_kind = name.split("_")[0] in said or (known is not None and name.startswith(known.name))
        if name in EMBODIMENTS and of_kind and _fits(description, robot := EMBODIMENTS[name]()):
            return robot
    return None


def _fits(description: Description, robot: Embodiment) -> bool:
    keys = robot.columns
    if not set(keys) <= set(description.columns) or not set(robot.cameras.values()) <= set(description.cameras):
        return False
    if any(robot.image_key(camera) not in description.features for camera in robot.cameras.values()):
        return False
    actions = robot.action_key if isinstance(robot.action_key, tuple) else (robot.action_key,)
    action = sum(description.width(key) for key in actions)
    state = sum(description.width(key) for key in keys) - action
    return (state, action) == (robot.state_dim, robot.action_dim)


def _has_joints(robot: KnownRobot, names: Sequence[str] | None) -> bool:
    """Whether these are the robot's joints, of one arm or of several."""
    if not names or len(names) % len(robot.joints):
        return False
    wanted = [meaning(joint, of_command=True).joint for joint in robot.joints]
    found = [
        tuple(word for word in meaning(name, of_command=True).joint if word not in _SIDES and not word.isdigit())
        for name in names
    ]  # fmt: skip
    return all(found.count(joint) == len(names) // len(robot.joints) for joint in wanted)


def _is_libero(description: Description) -> bool:
    cameras = set(description.cameras)
    state = next((key for key in ("state", "observation.state") if key in description.columns), None)
    action = next((key for key in ("actions", "action") if key in description.columns), None)
    if state is None or action is None or cameras not in ({"image", "wrist_image"}, {"image", "image2"}):
        return False
    return (description.width(state), description.width(action)) == (8, 7)


def _named(name: str) -> KnownRobot:
    return next(robot for robot in KNOWN if robot.name == name)
