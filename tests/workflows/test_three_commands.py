"""From the folder of an SO-101's recording to a checked and served policy: three commands, nothing written by hand."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from pizero.checkpoints.files import remote
from pizero.checkpoints.load import load_policy
from pizero.cli.main import run
from pizero.configs.presets import get_preset
from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.datasets.writer.lerobot_writer import LeRobotWriter
from pizero.data.embodiments import get_embodiment
from pizero.serving.client import PolicyClient
from pizero.types import RobotDict, UserError
from pizero.workflows.choose_preset import choose_preset
from pizero.workflows.replay import recorded_observation

SO = [f"{name}.pos" for name in ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")]
TINY = ["--steps", "2", "--batch-size", "4", "--draws", "1", "--warmup-steps", "1", "--threads", "1"]


def record(root: Path, cameras: tuple[str, ...] = ("front", "wrist")) -> Path:
    """Two episodes of 16 frames in degrees, the gripper from 0 to 100, as LeRobot 0.4 and later write them."""
    rng = np.random.default_rng(0)
    with LeRobotWriter(
        root, fps=10, robot_type="so101_follower", state_names=SO, action_names=SO,
        cameras=dict.fromkeys(cameras, (24, 32)), image_format="png",
    ) as writer:  # fmt: skip
        for phase in (0.0, 1.0):
            for step in range(32):
                states = [np.array([90 * np.sin(phase + (step + at) / 5 + dim) for dim in range(6)]) for at in (0, 1)]
                for state in states:
                    state[5] = 50 + state[5] / 2
                images = {name: rng.integers(0, 255, (24, 32, 3), np.uint8) for name in cameras}
                writer.add_frame(states[0], states[1], images)
            writer.save_episode("put the cube into the box")
    return root


def older(root: Path) -> Path:
    """The same as LeRobot v2.1 has it: a file for each episode, descriptions as lines."""
    (table,) = [pq.read_table(path) for path in (root / "data").rglob("*.parquet")]
    lines: list[str] = []
    for index in (0, 1):
        rows = table.take([row for row, own in enumerate(table["episode_index"].to_pylist()) if own == index])
        pq.write_table(rows, root / f"data/chunk-000/episode_{index:06d}.parquet")
        lines.append(json.dumps({"episode_index": index, "tasks": ["put the cube into the box"], "length": len(rows)}))
    (root / "data/chunk-000/file-000.parquet").unlink()
    for path in (root / "meta").rglob("*.parquet"):
        path.unlink()
    (root / "meta/episodes.jsonl").write_text("\n".join(lines) + "\n")
    (root / "meta/tasks.jsonl").write_text('{"task_index": 0, "task": "put the cube into the box"}\n')
    info = json.loads((root / "meta/info.json").read_text())
    info |= {"codebase_version": "v2.1", "total_chunks": 1, "chunks_size": 1000}
    del info["data_path"], info["video_path"]
    (root / "meta/info.json").write_text(json.dumps(info))
    return root


def served(output: Path, observation: RobotDict) -> NDArray[np.float32]:
    """What `pizero serve` answers."""
    code = "from pizero.cli.main import main; main()"
    command = [sys.executable, "-c", code, "serve", str(output), "--log", "json", "--port", "0", "--num-steps", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        port = next(event["port"] for event in map(json.loads, process.stderr) if event["event"] == "ready")
        with PolicyClient(f"ws://127.0.0.1:{port}") as client:
            return client.infer(observation)["actions"]
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.parametrize("version", ["v3.0", "v2.1"])
def test_train_check_serve(version: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, output = record(tmp_path / "data"), tmp_path / "run"
    if version == "v2.1":
        older(data)
    assert LeRobotDataset(data).num_frames == 64
    assert run("train", [str(data), "--output", str(output), *TINY]) == 0
    shown = " ".join(capsys.readouterr().err.split())
    for text in (
        "robot so101_follower: SO-101, by robot_type 'so101_follower' and the names of its joints",
        "cameras front as base_0_rgb, wrist as left_wrist_0_rgb", "relative action shoulder_pan.pos, shoulder_lift.pos",
        "gripper action gripper.pos", "prompt 'put the cube into the box'", "model small π0 from scratch",
    ):  # fmt: skip
        assert text in shown, text
    policy = load_policy(output)
    assert policy.pipeline.embodiment.relative_mask == (True, True, True, True, True, False)
    assert policy.pipeline.embodiment.grippers == (5,)
    assert run("check", [str(data), "--checkpoint", str(output)]) == 0
    shown = capsys.readouterr().err
    assert "mean absolute error by dimension, robot units: shoulder_pan.pos" in shown
    assert "yes   checkpoint its stored example is reproduced" in shown
    assert "verdict it will not evaluate as it trained: actions" in shown  # after two steps
    if version == "v3.0":
        actions = served(output, recorded_observation(LeRobotDataset(data), policy.pipeline, 3))
        assert actions.shape == (10, 6)
        assert np.isfinite(actions).all()
        return
    broken = next((output / "checkpoints").iterdir()) / "norm_stats.json"
    values = json.loads(broken.read_text())
    deviations = values["norm_stats"]["actions"]["std"]
    values["norm_stats"]["actions"]["std"] = [3 * deviation for deviation in deviations]
    broken.write_text(json.dumps(values))
    assert run("check", [str(data), "--checkpoint", str(output)]) == 1
    shown = capsys.readouterr().err
    assert "no    checkpoint the checkpoint's stored example no longer reproduces" in shown
    assert "verdict it will not evaluate as it trained: checkpoint" in shown


def test_the_robot_file_is_what_training_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, path = record(tmp_path / "data"), tmp_path / "robot.toml"
    assert run("robot", [str(data), "--output", str(path)]) == 0
    shown = capsys.readouterr()
    assert "robot so101_follower: SO-101" in " ".join(shown.err.split())
    assert get_embodiment(str(path)).default_prompt == "put the cube into the box"
    assert run("robot", [str(data), "--output", str(path)]) == 2
    assert "exists; give another name" in capsys.readouterr().err
    assert run("robot", [str(data)]) == 0
    assert capsys.readouterr().out == path.read_text()


def test_without_a_preset_the_checkpoint_chooses(tmp_path: Path) -> None:
    data, output = record(tmp_path / "data", ("front",)), tmp_path / "run"
    assert choose_preset(None, None, None, None)[0] == get_preset("small")
    assert choose_preset(None, "pi05", None, output)[0] == get_preset("small", "pi05")
    for name, model in (
        ("pi05", "pi05"), ("lerobot/pi05_base", "pi05"), ("gs://openpi-assets/checkpoints/pi0_base", "pi0"),
    ):  # fmt: skip
        preset, told = choose_preset(None, None, name, None)
        assert preset == get_preset("full", model)  # type: ignore[arg-type]
        assert told.startswith("preset: full (fine-tuning a checkpoint of a released size), 20,000 steps")
    assert choose_preset("tabletop", None, None, None) == (get_preset("tabletop"), "")
    preset, told = choose_preset(None, None, "pi05", None, data)  # the robot of the dataset has one of its own
    assert preset == dataclasses.replace(get_preset("so101", "pi05"), embodiment="own")
    assert told.startswith("preset: so101 (fine-tuning for SO-101; --preset full for any robot's settings)")
    assert choose_preset(None, "pi05", "pi05", None, tmp_path / "mixture.toml")[0] == get_preset("full", "pi05")
    assert choose_preset(None, None, "pi05", None, tmp_path)[0] == get_preset("full", "pi05")  # no dataset
    assert run("train", [str(data), "--model", "pi05", "--output", str(output), *TINY]) == 0
    again = ["--steps", "3", *TINY[2:]]
    assert run("train", [str(data), "--output", str(output), "--resume", *again]) == 0  # a π0.5 without saying so
    other = tmp_path / "other"
    assert run("train", [str(data), "--checkpoint", str(output), "--output", str(other), *TINY]) == 0
    assert load_policy(other).model.config.adaptive  # type: ignore[union-attr]


def test_a_short_name_is_the_checkpoint_of_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[str] = []
    monkeypatch.setattr(remote, "_from_hub", lambda repo, *_: (asked.append(repo), tmp_path)[1])
    assert remote.local_folder("pi05") == tmp_path
    assert remote.local_folder("pi0") == tmp_path
    assert asked == ["lerobot/pi05_base", "lerobot/pi0_base"]
    (tmp_path / "pi05").mkdir()
    monkeypatch.chdir(tmp_path)
    assert remote.local_folder("pi05") == Path("pi05")  # a folder of that name comes first
    assert len(asked) == 2


def test_a_robot_that_fits_no_scheme(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """40 dimensions in parts, no gripper, no camera on a hand, two tasks in one episode."""
    root, rng = tmp_path / "data", np.random.default_rng(0)
    names = [f"joint_{number}" for number in range(20)]
    with LeRobotWriter(
        root, fps=10, robot_type="", state_names=[f"{name}_{side}" for side in "ab" for name in names],
        action_names=[f"{name}_{side}" for side in "ab" for name in names], cameras={"above": (24, 24)},
        image_format="png",
    ) as writer:  # fmt: skip
        for task in ("open the drawer", "close the drawer"):
            for _ in range(30):
                writer.add_frame(rng.normal(size=40), rng.normal(size=40), {"above": np.zeros((24, 24, 3), np.uint8)})
            writer.save_episode(task)
    (path,) = (root / "data").rglob("*.parquet")
    table = pq.read_table(path)
    halves: dict[str, pa.ChunkedArray | pa.Array] = {
        name: pa.array([row[part] for row in table[key].to_pylist()], pa.list_(pa.float32()))
        for key in ("observation.state", "action")
        for name, part in ((f"{key}.a", slice(0, 20)), (f"{key}.b", slice(20, 40)))
    }
    tasks = pa.array([int(row % 30 >= 15) for row in range(len(table))], pa.int64())
    kept = {name: table[name] for name in table.column_names if name not in ("observation.state", "action")}
    pq.write_table(pa.table({**kept, **halves, "task_index": tasks}), path)
    info = json.loads((root / "meta/info.json").read_text())
    for key in ("observation.state", "action"):
        feature = info["features"].pop(key)
        for side, part in (("a", feature["names"][:20]), ("b", feature["names"][20:])):
            info["features"][f"{key}.{side}"] = {"dtype": "float32", "shape": [20], "names": part}
    (root / "meta/info.json").write_text(json.dumps(info))
    assert run("train", [str(root), "--output", str(tmp_path / "run"), *TINY]) == 0
    shown = " ".join(capsys.readouterr().err.split())
    assert "state observation.state.a + observation.state.b (40)" in shown
    assert "question 40 state dimensions, the released models have room for 32: which matter?" in shown
    policy = load_policy(tmp_path / "run")
    assert (policy.pipeline.robot_state_dim, policy.pipeline.robot_action_dim) == (40, 40)
    dataset = LeRobotDataset(root)
    prompts = [recorded_observation(dataset, policy.pipeline, frame)["prompt"] for frame in (3, 20, 33, 50)]
    assert prompts == ["open the drawer", "close the drawer"] * 2
    with pytest.raises(UserError, match=r"room for 32: choose some with action_dims in a robot file"):
        dataclasses.replace(policy.pipeline, state_dim=32, action_dim=32)
    del info["features"]["observation.state.a"], info["features"]["observation.state.b"]
    (root / "meta/info.json").write_text(json.dumps(info))
    capsys.readouterr()
    assert run("train", [str(root), "--output", str(tmp_path / "none")]) == 2
    assert "A policy needs to know where its robot is" in capsys.readouterr().err.strip().splitlines()[-1]
