"""LeRobot v3.0 from older versions and from HDF5; LeRobot itself opens it: `make test-lerobot-peer`."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pizero.cli.main import run
from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.types import UserError
from pizero.workflows.convert_dataset import convert_dataset

GOLDEN = Path(__file__).parents[1] / "golden/lerobot/datasets"


@pytest.mark.parametrize("name", ["v21_png", "v21_av1"])
def test_version_21_to_30(name: str, tmp_path: Path) -> None:
    result = convert_dataset(GOLDEN / name, tmp_path / "d")
    assert (result.episodes, result.frames) == (4, 161)
    before, after = LeRobotDataset(GOLDEN / name), LeRobotDataset(tmp_path / "d")
    frames = np.arange(161)
    for key in ("observation.state", "action", "timestamp", "index"):
        np.testing.assert_array_equal(after.column(key), before.column(key))
    assert after.prompts(frames) == before.prompts(frames)
    for camera in before.cameras:
        np.testing.assert_array_equal(after.images(camera, frames), before.images(camera, frames))
    assert after.features == before.features
    actions = before.column("action").astype(np.float64)
    np.testing.assert_allclose(after.stats["action"]["mean"], actions.mean(0), atol=1e-6)
    np.testing.assert_allclose(after.stats["action"]["std"], actions.std(0), atol=1e-6)
    assert "q99" in after.stats["action"]
    assert len(list((tmp_path / "d" / "data").rglob("*.parquet"))) == 1
    for video in (GOLDEN / name).rglob("*.mp4"):  # copied, not encoded again
        assert any(video.read_bytes() == copy.read_bytes() for copy in (tmp_path / "d").rglob("*.mp4"))


def test_what_info_json_leaves_out_or_says_wrongly_is_written_right(tmp_path: Path) -> None:
    source = shutil.copytree(GOLDEN / "v21_png", tmp_path / "s")
    path = source / "meta/info.json"
    info = json.loads(path.read_text())
    fps, features = info["fps"], json.loads(path.read_text())["features"]
    info |= {"fps": None}
    info["features"]["action"]["shape"] = [99]
    path.write_text("\ufeff" + json.dumps(info), encoding="utf-8")
    convert_dataset(source, tmp_path / "d")
    written = json.loads((tmp_path / "d/meta/info.json").read_text())
    assert written["fps"] == fps
    assert written["features"] == features
    assert LeRobotDataset(tmp_path / "d").notes == []


def test_one_dimension_becomes_a_number_in_place_of_a_list_of_one(tmp_path: Path) -> None:
    """As LeRobot writes and expects it."""
    source = shutil.copytree(GOLDEN / "v21_png", tmp_path / "s")
    for path in (source / "data").rglob("*.parquet"):
        table = pq.read_table(path)
        place = table.schema.get_field_index("action")
        narrow = pa.array([row[:1] for row in table["action"].to_pylist()], pa.list_(pa.float32()))
        pq.write_table(table.set_column(place, "action", narrow), path)
    info = json.loads((source / "meta/info.json").read_text())
    info["features"]["action"] |= {"shape": [1], "names": ["gripper.pos"]}
    (source / "meta/info.json").write_text(json.dumps(info))
    convert_dataset(source, tmp_path / "d")
    (path,) = (tmp_path / "d/data").rglob("*.parquet")
    assert pq.read_schema(path).field("action").type == pa.float32()
    before, after = LeRobotDataset(source).column("action"), LeRobotDataset(tmp_path / "d").column("action")
    assert after.shape == (161, 1)
    np.testing.assert_array_equal(after, before)


def test_files_of_subtasks_are_kept(tmp_path: Path) -> None:
    source = shutil.copytree(GOLDEN / "v21_png", tmp_path / "s")
    text = "episode;from;to;text;by\n0;0;1.5;lift it;me\n3;0;;put it down;you\n"
    (source / "meta/subtasks.csv").write_text(text)
    pq.write_table(pa.table({"subtask_index": [0], "subtask": ["lift it"]}), source / "meta/subtasks.parquet")
    convert_dataset(source, tmp_path / "d")
    for name in ("subtasks.csv", "subtasks.parquet"):
        assert (tmp_path / "d/meta" / name).read_bytes() == (source / "meta" / name).read_bytes()
    (source / "data/chunk-000/episode_000001.parquet").unlink()  # the later ones have other numbers then
    convert_dataset(source, tmp_path / "e", skip_bad_episodes=True)
    written = (tmp_path / "e/meta/subtasks.csv").read_text()
    assert written == "episode,from,to,text,by\n0,0,1.5,lift it,me\n2,0,,put it down,you\n"


def test_a_broken_source_leaves_nothing(tmp_path: Path) -> None:
    source = shutil.copytree(GOLDEN / "v21_av1", tmp_path / "s")
    (source / "videos/chunk-000/observation.images.top/episode_000002.mp4").unlink()
    with pytest.raises(UserError, match=r"episode_000002\.mp4"):
        convert_dataset(source, tmp_path / "d")
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    with pytest.raises(UserError, match=r"is a LeRobot v3\.0 dataset already"):
        convert_dataset(GOLDEN / "v30_png", tmp_path / "d")
    with pytest.raises(UserError, match="remove --fps and --prompt"):
        convert_dataset(GOLDEN / "v21_png", tmp_path / "d", fps=10)


def test_episodes_with_faults_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A video that is another episode's, which nothing could tell any more afterwards, and one that is missing."""
    source = shutil.copytree(GOLDEN / "v21_av1", tmp_path / "s")
    videos = source / "videos/chunk-000/observation.images.top"
    (videos / "episode_000000.mp4").unlink()
    shutil.copy(videos / "episode_000003.mp4", videos / "episode_000002.mp4")
    assert run("convert-dataset", [str(source), str(tmp_path / "d")]) == 2
    refused = capsys.readouterr().err
    assert "episode_000000.mp4, episode 0: the file is missing" in refused
    assert "(and 1 more: 2); `pizero check` shows all; --skip-bad-episodes leaves them out" in refused
    assert run("convert-dataset", [str(source), str(tmp_path / "d"), "--skip-bad-episodes"]) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "skipped 2 of 4 episodes (missing file: 0; frames of the video: 2)" in told
    before, after = LeRobotDataset(GOLDEN / "v21_av1", episodes=[1, 3]), LeRobotDataset(tmp_path / "d")
    assert after.episodes.tolist() == [0, 1]
    assert after.column("index").ravel().tolist() == list(range(79))
    assert after.column("episode_index").ravel().tolist() == [0] * 38 + [1] * 41
    frames = np.arange(79)
    assert after.prompts(frames) == before.prompts(frames)
    np.testing.assert_array_equal(after.column("action"), before.column("action"))
    np.testing.assert_array_equal(after.images("top", frames), before.images("top", frames))
    assert json.loads((tmp_path / "d/meta/info.json").read_text())["total_frames"] == 79


def test_an_image_that_cannot_be_decoded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = shutil.copytree(GOLDEN / "v21_png", tmp_path / "s")
    path = source / "data/chunk-000/episode_000001.parquet"
    table = pq.read_table(path)
    cells = table["observation.images.top"].to_pylist()
    cells[5]["bytes"] = b"no picture"
    index = table.column_names.index("observation.images.top")
    cells = pa.array(cells, table.schema.field(index).type)
    pq.write_table(table.set_column(index, table.schema.field(index), cells), path)
    assert run("convert-dataset", [str(source), str(tmp_path / "d")]) == 2
    assert "episode 1: frame 5 of 'observation.images.top' cannot be decoded" in capsys.readouterr().err
    assert not (tmp_path / "d").exists()
    assert run("convert-dataset", [str(source), str(tmp_path / "d"), "--skip-bad-episodes"]) == 0
    assert LeRobotDataset(tmp_path / "d").episode_lengths.tolist() == [40, 42, 41]


def jpeg(image: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=95)
    return np.frombuffer(buffer.getvalue() + b"\0" * 9, np.uint8)  # padded to one length, as ACT's writers do


@pytest.fixture
def arrays() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    lengths = (7, 12)
    return {
        "state": [rng.normal(size=(n, 5)).astype(np.float32) for n in lengths],
        "action": [rng.normal(size=(n, 3)).astype(np.float32) for n in lengths],
        "image": [np.full((n, 32, 48, 3), (40, 90, 200), np.uint8) for n in lengths],
    }


def test_robomimic(arrays: dict[str, Any], tmp_path: Path) -> None:
    with h5py.File(tmp_path / "demo.hdf5", "w") as file:
        for number in (1, 0):  # read in the order of their numbers
            demo = file.create_group(f"data/demo_{number}")
            demo["actions"] = arrays["action"][number].astype(np.float64)
            demo["obs/robot0_eef_pos"] = arrays["state"][number][:, :3]
            demo["obs/robot0_gripper_qpos"] = arrays["state"][number][:, 3:]
            demo["obs/object"] = np.zeros((len(arrays["action"][number]), 10))
            demo["obs/agentview_image"] = arrays["image"][number]
    result = convert_dataset(tmp_path / "demo.hdf5", tmp_path / "d", fps=20, prompt="lift", image_format="png")
    assert (result.episodes, result.frames) == (2, 19)
    dataset = LeRobotDataset(tmp_path / "d")
    assert dataset.cameras == ("agentview_image",)
    np.testing.assert_array_equal(dataset.column("action"), np.concatenate(arrays["action"]))
    np.testing.assert_array_equal(dataset.column("observation.state"), np.concatenate(arrays["state"]))
    np.testing.assert_array_equal(dataset.images("agentview_image", np.arange(19)), np.concatenate(arrays["image"]))
    assert (dataset.fps, dataset.tasks, dataset.robot_type) == (20, ["lift"], "robomimic")


@pytest.mark.parametrize("compressed", [False, True])
def test_act(arrays: dict[str, Any], compressed: bool, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    for number in range(2):
        with h5py.File(tmp_path / "s" / f"episode_{number}.hdf5", "w") as file:
            file["action"], file["observations/qpos"] = arrays["action"][number], arrays["state"][number]
            images = arrays["image"][number]
            file["observations/images/cam_high"] = np.stack([jpeg(i) for i in images]) if compressed else images
    command = [
        "convert-dataset",
        str(tmp_path / "s"),
        str(tmp_path / "d"),
        "--fps",
        "50",
        "--prompt",
        "open the drawer",
    ]
    assert run(command[0], [*command[1:], "--image-format", "png"]) == 0
    dataset = LeRobotDataset(tmp_path / "d")
    assert dataset.episode_lengths.tolist() == [7, 12]
    np.testing.assert_array_equal(dataset.column("action"), np.concatenate(arrays["action"]))
    images = dataset.images("cam_high", np.arange(19))
    assert np.abs(images.astype(int) - np.concatenate(arrays["image"])).max() <= (3 if compressed else 0)


def test_mistakes_with_hdf5(arrays: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "episode_0.hdf5"
    with h5py.File(path, "w") as file:
        file["action"], file["observations/qpos"] = arrays["action"][0], arrays["state"][1]
        file["observations/images/cam_high"] = arrays["image"][0]
    (tmp_path / "bad.hdf5").write_bytes(b"nothing")
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["something"] = np.zeros(3)
    given = ["--fps", "50", "--prompt", "x"]
    for arguments, text in (
        ([str(path)], "give --fps and --prompt"),
        ([str(path), *given], "12 frames of state, but 7 actions"),
        ([str(tmp_path / "bad.hdf5"), *given], "cannot be read as HDF5"),
        ([str(tmp_path / "other.hdf5"), *given], "has no action"),
    ):
        assert run("convert-dataset", [arguments[0], str(tmp_path / "d"), *arguments[1:]]) == 2
        shown = capsys.readouterr().err
        assert text in shown
        assert "Traceback" not in shown
        assert not (tmp_path / "d").exists()
    assert not [found for found in tmp_path.iterdir() if found.name.startswith(".d")]
