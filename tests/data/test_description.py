"""`meta/` as people have it: read where it can be, with a note of what was assumed; else refused in one line."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.types import UserError
from pizero.workflows.check import CheckConfig, check

GOLDEN = Path(__file__).parents[1] / "golden/lerobot/datasets"
PNG, H264, PNG_V21, AV1_V21 = (GOLDEN / name for name in ("v30_png", "v30_h264_multifile", "v21_png", "v21_av1"))
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


@pytest.fixture
def png(tmp_path: Path) -> Path:
    return shutil.copytree(PNG, tmp_path / "png")


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return shutil.copytree(PNG_V21, tmp_path / "old")


@pytest.fixture
def h264(tmp_path: Path) -> Path:
    return shutil.copytree(H264, tmp_path / "h264")


@pytest.fixture
def av1(tmp_path: Path) -> Path:
    return shutil.copytree(AV1_V21, tmp_path / "av1")


def change_info(root: Path, **change: Any) -> dict[str, Any]:
    """`None` takes the key away."""
    path = root / "meta/info.json"
    info = {key: value for key, value in (json.loads(path.read_text()) | change).items() if value is not None}
    path.write_text(json.dumps(info))
    return info


def change_lines(path: Path, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
    lines = [change(json.loads(line)) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines if line is not None))


def change_table(path: Path, columns: Mapping[str, pa.Array | None]) -> None:
    """`None` takes the column away."""
    table = pq.read_table(path)
    for name, values in columns.items():
        place = table.column_names.index(name)
        table = table.remove_column(place)
        if values is not None:
            table = table.add_column(place, name, values)
    pq.write_table(table, path)


EPISODES = "meta/episodes/chunk-000/file-000.parquet"
DATA = "data/chunk-000/file-000.parquet"


def same_numbers(root: Path, other: Path = PNG, *, episodes: list[int] | None = None) -> LeRobotDataset:
    dataset, expected = LeRobotDataset(root), LeRobotDataset(other, episodes=episodes)
    for key in ("observation.state", "action"):
        np.testing.assert_array_equal(dataset.column(key), expected.column(key))
    assert dataset.prompts(range(dataset.num_frames)) == expected.prompts(range(expected.num_frames))
    assert dataset.episode_lengths.tolist() == expected.episode_lengths.tolist()
    return dataset


def refused(root: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        LeRobotDataset(root)
    assert "\n" not in str(caught.value)


def test_a_whole_dataset_has_no_notes() -> None:
    assert [LeRobotDataset(root).notes for root in (PNG, H264, PNG_V21, AV1_V21)] == [[]] * 4


# ---------------------------------------------------------------- info.json


@pytest.mark.parametrize(
    ("said", "fps", "note"),
    [
        ("10", 10.0, "gives fps as text, '10': read as 10"),
        (12.5, 12.5, None),
        (None, 10.0, "says no fps above 0; the time stamps are 10 a second, which is used"),
        ("ten", 10.0, "the time stamps are 10 a second"),
        (0, 10.0, "the time stamps are 10 a second"),
        (-10, 10.0, "the time stamps are 10 a second"),
        (float("nan"), 10.0, "the time stamps are 10 a second"),
        (float("inf"), 10.0, "the time stamps are 10 a second"),
        ([10], 10.0, "the time stamps are 10 a second"),
        (True, 10.0, "the time stamps are 10 a second"),
    ],
)
def test_frames_a_second(png: Path, said: Any, fps: float, note: str | None) -> None:
    change_info(png, fps=said)
    dataset = LeRobotDataset(png)
    assert dataset.fps == fps
    assert note is None or [note in text for text in dataset.notes] == [True]


@pytest.mark.parametrize(("rate", "found"), [(29.97, 29.97), (18.5, 18.5), (30.0, 30.0), (1 / 3, 0.3333)])
def test_frames_a_second_by_time_stamps(png: Path, rate: float, found: float) -> None:
    times = [np.arange(length) / rate for length in (40, 38, 42, 41)]
    change_table(png / DATA, {"timestamp": pa.array(np.concatenate(times).astype(np.float32))})
    change_info(png, fps=None)
    assert LeRobotDataset(png).fps == found


@pytest.mark.parametrize(("unit", "name"), [(1e3, "milliseconds"), (1e6, "microseconds"), (1e9, "nanoseconds")])
def test_time_stamps_in_other_units(png: Path, unit: float, name: str) -> None:
    times = np.concatenate([np.arange(length) / 10 for length in (40, 38, 42, 41)]) + 1.7e6
    change_table(png / DATA, {"timestamp": pa.array(np.rint(times * unit).astype(np.int64))})
    note = f"they are in {name}"
    dataset = LeRobotDataset(png)
    assert len(dataset.notes) == 1
    assert note in dataset.notes[0]
    assert [f["check"] for f in check(png, CheckConfig(horizon=3))["findings"] if f["severity"] == "error"] == []
    change_info(png, fps=None)
    dataset = LeRobotDataset(png)
    assert dataset.fps == 10
    assert f"the time stamps, in {name}, are 10 a second" in dataset.notes[0]


def test_time_stamps_that_are_infinite(png: Path) -> None:
    times = np.concatenate([np.arange(length) / 10 for length in (40, 38, 42, 41)])
    times[50:52] = np.inf
    change_table(png / DATA, {"timestamp": pa.array(times)})
    assert "timestamp is missing in 2 frames of 1 of 4 episodes" in same_numbers(png).notes[0]


def test_frames_a_second_that_nothing_tells(png: Path) -> None:
    change_table(png / DATA, {"timestamp": pa.array(np.random.default_rng(0).random(161).cumsum().astype(np.float32))})
    info = change_info(png, fps=None)
    refused(
        png, r"info\.json says no fps above 0, and the time stamps are not regular; write the frames a second there"
    )
    info["features"]["action"]["fps"] = 25.0
    change_info(png, features=info["features"])
    dataset = LeRobotDataset(png)
    assert dataset.fps == 25.0
    assert "its columns say 25 a second" in dataset.notes[0]


@pytest.mark.parametrize(
    ("said", "note"),
    [
        ("v2.1", "says codebase_version 'v2.1', but the files are laid out as in v3.0"),
        (None, "says codebase_version None, but the files are laid out as in v3.0"),
        ("v3.1", "says codebase_version 'v3.1', but the files are laid out as in v3.0"),
        (3.0, None),
        ("3.0.0", None),
    ],
)
def test_versions(png: Path, said: Any, note: str | None) -> None:
    change_info(png, codebase_version=said)
    dataset = same_numbers(png)
    assert (len(dataset.notes) == 1 and note in dataset.notes[0]) if note else dataset.notes == []


def test_an_old_dataset_that_calls_itself_new(old: Path) -> None:
    change_info(old, codebase_version="v3.0", data_path=None, video_path=None)
    assert "says codebase_version 'v3.0', but the files are laid out as in v2.1" in same_numbers(old).notes[0]


def test_features_without_what_they_should_have(png: Path) -> None:
    info = change_info(png, robot_type=None, splits=3, chunks_size=0)
    features = info["features"]
    features["action"] = {"shape": "three", "names": 7}
    features["observation.state"] |= {"shape": None, "dtype": "float32"}
    features["timestamp"] = None
    change_info(png, features=features)
    dataset = same_numbers(png)
    assert dataset.robot_type == "unknown"
    assert dataset.features["action"] == {"dtype": "float32", "shape": [], "names": 7}
    assert dataset.notes == [
        "meta/info.json has no dtype for 'action' (float32), 'timestamp' (float32): what is in brackets is assumed"
    ]


@pytest.mark.parametrize(
    "template",
    [
        "data/chunk-{chunk_index:03d}/episode_{episode_index:06d}.parquet",
        "data/chunk-{episode_chunk:03d}/episode_{file_index:06}.parquet",
        "data\\chunk-{chunk_index:03d}\\episode_{episode_index:06d}.parquet",
        "data/{episode_index}/{chunk_index:02d}.parquet",
        "{episode_index:06d}.parquet",
    ],
)
def test_path_templates(old: Path, template: str) -> None:
    for index in range(4):
        names = {"chunk_index": 0, "episode_chunk": 0, "episode_index": index, "file_index": index}
        target = old / template.replace("\\", "/").format(**names)
        target.parent.mkdir(parents=True, exist_ok=True)
        (old / f"data/chunk-000/episode_{index:06d}.parquet").rename(target)
    change_info(old, data_path=template)
    assert same_numbers(old).notes == []


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{root}/other/{{episode_index:06d}}.parquet", "which is no file of the dataset"),
        ("../other/{{episode_index:06d}}.parquet", "which is no file of the dataset"),
        ("data/../../other/{{episode_index:06d}}.parquet", "which is no file of the dataset"),
        (".", "which is no file of the dataset"),
        ("data/{{nothing}}.parquet", "{nothing} is not known"),
        ("data/{{episode_index", "cannot be read"),
        ("data/{{episode_index:099999999d}}.parquet", "with at most 9 digits"),
        ("data/{{episode_index:{{file_index}}d}}.parquet", "with at most 9 digits"),
    ],
)
def test_path_templates_that_are_refused(old: Path, template: str, text: str) -> None:
    """Also where there are files: none outside of the dataset is opened."""
    (old.parent / "other").mkdir()
    for path in (old / "data/chunk-000").iterdir():
        shutil.copy(path, old.parent / "other" / path.name.removeprefix("episode_"))
    change_info(old, data_path=template.format(root=old.parent))
    refused(old, re.escape(text))


def test_videos_outside_of_the_dataset_are_refused(av1: Path) -> None:
    change_info(av1, video_path="../{video_key}/{episode_index:06d}.mp4")
    refused(av1, r"the path '\.\./.* is no file of the dataset")
    key = "../../../../outside"
    info = change_info(av1, video_path=None)
    change_info(av1, features={**info["features"], key: info["features"]["observation.images.top"]})
    refused(av1, "is no file of the dataset")


def test_links_out_of_the_dataset_are_followed(old: Path) -> None:
    """The cache of Hugging Face is made of them."""
    shutil.move(old / "data", old.parent / "blobs")
    (old / "data" / "chunk-000").mkdir(parents=True)
    for path in (old.parent / "blobs" / "chunk-000").iterdir():
        (old / "data" / "chunk-000" / path.name).symlink_to(path)
    assert same_numbers(old).notes == []


def test_path_templates_of_videos(av1: Path) -> None:
    for path in sorted(av1.rglob("*.mp4")):
        target = av1 / "films" / path.parent.name / path.name.removeprefix("episode_")
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    change_info(av1, video_path="films/{video_key}/{episode_index:06d}.mp4")
    np.testing.assert_array_equal(
        LeRobotDataset(av1).images("top", [100]), LeRobotDataset(AV1_V21).images("top", [100])
    )
    change_info(av1, video_path="films/observation.images.top/{episode_index:06d}.mp4")
    refused(av1, r"video_path .* has no \{video_key\}, but there are 2 cameras with video")


def test_files_elsewhere(av1: Path) -> None:
    """A chunk size that is not the one of the folders, and a template that has grown old."""
    for kind in ("data", "videos"):
        (av1 / kind / "chunk-000").rename(av1 / kind / "chunk-007")
    change_info(av1, data_path="old/{episode_index}.parquet")
    dataset = same_numbers(av1)
    assert len(dataset.notes) == 2
    assert (
        "4 files are not where data_path of meta/info.json puts them (old/{episode_index}.parquet)" in dataset.notes[0]
    )
    assert "8 files are not where video_path" in dataset.notes[1]
    for camera in ("top", "wrist"):
        expected = LeRobotDataset(AV1_V21).images(camera, [130])
        np.testing.assert_array_equal(dataset.images(camera, [130]), expected)


def test_small_chunks(old: Path) -> None:
    """Two episodes in a folder."""
    for index in range(4):
        target = old / f"data/chunk-{index // 2:03d}/episode_{index:06d}.parquet"
        target.parent.mkdir(exist_ok=True)
        (old / f"data/chunk-000/episode_{index:06d}.parquet").rename(target)
    change_info(old, chunks_size=2)
    assert same_numbers(old).notes == []


@pytest.mark.parametrize("mark", ["utf-8-sig", "utf-16"])
def test_byte_order_marks(old: Path, mark: str) -> None:
    for name in ("info.json", "episodes.jsonl", "tasks.jsonl"):
        path = old / "meta" / name
        path.write_text(path.read_text(), encoding=mark)
    assert same_numbers(old).notes == []


def test_a_task_with_a_line_separator(old: Path) -> None:
    """Characters at which Python splits lines, but JSON lines are not."""
    lines = ['{"task_index": 0, "task": "push\u2028it"}', '{"task_index": 1, "task": "turn\x85it"}']
    (old / "meta/tasks.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert LeRobotDataset(old).tasks == ["push\u2028it", "turn\x85it"]


@pytest.mark.parametrize("name", ["meta/info.json", "meta/episodes.jsonl", "meta/tasks.jsonl"])
def test_pointers_of_git_lfs(old: Path, name: str) -> None:
    (old / name).write_text(POINTER)
    refused(old, rf"{Path(name).name} is a Git LFS pointer: run `git lfs pull`")


@pytest.mark.parametrize("name", [EPISODES, "meta/tasks.parquet", DATA])
def test_pointers_of_git_lfs_in_tables(png: Path, name: str) -> None:
    (png / name).write_text(POINTER)
    refused(png, r"\.parquet.* is a Git LFS pointer.* `git lfs pull`")


# ---------------------------------------------------------------- episodes


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ({"total_frames": 200}, "says total_frames 200, but meta/ lists 161 (the recording was interrupted, or"),
        ({"total_frames": 100}, "says total_frames 100, but meta/ lists 161: what is there is used"),
        (
            {"total_episodes": 8, "total_frames": 300},
            "total_episodes 8 and total_frames 300, but meta/ lists 4 and 161",
        ),
        ({"total_episodes": "3"}, "says total_episodes 3, but meta/ lists 4: what is there is used"),
    ],
)
def test_totals_that_are_not_so(png: Path, change: dict[str, Any], note: str) -> None:
    change_info(png, **change)
    (found,) = same_numbers(png).notes
    assert note in found


def test_a_folder_of_another_name(h264: Path) -> None:
    """As uploads of single folders leave it: info.json says videos/, the files lie in video/."""
    before = LeRobotDataset(h264).images("top", [0])
    (h264 / "videos").rename(h264 / "video")
    dataset = LeRobotDataset(h264)
    assert "files are not where video_path of meta/info.json puts them" in dataset.notes[0]
    np.testing.assert_array_equal(dataset.images("top", [0]), before)


def test_float_and_null_places(h264: Path) -> None:
    whole = LeRobotDataset(H264)
    names = ["data/chunk_index", "data/file_index", "videos/observation.images.top/file_index"]
    table = pq.read_table(h264 / EPISODES)
    change_table(
        h264 / EPISODES, {name: table[name].cast(pa.float64()) for name in [*names, "episode_index", "length"]}
    )
    assert same_numbers(h264, H264).notes == []
    files = table["data/file_index"].to_pylist()
    assert files == [0, 0, 1, 1]
    change_table(h264 / EPISODES, {"data/file_index": pa.array([0, None, 1, float("nan")])})
    dataset = same_numbers(h264, H264)
    assert dataset.notes == ["meta/episodes does not say the data file of episodes 1, 3: it is taken to be the last"]
    np.testing.assert_array_equal(dataset.images("top", [150]), whole.images("top", [150]))


def test_an_episode_without_a_number(png: Path) -> None:
    change_table(png / EPISODES, {"episode_index": pa.array([0, 1, None, 3])})
    refused(png, r"meta/episodes: row 2 has no episode_index")


def test_lengths_that_are_not_said(png: Path) -> None:
    change_table(png / EPISODES, {"length": None})
    assert same_numbers(png).notes == []  # from dataset_from_index and dataset_to_index
    change_table(png / EPISODES, {"dataset_to_index": None})
    assert same_numbers(png).notes == ["meta/ does not say the length of episodes 0, 1, 2, 3: the rows are counted"]


def test_starts_of_videos_that_are_not_said(h264: Path) -> None:
    name = "videos/observation.images.top/from_timestamp"
    starts = pq.read_table(h264 / EPISODES)[name].to_pylist()
    assert starts[1] > 0
    change_table(h264 / EPISODES, {name: pa.array([starts[0], None, starts[2], None], pa.float64())})
    dataset = same_numbers(h264, H264)
    assert dataset.notes == ["meta/episodes does not say where the video of episodes 1, 3 starts: after the one before"]
    np.testing.assert_array_equal(dataset.images("top", [50, 150]), LeRobotDataset(H264).images("top", [50, 150]))


def test_empty_episodes(old: Path) -> None:
    path = old / "data/chunk-000/episode_000002.parquet"
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    change_lines(old / "meta/episodes.jsonl", lambda line: line | ({"length": 0} if line["episode_index"] == 2 else {}))
    change_info(old, total_episodes=3, total_frames=119)
    dataset = same_numbers(old, PNG_V21, episodes=[0, 1, 3])
    assert dataset.notes == ["episode 2 is empty and skipped"]
    change_lines(old / "meta/episodes.jsonl", lambda line: line | {"length": 0})
    refused(old, "no episode has a frame")


def test_a_recording_that_was_interrupted(old: Path) -> None:
    path = old / "meta/episodes.jsonl"
    path.write_text(path.read_text().rstrip()[:-20])
    dataset = same_numbers(old, PNG_V21, episodes=[0, 1, 2])
    assert "its last line is torn and skipped" in dataset.notes[0]
    assert "total_episodes 4 and total_frames 161, but meta/ lists 3 and 120" in dataset.notes[1]


def test_a_damaged_table_of_several(png: Path) -> None:
    table = pq.read_table(png / EPISODES)
    pq.write_table(table.slice(0, 3), png / EPISODES)
    (png / "meta/episodes/chunk-000/file-001.parquet").write_bytes(b"PAR1 the recording was killed")
    dataset = same_numbers(png, episodes=[0, 1, 2])
    assert "file-001.parquet cannot be read as a parquet file" in dataset.notes[0]
    assert "its episodes are skipped" in dataset.notes[0]


def test_no_list_of_episodes(old: Path) -> None:
    (old / "meta/episodes.jsonl").unlink()
    refused(old, r"episodes\.jsonl is missing; copy or download the dataset again")


def test_an_episode_listed_twice(old: Path) -> None:
    path = old / "meta/episodes.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], lines[1].replace("38", "30"), *lines[1:]]))
    assert same_numbers(old, PNG_V21).notes == ["meta/ lists 1 episodes twice: the later entry counts"]


@pytest.mark.parametrize("numbers", [[1, 2, 3, 4], [0, 3, 7, 1004]])
def test_episode_numbers_from_one_or_with_gaps(old: Path, numbers: list[int]) -> None:
    for index, number in reversed(list(enumerate(numbers))):
        path = old / f"data/chunk-000/episode_{index:06d}.parquet"
        ids = pa.array([number] * len(pq.read_table(path)))
        change_table(path, {"episode_index": ids})
        target = old / f"data/chunk-{number // 1000:03d}/episode_{number:06d}.parquet"
        target.parent.mkdir(exist_ok=True)
        path.rename(target)
    change_lines(old / "meta/episodes.jsonl", lambda line: line | {"episode_index": numbers[line["episode_index"]]})
    dataset = same_numbers(old, PNG_V21)
    assert dataset.episodes.tolist() == numbers
    assert dataset.notes == []
    with pytest.raises(UserError, match=f"has no episode 900; it has 4, from {numbers[0]} to {numbers[3]}"):
        LeRobotDataset(old, episodes=[900])


# ---------------------------------------------------------------- tasks


@pytest.mark.parametrize("ids", [[1, 2], [5, 3], [0, 1_000_000]])
@pytest.mark.parametrize("root", [PNG, PNG_V21], ids=["v30", "v21"])
def test_task_numbers_from_one_or_with_gaps(tmp_path: Path, root: Path, ids: list[int]) -> None:
    copy = shutil.copytree(root, tmp_path / "d")
    for path in (copy / "data").rglob("*.parquet"):
        said = pq.read_table(path)["task_index"].to_pylist()
        change_table(path, {"task_index": pa.array([ids[index] for index in said])})
    if root == PNG:
        change_table(copy / "meta/tasks.parquet", {"task_index": pa.array(ids)})
    else:
        change_lines(copy / "meta/tasks.jsonl", lambda line: line | {"task_index": ids[line["task_index"]]})
    dataset = same_numbers(copy, root)
    assert dataset.notes == []
    assert set(dataset.task_index.tolist()) == {0, 1}
    assert dataset.tasks == [text for _, text in sorted(zip(ids, LeRobotDataset(root).tasks, strict=True))]


def test_tasks_that_are_not_numbered(png: Path) -> None:
    change_table(png / "meta/tasks.parquet", {"task_index": None})
    (note,) = same_numbers(png).notes
    assert "tasks.parquet does not number its tasks: their order counts" in note


def test_two_texts_for_one_task_number(old: Path) -> None:
    path = old / "meta/tasks.jsonl"
    path.write_text(path.read_text() + '\n{"task_index": 0, "task": "something else"}\n')
    assert "tasks.jsonl gives task 0 several texts: the last counts, 'something else'" in LeRobotDataset(old).notes[0]
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], lines[0]]))
    assert same_numbers(old).notes == []


def test_tasks_without_a_text(old: Path) -> None:
    (old / "meta/tasks.jsonl").write_text('{"task_index": 0, "task": null}\n{"task_index": 1, "instruction": "lift"}\n')
    assert LeRobotDataset(old).tasks == ["", "lift"]


def test_task_numbers_that_are_floats(png: Path) -> None:
    change_table(png / "meta/tasks.parquet", {"task_index": pa.array([0.0, 1.0])})
    assert same_numbers(png).notes == []


# ---------------------------------------------------------------- cameras, statistics


def test_a_camera_without_files(h264: Path) -> None:
    shutil.rmtree(h264 / "videos/observation.images.wrist")
    dataset = same_numbers(h264, H264)
    assert dataset.cameras == ("top",)
    assert dataset.notes == [
        "camera 'wrist' is not used: meta/info.json has it, but no file of it is there, the first would be "
        "videos/observation.images.wrist/chunk-000/file-000.mp4"
    ]
    with pytest.raises(UserError, match=r"camera 'wrist' cannot be used: meta/info\.json has it, but no file of it is"):
        dataset.images("wrist", [0])
    np.testing.assert_array_equal(dataset.images("top", [3]), LeRobotDataset(H264).images("top", [3]))


def test_a_camera_without_a_column(png: Path) -> None:
    change_table(png / DATA, {"observation.images.wrist": None})
    dataset = same_numbers(png)
    assert dataset.cameras == ("top",)
    assert "has no column 'observation.images.wrist'" in dataset.notes[0]


def test_a_camera_that_the_episodes_do_not_list(h264: Path) -> None:
    names = [
        name for name in pq.read_schema(h264 / EPISODES).names if name.startswith("videos/observation.images.wrist")
    ]
    change_table(h264 / EPISODES, dict.fromkeys(names))
    assert same_numbers(h264, H264).cameras == ("top",)


@pytest.mark.parametrize("text", ["{", "[1]", '{"action": 3}', '{"action": {"mean": "x", "std": null}}', "\ufeff{}"])
def test_statistics_that_cannot_be_read(png: Path, text: str) -> None:
    (png / "meta/stats.json").write_text(text)
    assert same_numbers(png).stats == {}


# ---------------------------------------------------------------- anything else

VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.sampled_from([10**3, 10**18, -(10**18), 10**400, 1e300]),
    st.lists(st.one_of(st.none(), st.integers(-2, 4), st.text(max_size=2)), max_size=3), st.floats(),
    st.sampled_from(["v2.1", "v3.0", "x" * 300, "{episode_index}", "{", "{}", "{0}", "video", "image", "string", "10"]),
    st.text(max_size=4),
    st.dictionaries(st.text(max_size=2), st.one_of(st.none(), st.lists(st.text(max_size=2))), max_size=2),
)  # fmt: skip


def places(value: Any) -> list[tuple[Any, ...]]:
    """The ways to everything inside of a JSON value."""
    if isinstance(value, dict):
        return [(key, *rest) for key, inner in value.items() for rest in [(), *places(inner)]]
    if isinstance(value, list):
        return [(index, *rest) for index, inner in enumerate(value) for rest in [(), *places(inner)]]
    return []


def changed(value: Any, draw: Callable[[st.SearchStrategy[Any]], Any]) -> Any:
    """One thing inside of the value is another, or is not there."""
    way = draw(st.sampled_from(places(value)))
    inner = value
    for step in way[:-1]:
        inner = inner[step]
    if isinstance(inner, dict) and draw(st.booleans()):
        del inner[way[-1]]
    else:
        inner[way[-1]] = draw(VALUES)
    return value


def used_or_refused(root: Path) -> UserError | None:
    try:
        dataset = LeRobotDataset(root)
        dataset.prompts(range(dataset.num_frames))
        for key in ("observation.state", "action"):
            assert dataset.column(key).shape[0] == dataset.num_frames
            dataset.names(key)
        for camera in dataset.cameras:
            dataset.images(camera, [0])
    except UserError as error:
        return error
    return None


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_is_written_in_meta(data: st.DataObject) -> None:
    """It is read, or refused in one line."""
    name = data.draw(st.sampled_from(["info.json", "episodes.jsonl", "tasks.jsonl"]))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        shutil.copytree(PNG_V21 / "meta", root / "meta")
        (root / "data").symlink_to(PNG_V21 / "data")
        path = root / "meta" / name
        whole = path.read_text()
        values = [json.loads(text) for text in (whole.splitlines() if name.endswith("l") else [whole])]
        for _ in range(data.draw(st.integers(1, 3))):
            if places(values):
                values = changed(values, data.draw)
        path.write_text("\n".join(map(json.dumps, values)))
        error = used_or_refused(root)
    assert error is None or "\n" not in str(error)
