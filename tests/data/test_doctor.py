"""Each finding by a dataset made wrong in that way; a clean one gives none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.datasets.writer.lerobot_writer import LeRobotWriter
from pizero.data.doctor.examine import examine
from pizero.data.doctor.finding import Finding
from pizero.data.embodiments import Conversion, generic
from pizero.data.norm_stats import FieldStats, compute_norm_stats
from pizero.data.pipeline import Pipeline
from pizero.data.tokenizer import PaligemmaTokenizer
from pizero.workflows.norm_stats import dataset_norm_stats

FPS, HORIZON, EPISODES, FRAMES = 10, 8, 6, 40
NAMES = ["pan", "lift", "elbow", "gripper"]
CAMERAS = {"base_0_rgb": "top", "left_wrist_0_rgb": "wrist"}
ROBOT = generic(CAMERAS, state_dim=4, action_dim=4)
RELATIVE = generic(CAMERAS, state_dim=4, action_dim=4, relative_mask=(True, True, True))


@dataclass
class Episode:
    """state, action [F, 4], the last the gripper; images by camera [F, h, w, 3]."""

    state: NDArray[Any]
    action: NDArray[Any]
    images: dict[str, NDArray[np.uint8]]
    prompt: str


@dataclass
class Recording:
    episodes: list[Episode] = field(default_factory=list)


def clean() -> Recording:
    """Three joints that follow their targets a frame later, a gripper, a camera above and one on the hand."""
    rng = np.random.default_rng(0)
    found = Recording()
    for number in range(EPISODES):
        time = np.arange(FRAMES + 1) / FPS
        phase, speed = rng.uniform(0, 6, 3), rng.uniform(0.5, 1.5, 3)
        path = np.sin(time[:, None] * speed + phase)
        gripper = np.where((time > 1 + 0.1 * number) & (time < 3), 1.0, 0.0)
        state = np.column_stack([path, 0.08 * (1 - gripper)])[:FRAMES]
        action = np.column_stack([path[1:], gripper[1:]])
        images = {camera: np.stack([draw(camera, s) for s in state]) for camera in CAMERAS.values()}
        found.episodes.append(Episode(state, action, images, ("lift the cube", "push the cube")[number % 2]))
    return found


def draw(camera: str, state: NDArray[Any]) -> NDArray[np.uint8]:
    """From above a square moves over a plain table; on the hand all that is seen moves."""
    y, x = np.mgrid[0:24, 0:32]
    if camera == "top":
        image = np.full((24, 32, 3), (60, 70, 80), np.uint8)
        row, column = (round(12 + 8 * state[0]), round(16 + 10 * state[1]))
        image[max(row - 3, 0) : row + 3, max(column - 3, 0) : column + 3] = (220, 40, 40)
        return image
    level = 128 + 90 * np.sin(x / 4 + 6 * state[0]) * np.cos(y / 3 + 6 * state[1])
    return np.repeat(level[..., None], 3, axis=2).astype(np.uint8) // np.array([1, 2, 1], np.uint8)


def write(recording: Recording, root: Path) -> LeRobotDataset:
    with LeRobotWriter(
        root, fps=FPS, robot_type="test", state_names=NAMES, action_names=NAMES,
        cameras={"top": (24, 32), "wrist": (24, 32)}, image_format="png",
    ) as writer:  # fmt: skip
        for episode in recording.episodes:
            for step in range(len(episode.state)):
                images = {camera: frames[step] for camera, frames in episode.images.items()}
                writer.add_frame(episode.state[step], episode.action[step], images)
            writer.save_episode(episode.prompt)
    return LeRobotDataset(root)


def checks(findings: list[Finding]) -> set[str]:
    return {finding.check for finding in findings}


@pytest.fixture(scope="module")
def clean_dataset(tmp_path_factory: pytest.TempPathFactory) -> LeRobotDataset:
    return write(clean(), tmp_path_factory.mktemp("clean") / "data")


@pytest.mark.parametrize("embodiment", [ROBOT, RELATIVE])
def test_a_clean_dataset_gives_no_finding(clean_dataset: LeRobotDataset, embodiment: Any) -> None:
    assert examine(clean_dataset, embodiment, HORIZON).findings == []


# ---------------------------------------------------------------- recordings made wrong


def constant(recording: Recording) -> None:
    for episode in recording.episodes:
        episode.state[:, 2] = episode.action[:, 2] = 0.25


def rarely_moves(recording: Recording) -> None:
    for episode in recording.episodes:
        episode.state[:, 2] = episode.action[:, 2] = 0.25
    recording.episodes[0].action[3, 2] = 1.0


def outlier(recording: Recording) -> None:
    recording.episodes[2].state[7, 1] = 40.0


def late(recording: Recording) -> None:
    """The recorded action is the state of three frames ago, noisily."""
    rng = np.random.default_rng(1)
    for episode in recording.episodes:
        before = np.concatenate([episode.state[:1].repeat(3, axis=0), episode.state[:-3]])
        episode.action[:, :3] = before[:, :3] + rng.normal(0, 0.01, (len(before), 3))


def action_is_state(recording: Recording) -> None:
    for episode in recording.episodes:
        episode.action[:] = episode.state


def gripper_sign(recording: Recording) -> None:
    recording.episodes[4].action[:, 3] = 1 - recording.episodes[4].action[:, 3]


def gripper_range(recording: Recording) -> None:
    recording.episodes[1].action[:, 3] = recording.episodes[1].action[:, 3] * 50 + 50


def same_camera(recording: Recording) -> None:
    for episode in recording.episodes:
        episode.images["wrist"] = episode.images["top"]


def swapped_in_one(recording: Recording) -> None:
    images = recording.episodes[3].images
    images["top"], images["wrist"] = images["wrist"], images["top"]


def swapped_in_all(recording: Recording) -> None:
    for episode in recording.episodes:
        episode.images["top"], episode.images["wrist"] = episode.images["wrist"], episode.images["top"]


def black(recording: Recording) -> None:
    recording.episodes[5].images["wrist"][:] = 1


def frozen(recording: Recording) -> None:
    recording.episodes[0].images["top"][:] = recording.episodes[0].images["top"][0]


def one_prompt(recording: Recording) -> None:
    for episode in recording.episodes:
        episode.prompt = "lift the cube"


def no_prompt(recording: Recording) -> None:
    recording.episodes[1].prompt = " "


def short(recording: Recording) -> None:
    episode = recording.episodes[2]
    episode.state, episode.action = episode.state[:5], episode.action[:5]
    episode.images = {camera: frames[:5] for camera, frames in episode.images.items()}


WRONG: list[tuple[Callable[[Recording], None], str, str, str]] = [
    (constant, "near constant", "warning", "state elbow"),
    (rarely_moves, "rare motion", "warning", "action elbow"),
    (outlier, "outlier", "warning", "state lift"),
    (late, "late action", "error", "action pan, lift, elbow"),
    (action_is_state, "action is state", "error", "action pan, lift, elbow, gripper"),
    (gripper_sign, "gripper sign", "error", "action gripper, episode 4"),
    (gripper_range, "gripper range", "error", "action gripper, episode 1"),
    (same_camera, "one camera twice", "error", "cameras top, wrist"),
    (swapped_in_one, "swapped cameras", "error", "cameras top, wrist, episode 3"),
    (swapped_in_all, "swapped cameras", "warning", "cameras top, wrist"),
    (black, "black video", "error", "camera wrist, episode 5"),
    (frozen, "frozen video", "error", "camera top, episode 0"),
    (one_prompt, "one prompt", "note", "all episodes"),
    (no_prompt, "no prompt", "error", "episode 1"),
    (short, "short episode", "warning", "episode 2"),
]


@pytest.mark.parametrize(("change", "check", "severity", "where"), WRONG, ids=[w[0].__name__ for w in WRONG])
def test_each_fault_is_found(
    change: Callable[[Recording], None], check: str, severity: str, where: str, tmp_path: Path
) -> None:
    recording = clean()
    change(recording)
    findings = examine(write(recording, tmp_path / "data"), ROBOT, HORIZON).findings
    found = [finding for finding in findings if finding.check == check]
    assert [(finding.severity, finding.where) for finding in found][:1] == [(severity, where)], findings
    assert found[0].evidence
    assert found[0].advice


def test_relative_already(tmp_path: Path) -> None:
    recording = clean()
    for episode in recording.episodes:
        episode.action[:, :3] -= episode.state[:, :3]
    dataset = write(recording, tmp_path / "data")
    assert "relative already" in checks(examine(dataset, RELATIVE, HORIZON).findings)
    assert examine(dataset, ROBOT, HORIZON).findings == []  # as they are, they are fine


# ---------------------------------------------------------------- files made wrong


def edit_column(root: Path, key: str, change: Callable[[NDArray[Any]], NDArray[Any]]) -> LeRobotDataset:
    path = next((root / "data").rglob("*.parquet"))
    table = pq.read_table(path)
    column = table.column(key)
    values = np.asarray(column.to_pylist())
    changed = pa.array(change(values).tolist(), type=column.type)
    pq.write_table(table.set_column(table.column_names.index(key), key, changed), path)
    return LeRobotDataset(root)


def edit_json(path: Path, change: Callable[[Any], None]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_not_finite(tmp_path: Path) -> None:
    write(clean(), tmp_path / "data")

    def spoil(values: NDArray[Any]) -> NDArray[Any]:
        values[FRAMES + 7, 2] = np.nan
        return values

    dataset = edit_column(tmp_path / "data", "observation.state", spoil)
    findings = [f for f in examine(dataset, ROBOT, HORIZON).findings if f.check == "not finite"]
    assert [(f.severity, f.where) for f in findings] == [("error", "state elbow")]
    assert "frame 7 of episode 1" in findings[0].evidence


def test_wrong_frame_rate(tmp_path: Path) -> None:
    write(clean(), tmp_path / "data")
    dataset = edit_column(tmp_path / "data", "timestamp", lambda values: values / 3)
    findings = [f for f in examine(dataset, ROBOT, HORIZON).findings if f.check == "frame rate"]
    assert len(findings) == 1
    assert "fps 10, the frames come 30 per second" in findings[0].evidence


def test_gap(tmp_path: Path) -> None:
    write(clean(), tmp_path / "data")

    def drop(values: NDArray[Any]) -> NDArray[Any]:
        values[3 * FRAMES + 20 : 4 * FRAMES] += 0.4
        return values

    dataset = edit_column(tmp_path / "data", "timestamp", drop)
    findings = [f for f in examine(dataset, ROBOT, HORIZON).findings if f.check == "gap"]
    assert [f.where for f in findings] == ["episode 3"]
    assert "by 0.4 s" in findings[0].evidence


def test_stored_statistics(tmp_path: Path) -> None:
    write(clean(), tmp_path / "data")
    edit_json(tmp_path / "data" / "meta" / "stats.json", lambda v: v["action"]["mean"].__setitem__(1, 3.0))
    findings = examine(LeRobotDataset(tmp_path / "data"), ROBOT, HORIZON).findings
    assert [(f.check, f.where) for f in findings] == [("stored statistics", "action lift")]


def test_unreadable_images(tmp_path: Path) -> None:
    write(clean(), tmp_path / "data")
    path = next((tmp_path / "data" / "data").rglob("*.parquet"))
    table = pq.read_table(path)
    rows = table.column("observation.images.top").to_pylist()
    rows[0]["bytes"] = b"not a picture"
    index = table.column_names.index("observation.images.top")
    broken = pa.array(rows, type=table.schema.field(index).type)
    pq.write_table(table.set_column(index, table.schema.field(index), broken), path)
    findings = examine(LeRobotDataset(tmp_path / "data"), ROBOT, HORIZON).findings
    assert [(f.severity, f.check, f.where) for f in findings] == [("error", "unreadable", "camera top")]
    assert "episode 0" in findings[0].evidence


# ---------------------------------------------------------------- beside a checkpoint


def pipeline_of(dataset: LeRobotDataset, embodiment: Any, horizon: int = HORIZON, **changes: Any) -> Pipeline:
    stats = compute_norm_stats(
        dataset.column("observation.state"), dataset.column("action"), "zscore", relative=embodiment.relative,
        horizon=horizon, episode_lengths=dataset.episode_lengths.tolist(),
    )  # fmt: skip
    values: dict[str, Any] = {
        "embodiment": embodiment, "norm_stats": stats, "tokenizer": PaligemmaTokenizer.bytes(),
        "cameras": tuple(CAMERAS), "prompt_format": "pi0", "prompt_length": 16, "image_size": (28, 28),
        "state_dim": 8, "action_dim": 8,
    }  # fmt: skip
    return Pipeline(**(values | changes))


@pytest.mark.parametrize("embodiment", [ROBOT, RELATIVE])
def test_a_checkpoint_that_fits(clean_dataset: LeRobotDataset, embodiment: Any) -> None:
    pipeline = pipeline_of(clean_dataset, embodiment)
    assert examine(clean_dataset, embodiment, HORIZON, pipeline).findings == []


def test_a_checkpoint_of_another_robot(clean_dataset: LeRobotDataset, tmp_path: Path) -> None:
    pipeline = pipeline_of(clean_dataset, ROBOT)
    recording = clean()
    for episode in recording.episodes:
        episode.state *= 100.0  # other units
    findings = examine(write(recording, tmp_path / "units"), ROBOT, HORIZON, pipeline).findings
    assert ("warning", "statistics", "state pan, lift, elbow, gripper") in [
        (f.severity, f.check, f.where) for f in findings
    ]

    other = generic({"base_0_rgb": "front"}, state_dim=4, action_dim=4)
    findings = examine(clean_dataset, other, HORIZON, pipeline_of(clean_dataset, other)).findings
    assert checks(findings) == {"no camera", "unused camera"}

    wide = generic(CAMERAS, state_dim=3, action_dim=4)
    stats = compute_norm_stats(
        clean_dataset.column("observation.state")[:, :3], clean_dataset.column("action"), "zscore"
    )
    findings = examine(clean_dataset, ROBOT, HORIZON, pipeline_of(clean_dataset, wide, norm_stats=stats)).findings
    assert [(f.severity, f.check, f.where) for f in findings] == [("error", "dimensions", "state")]


def test_absolute_where_relative_was_expected(clean_dataset: LeRobotDataset) -> None:
    relative, absolute = pipeline_of(clean_dataset, RELATIVE, 2), pipeline_of(clean_dataset, ROBOT)
    for embodiment, stats, text in (
        (ROBOT, relative.norm_stats, "give an embodiment with its relative mask"),
        (RELATIVE, absolute.norm_stats, "take the relative mask away"),
    ):
        pipeline = pipeline_of(clean_dataset, embodiment, norm_stats=stats)
        findings = examine(clean_dataset, embodiment, 2, pipeline).findings
        assert [(f.severity, f.check) for f in findings] == [("error", "absolute or relative")], embodiment
        assert text in findings[0].advice


# ---------------------------------------------------------------- robots with conversions

DEGREES = (Conversion((0, 1, 2), robot=(0, 180), model=(0, 3.14159265)), Conversion((3,), "state", robot=(0, 0.08)))
IN_DEGREES = replace(RELATIVE, conversions=DEGREES)


def test_statistics_are_compared_in_the_models_numbers(clean_dataset: LeRobotDataset, tmp_path: Path) -> None:
    """A checkpoint in radians fits a robot in degrees; without its conversions it does not."""
    norm_stats = dataset_norm_stats(clean_dataset, RELATIVE, "zscore", HORIZON)
    recording = clean()
    for episode in recording.episodes:
        episode.state[:, :3] *= 180 / np.pi
        episode.action[:, :3] *= 180 / np.pi
    dataset = write(recording, tmp_path / "degrees")
    of_gripper = (*norm_stats.state.mean[:3], norm_stats.state.mean[3] / 0.08)
    deviations = (*norm_stats.state.std[:3], norm_stats.state.std[3] / 0.08)
    norm_stats = replace(norm_stats, state=FieldStats(np.array(of_gripper), np.array(deviations)))
    computed = dataset_norm_stats(dataset, IN_DEGREES, "zscore", HORIZON)
    np.testing.assert_allclose(computed.state.mean, norm_stats.state.mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(computed.actions.std, norm_stats.actions.std, rtol=1e-4)
    fits = pipeline_of(dataset, IN_DEGREES, norm_stats=norm_stats)
    assert examine(dataset, IN_DEGREES, HORIZON, fits).findings == []
    plain = pipeline_of(dataset, RELATIVE, norm_stats=norm_stats)
    assert checks(examine(dataset, RELATIVE, HORIZON, plain).findings) == {"statistics"}


def test_actions_in_other_units_than_the_state(tmp_path: Path) -> None:
    """The state in degrees, the action in radians the other way round: it can be told that the action is the state."""
    recording = clean()
    for episode in recording.episodes:
        episode.action[:, :3] = episode.state[:, :3]
        episode.state[:, :3] *= -180 / np.pi
    dataset = write(recording, tmp_path / "data")
    robot = replace(ROBOT, conversions=(Conversion((0, 1, 2), "state", robot=(0, -180), model=(0, 3.14159265)),))
    assert "action is state" in checks(examine(dataset, robot, HORIZON).findings)
    assert "action is state" not in checks(examine(dataset, ROBOT, HORIZON).findings)


def test_a_robot_with_more_dimensions_than_the_data(clean_dataset: LeRobotDataset) -> None:
    findings = examine(clean_dataset, replace(ROBOT, grippers=(6,)), HORIZON).findings
    assert [(f.severity, f.check) for f in findings] == [("error", "dimensions")]
    assert "action dimension 6 is a gripper, but there are 4" in findings[0].evidence


def test_stored_statistics_of_joined_columns(clean_dataset: LeRobotDataset, tmp_path: Path) -> None:
    shutil.copytree(clean_dataset.root, tmp_path / "data")
    path = tmp_path / "data" / "meta" / "stats.json"
    stored = json.loads(path.read_text())
    stored["action"]["mean"][1] += 5
    path.write_text(json.dumps(stored))
    robot = replace(ROBOT, state_dim=8, state_key=("observation.state", "action"))
    findings = examine(LeRobotDataset(tmp_path / "data"), robot, HORIZON).findings
    found = [finding for finding in findings if finding.check == "stored statistics"]
    assert [f.where for f in found] == ["action lift"]
    assert "for lift" in found[0].evidence


def test_a_default_prompt_is_a_prompt(clean_dataset: LeRobotDataset, tmp_path: Path) -> None:
    recording = clean()
    for episode in recording.episodes[:2]:
        episode.prompt = " "
    dataset = write(recording, tmp_path / "data")
    assert checks(examine(dataset, ROBOT, HORIZON).findings) == {"no prompt"}
    assert examine(dataset, replace(ROBOT, default_prompt="wait"), HORIZON).findings == []


def test_the_next_state_of_a_slow_robot_that_rests(tmp_path: Path) -> None:
    """As an action it is nearly the state of the same frame, and yet where the robot goes."""
    recording = clean()
    for number, episode in enumerate(recording.episodes):
        time = np.minimum(np.arange(FRAMES + 1), 3)[:, None]
        path = np.column_stack([number + 0.02 * time, number - 0.02 * time, 0.02 * time + number % 2, 0 * time])
        episode.state, episode.action = path[:-1], path[1:]
    dataset = write(recording, tmp_path / "data")
    assert not {"action is state", "state repeats action"} & checks(examine(dataset, ROBOT, HORIZON).findings)
