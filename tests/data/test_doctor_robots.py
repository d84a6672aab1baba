"""Robots as people record them, with the columns and names of real recordings: no error where there is none."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.datasets.writer.lerobot_writer import LeRobotWriter
from pizero.data.doctor.examine import examine
from pizero.data.doctor.finding import Finding
from pizero.data.embodiments import Embodiment

FPS, EPISODES, FRAMES = 10, 6, 90
Numbers = NDArray[np.float64]

SO101 = [f"{joint}.pos" for joint in ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll")]
SO101_GRIPPER = [*SO101, "gripper.pos"]
PIPER = [*(f"joint_{number}.pos" for number in range(1, 7)), "gripper.pos"]
ARMS = [f"{side}.joint_{number}.pos" for side in ("left", "right") for number in range(1, 8)]
HANDS = [f"{side}_hand.joint_{number}.pos" for side in ("left", "right") for number in range(1, 11)]
ISAAC = ["shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper"]


@dataclass(frozen=True)
class Robot:
    """record(rng, number) -> state [F, ds], action [F, da] of an episode. names: as in info.json, nested or None."""

    state_names: Any
    action_names: Any
    record: Callable[[np.random.Generator, int], tuple[Numbers, Numbers]]
    state_key: str = "observation.state"
    action_key: str = "action"


def paths(rng: np.random.Generator, dims: int, size: float, frames: int = FRAMES) -> Numbers:
    """Smooth movements [F, dims], each of its own frequency and phase."""
    time = np.arange(frames)[:, None] / FPS
    frequency, phase = rng.uniform(0.7, 2.0, dims), rng.uniform(0, 6, dims)
    return size * (np.sin(time * frequency + phase) + 0.3 * np.sin(2.3 * time * frequency))


def opening(rng: np.random.Generator, frames: int = FRAMES) -> Numbers:
    """A gripper [F] that a person closes as far as the thing is wide, another one each time, and opens again."""
    first, last = sorted(rng.integers(10, frames - 10, 2).tolist())
    wide, narrow = rng.uniform(30, 90), rng.uniform(2, 25)
    corners = [0, first, first + 6, last + 7, last + 14, frames]
    return np.interp(np.arange(frames), corners, [wide, wide, narrow, narrow, wide, wide]) + rng.normal(0, 0.2, frames)


def follows(command: Numbers, rng: np.random.Generator, frames: int = 2, noise: float = 0.2) -> Numbers:
    before = np.concatenate([np.repeat(command[:1], frames, axis=0), command[:-frames]])
    return before + rng.normal(0, noise, before.shape)


def so101(rng: np.random.Generator, number: int) -> tuple[Numbers, Numbers]:
    """Led by hand, -100 to 100; the gripper stops where the thing is, while the leader's goes on."""
    action = np.column_stack([paths(rng, 5, 40), opening(rng)])
    state = follows(action, rng)
    state[:, 5] = np.maximum(state[:, 5], rng.uniform(5, 20))
    return state, action


def piper(rng: np.random.Generator, number: int) -> tuple[Numbers, Numbers]:
    """Led by an SO-101, which has a joint less: the Piper's fourth is parked."""
    _, action = so101(rng, number)
    moving = follows(action, rng)
    return np.column_stack([moving[:, :3], rng.normal(0, 0.1, FRAMES), moving[:, 3:]]), action


def cr5(rng: np.random.Generator, number: int) -> tuple[Numbers, Numbers]:
    """Speeds of the joints, and a gripper that the state lacks; two joints are parked."""
    position = paths(rng, 6, 0.5, FRAMES + 1) * np.array([1, 1, 1, 1, 1e-3, 1e-4])
    speed = FPS * np.diff(position, axis=0)
    state = np.concatenate([position[:1], position[:-2]])  # what it does comes a frame after what it is told
    gripper = (np.arange(FRAMES) > 20 + 5 * number).astype(float)
    return state + rng.normal(0, 1e-4, state.shape), np.column_stack([speed, gripper])


def two_arms_with_hands(rng: np.random.Generator, number: int) -> tuple[Numbers, Numbers]:
    """In degrees and steps of a motor; the left side is parked, and the hands tell their command as their state."""
    right = np.column_stack([paths(rng, 7, 10)])
    left = np.array([0.6, 1.9, 43, 2.9, 152, -0.8, -4.7])
    hands = np.column_stack([np.zeros((FRAMES, 10)), 120 + paths(rng, 10, 40).round()])
    hands[:, [14, 17]] = 5, 250
    action = np.column_stack([np.tile(left, (FRAMES, 1)), right, hands])
    state = np.column_stack([left + rng.normal(0, 0.02, (FRAMES, 7)), follows(right, rng), hands])
    return state, action


def goals(rng: np.random.Generator, number: int) -> tuple[Numbers, Numbers]:
    """The way that is left to a goal and the speed, and the speed to have: no dimension is another's position."""
    speed = paths(rng, 2, 0.4)
    way = 2 - np.cumsum(speed, axis=0) / FPS
    return np.column_stack([way, np.concatenate([speed[:1], speed[:-1]])]), speed


def pusht(rng: np.random.Generator, number: int) -> tuple[Numbers, Numbers]:
    action = 250 + paths(rng, 2, 90)
    return follows(action, rng, 1), action


def isaac(rng: np.random.Generator, number: int) -> tuple[Numbers, Numbers]:
    """Positions and speeds as state, joint targets in radians as actions."""
    action = np.column_stack([paths(rng, 5, 0.7), opening(rng) / 100])
    state = follows(action, rng, noise=1e-3)
    return np.column_stack([state, np.gradient(state, axis=0) * FPS]), action


def two_poses(rng: np.random.Generator, number: int) -> tuple[Numbers, Numbers]:
    """A script moves the shoulder to either of two poses at once, another pair in two episodes."""
    pose = np.where((np.arange(FRAMES) // 30) % 2, 1.0, 0.2) + (0.9 if number in (2, 4) else 0.0)
    action = np.column_stack([pose, paths(rng, 2, 0.7)])
    return follows(action, rng, noise=1e-3), action


ROBOTS: dict[str, Robot] = {
    "SO-101": Robot(SO101_GRIPPER, SO101_GRIPPER, so101),
    "Piper led by an SO-101": Robot(PIPER, SO101_GRIPPER, piper),
    "CR5": Robot(
        [f"joint_{n}" for n in range(6)], [*(f"joint_{n}_vel" for n in range(6)), "gripper"], cr5
    ),
    "CR5 without names": Robot(None, None, cr5),
    "two arms with hands": Robot([*ARMS, *HANDS], [*ARMS, *HANDS], two_arms_with_hands, "state", "actions"),
    "PushT": Robot({"motors": ["motor_0", "motor_1"]}, {"motors": ["motor_0", "motor_1"]}, pusht),
    "goals": Robot(["goal_rel_x", "goal_rel_y", "vx", "vy"], ["vx", "vy"], goals),
    "goals without names": Robot(None, None, goals),
    "Isaac": Robot({"axes": [*(f"{n}_pos" for n in ISAAC), *(f"{n}_vel" for n in ISAAC)]}, [ISAAC], isaac),
    "SO-101 without names": Robot(None, None, so101),
    "two poses": Robot(["shoulder.pos", "elbow.pos", "wrist.pos"], ["shoulder", "elbow", "wrist"], two_poses),
}  # fmt: skip


def record(
    root: Path, robot: Robot, change: Callable[[int, Numbers, Numbers], None] = lambda *_: None
) -> LeRobotDataset:
    """A dataset without cameras. change(number, state, action): in place, of each episode."""
    rng = np.random.default_rng(3)
    episodes = [robot.record(rng, number) for number in range(EPISODES)]
    for number, (state, action) in enumerate(episodes):
        change(number, state, action)
    widths = [values.shape[1] for values in episodes[0]]
    with LeRobotWriter(
        root, fps=FPS, robot_type="test", state_names=list(map(str, range(widths[0]))),
        action_names=list(map(str, range(widths[1]))), cameras={}, image_format="png",
    ) as writer:  # fmt: skip
        for state, action in episodes:
            for step in range(len(state)):
                writer.add_frame(state[step].astype(np.float32), action[step].astype(np.float32), {})
            writer.save_episode("put the banana on the plate")
    keys = {"observation.state": (robot.state_key, robot.state_names), "action": (robot.action_key, robot.action_names)}
    path = root / "meta/info.json"
    info = json.loads(path.read_text())
    for old, (new, names) in keys.items():
        info["features"][new] = info["features"].pop(old) | {"names": names}
    path.write_text(json.dumps(info))
    for file in (root / "data").rglob("*.parquet"):
        table = pq.read_table(file)
        renamed = [keys.get(name, (name, None))[0] for name in table.column_names]
        pq.write_table(table.rename_columns(renamed), file)
    (root / "meta/stats.json").unlink()
    return LeRobotDataset(root)


def findings_of(dataset: LeRobotDataset, robot: Robot, **described: Any) -> list[Finding]:
    keys = {"state_key": robot.state_key, "action_key": robot.action_key}
    findings = examine(dataset, Embodiment("robot", {}, **keys, **described), 10).findings
    return [finding for finding in findings if finding.check not in ("no camera", "one prompt")]


@pytest.mark.parametrize("name", ROBOTS)
def test_no_false_error(name: str, tmp_path: Path) -> None:
    robot = ROBOTS[name]
    findings = findings_of(record(tmp_path / "data", robot), robot)
    assert [finding for finding in findings if finding.severity == "error"] == []
    motion = {"gripper range", "gripper sign", "late action", "action is state", "relative already"}
    assert not motion & {finding.check for finding in findings}, findings


def test_what_is_parked_is_told_by_name_in_one_line(tmp_path: Path) -> None:
    robot = ROBOTS["two arms with hands"]
    findings = findings_of(record(tmp_path / "data", robot), robot)
    of_state = {f.check: f for f in findings if f.where.startswith("state ")}
    assert of_state["near constant"].where.startswith("state left_hand.joint_1.pos, left_hand.joint_2.pos")
    assert of_state["near constant"].where.endswith("and 6 more")
    assert of_state["hardly moves"].where.startswith("state left.joint_1.pos, left.joint_2.pos")
    rest = [*range(7, 14), 24, 25, 26, 27, 29, 30, 32, 33]
    for check in ("near constant", "hardly moves"):
        assert f"state_dims = {rest} in the robot file" in of_state[check].advice
    many = [f for f in findings if f.check == "many dimensions"]
    assert [f.where for f in many] == ["state", "action"]
    assert "34 dimensions" in many[0].evidence
    chosen = findings_of(
        LeRobotDataset(tmp_path / "data"), robot,
        state_dims=("right.joint_1.pos", "right.joint_2.pos"), action_dims=(7, 8), relative_mask=(True, True),
    )  # fmt: skip
    assert chosen == []


def test_a_joint_of_a_milliradian(tmp_path: Path) -> None:
    """Smooth, and far above 1e-4: beside joints that move by a radian it is parked."""

    def park(number: int, state: Numbers, action: Numbers) -> None:
        state[:, 2], action[:, 2] = 0.5e-3 * state[:, 2], 0.5e-3 * action[:, 2]

    robot = ROBOTS["Isaac"]
    findings = findings_of(record(tmp_path / "data", robot, park), robot)
    parked = [(f.severity, f.where) for f in findings if f.check == "hardly moves"]
    assert ("warning", "state elbow_flex_pos") in parked
    assert ("warning", "action elbow_flex") in parked


def test_a_dataset_in_small_units_is_not_parked(tmp_path: Path) -> None:
    def shrink(number: int, state: Numbers, action: Numbers) -> None:
        state *= 1e-5
        action *= 1e-5

    robot = ROBOTS["Isaac"]
    checks = {f.check for f in findings_of(record(tmp_path / "data", robot, shrink), robot)}
    assert "small units" in checks
    assert not {"near constant", "hardly moves"} & checks


# ---------------------------------------------------------------- which state an action goes with


def wrong_states(findings: Sequence[Finding]) -> list[tuple[str, str]]:
    return [(f.where, f.advice) for f in findings if f.check == "state of another joint" and f.severity == "error"]


def test_a_mask_takes_another_joints_state_away(tmp_path: Path) -> None:
    robot = ROBOTS["Piper led by an SO-101"]
    dataset = record(tmp_path / "data", robot)
    wrong = wrong_states(findings_of(dataset, robot, relative_mask=(True,) * 6))
    assert wrong == [(
        "action wrist_flex.pos, wrist_roll.pos, gripper.pos",
        "write into the robot file: state_indices = [0, 1, 2, 4, 5, 6]",
    )]  # fmt: skip
    right = findings_of(dataset, robot, relative_mask=(True,) * 6, state_indices=(0, 1, 2, 4, 5, 6))
    assert not [f for f in right if f.severity == "error" or f.check == "relative is wider"]
    (note,) = [f for f in findings_of(dataset, robot) if f.check == "state in another order"]
    assert note.severity == "note"
    assert "state_indices = [0, 1, 2, 4, 5, 6]" in note.advice


def turned(dataset_names: bool) -> Robot:
    """The state has the joints last first, after two sensors."""
    names = ["x", "y", *reversed(ISAAC)] if dataset_names else None

    def record_turned(rng: np.random.Generator, number: int) -> tuple[Numbers, Numbers]:
        state, action = isaac(rng, number)
        return np.column_stack([paths(rng, 2, 0.7), state[:, 5::-1]]), action

    return Robot(names, [ISAAC] if dataset_names else None, record_turned)


@pytest.mark.parametrize("by_name", [True, False], ids=["by name", "by movement"])
def test_states_in_another_order(by_name: bool, tmp_path: Path) -> None:
    robot = turned(by_name)
    wrong = wrong_states(findings_of(record(tmp_path / "data", robot), robot, relative_mask=(True,) * 5))
    assert [advice for _, advice in wrong] == ["write into the robot file: state_indices = [7, 6, 5, 4, 3]"]
    assert wrong[0][0].startswith("action shoulder_pan, " if by_name else "action[0, 1, 2")


def test_one_name_twice_is_told_with_its_number(tmp_path: Path) -> None:
    robot = replace(ROBOTS["Piper led by an SO-101"], action_names=["joint"] * 6)
    dataset = record(tmp_path / "data", robot)
    (wrong,) = wrong_states(findings_of(dataset, robot, relative_mask=(True,) * 6))
    assert wrong[0] == "action joint (3), joint (4), joint (5)"


def test_a_speed_is_not_relative_to_a_position(tmp_path: Path) -> None:
    robot = ROBOTS["CR5"]
    findings = findings_of(record(tmp_path / "data", robot), robot, relative_mask=(True, True, False))
    (found,) = [f for f in findings if f.check == "another quantity than the state"]
    assert (found.severity, found.where) == ("error", "action joint_0_vel, joint_1_vel")
    assert "relative_mask = [false, false, false]" in found.advice


def test_relative_to_a_state_in_other_units(tmp_path: Path) -> None:
    robot = ROBOTS["Isaac"]

    def degrees(number: int, state: Numbers, action: Numbers) -> None:
        state[:, :5] *= 180 / np.pi

    dataset = record(tmp_path / "data", robot, degrees)
    (found,) = [f for f in findings_of(dataset, robot, relative_mask=(True,) * 5) if f.check == "units of the state"]
    assert "shoulder_pan moves by 0.017" in found.evidence
    assert not [f for f in findings_of(dataset, robot) if f.severity == "error"]


# ---------------------------------------------------------------- what is wrong indeed


def test_a_late_action_of_named_joints_in_other_units(tmp_path: Path) -> None:
    def late(number: int, state: Numbers, action: Numbers) -> None:
        action[:, :5] = np.concatenate([np.repeat(state[:1, :5], 3, axis=0), state[:-3, :5]]) * 180 / np.pi

    robot = ROBOTS["Isaac"]
    (found,) = [f for f in findings_of(record(tmp_path / "data", robot, late), robot) if f.check == "late action"]
    assert (found.severity, found.where) == ("error", f"action {', '.join(ISAAC[:5])}")
    assert "of 3 frames before" in found.evidence


def test_a_continuous_gripper_turned_about_in_one_episode(tmp_path: Path) -> None:
    def turn(number: int, state: Numbers, action: Numbers) -> None:
        if number == 4:
            action[:, 5] = 100 - action[:, 5]

    robot = ROBOTS["SO-101"]
    found = [f for f in findings_of(record(tmp_path / "data", robot, turn), robot) if f.check == "gripper sign"]
    assert [(f.severity, f.where) for f in found] == [("error", "action gripper.pos, episode 4")]
    assert "in a copy" in found[0].advice


@pytest.mark.parametrize("names", [["j1", "j2", "j3"], None], ids=["numbered", "without names"])
def test_two_poses_of_what_may_be_no_gripper(names: list[str] | None, tmp_path: Path) -> None:
    robot = replace(ROBOTS["two poses"], state_names=names, action_names=names)
    found = [f for f in findings_of(record(tmp_path / "data", robot), robot) if f.check.startswith("gripper")]
    assert [f.severity for f in found] in ([], ["warning"])


def test_without_any_camera_the_numbers_are_examined(tmp_path: Path) -> None:
    dataset = record(tmp_path / "data", ROBOTS["SO-101"])
    dataset.column("observation.state")[3, 1] = np.nan
    findings = examine(dataset, Embodiment("robot", {}), 10).findings
    assert {(f.check, f.where) for f in findings if f.severity == "error"} == {
        ("no camera", "all episodes"), ("not finite", "state shoulder_lift.pos"),
    }  # fmt: skip
