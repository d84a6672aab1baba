"""Decoded frames are the same from memory, from the file and from the video, and a file is never trusted blindly."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

from pizero.data import frames as frames_module
from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.datasets.meta.layout import BadEpisodeError
from pizero.data.frames import FrameCache
from pizero.data.images import resize_with_pad
from pizero.files import partial_path
from pizero.types import UserError

DATASETS = Path(__file__).parents[1] / "golden/lerobot/datasets"
SIZE = (20, 16)
POSITIONS = np.array([7, 0, 150, 7, 41])


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PIZERO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "frames"


@pytest.mark.parametrize("name", ["v30_png", "v30_h264_multifile"])
def test_every_store_gives_the_same_frames(name: str, cache: Path) -> None:
    dataset = LeRobotDataset(DATASETS / name)
    for camera in dataset.cameras:
        expected = resize_with_pad(dataset.images(camera, POSITIONS), *SIZE)
        for store in ("memory", "disk", "decode"):
            frames = FrameCache(dataset, [camera], SIZE, store=store)
            assert_array_equal(frames.images(camera, POSITIONS), expected)
            assert_array_equal(frames.images(camera, POSITIONS[:4].reshape(2, 2)), expected[:4].reshape(2, 2, *SIZE, 3))


def test_a_file_is_made_once_and_mapped(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = LeRobotDataset(DATASETS / "v30_png")
    calls: list[tuple[int, int]] = []
    FrameCache(dataset, ["top"], SIZE, store="disk", on_progress=lambda *done: calls.append(done))
    assert calls[-1] == (dataset.num_frames, dataset.num_frames)
    assert sorted(done for done, _ in calls) == [done for done, _ in calls]
    expected = resize_with_pad(dataset.images("top", POSITIONS), *SIZE)
    monkeypatch.setattr(LeRobotDataset, "images", None)  # nothing is decoded any more
    again = FrameCache(dataset, ["top"], SIZE, store="disk")
    assert_array_equal(again.images("top", POSITIONS), expected)
    assert len(pickle.dumps(again)) < len(pickle.dumps(dataset)) + 10_000
    assert_array_equal(pickle.loads(pickle.dumps(again)).images("top", POSITIONS), expected)
    [folder] = cache.iterdir()
    assert {path.name for path in folder.iterdir()} == {"top.npy", "top.crc32", "about.json"}


def test_another_content_is_another_file(cache: Path, tmp_path: Path) -> None:
    root = shutil.copytree(DATASETS / "v30_h264_multifile", tmp_path / "data")
    FrameCache(LeRobotDataset(root), ["top"], SIZE, store="disk")
    FrameCache(LeRobotDataset(root, episodes=[1, 0]), ["top"], SIZE, store="disk")
    FrameCache(LeRobotDataset(root), ["top"], SIZE, store="disk", convention="lerobot")
    FrameCache(LeRobotDataset(root), ["top"], (16, 16), store="disk")
    video = next(path for path in root.rglob("*.mp4") if "top" in str(path))
    os.utime(video, ns=(1, 1))
    FrameCache(LeRobotDataset(root), ["top"], SIZE, store="disk")
    assert len(list(cache.iterdir())) == 5


def test_a_damaged_file_is_told(cache: Path) -> None:
    dataset = LeRobotDataset(DATASETS / "v30_png")
    FrameCache(dataset, ["top"], SIZE, store="disk")
    [path] = cache.rglob("top.npy")
    with path.open("r+b") as file:
        file.seek(-dataset.num_frames * SIZE[0] * SIZE[1] * 3 + 41 * SIZE[0] * SIZE[1] * 3, os.SEEK_END)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    frames = FrameCache(dataset, ["top"], SIZE, store="disk")
    frames.images("top", POSITIONS[:4])
    with pytest.raises(UserError, match=r"top\.npy is damaged at frame 41; delete it, and it is made again"):
        frames.images("top", POSITIONS)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"top\.npy cannot be used \(.*; delete it"):
        FrameCache(dataset, ["top"], SIZE, store="disk").images("top", POSITIONS)


def test_a_disk_without_room(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = LeRobotDataset(DATASETS / "v30_png")
    monkeypatch.setattr(frames_module, "MEMORY_LIMIT", 1000)
    assert FrameCache(dataset, ["top"], SIZE).store == "disk"
    monkeypatch.setattr(frames_module, "_free", lambda folder: 1000)
    assert FrameCache(dataset, ["top"], SIZE).store == "disk"  # it is there already
    assert FrameCache(dataset, ["wrist"], SIZE).store == "decode"
    with pytest.raises(UserError, match=r"no room for 0\.0 GB of decoded frames; set PIZERO_CACHE"):
        FrameCache(dataset, ["wrist"], SIZE, store="disk")


def test_an_interrupted_build_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = LeRobotDataset(DATASETS / "v30_png")

    def stop(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FrameCache(dataset, ["top"], SIZE, store="disk", on_progress=stop)
    assert list(cache.rglob("*.*")) == []
    FrameCache(dataset, ["top"], SIZE, store="disk")


def test_what_a_killed_build_left_goes_with_the_next(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = LeRobotDataset(DATASETS / "v30_png")
    store = FrameCache(dataset, ["top"], SIZE, store="disk")
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: child.pid)
        left = partial_path(store._path("top"))
    left.write_bytes(b"half")
    FrameCache(dataset, ["top"], SIZE, store="disk")
    assert not left.exists()
    assert store._path("top").is_file()


@pytest.mark.parametrize("store", ["memory", "disk"])
def test_bad_episodes_are_told_together(cache: Path, tmp_path: Path, store: frames_module.FrameStore) -> None:
    root = shutil.copytree(DATASETS / "v30_png", tmp_path / "data")
    path = next((root / "data").rglob("*.parquet"))
    table = pq.read_table(path)
    episodes = table.column("episode_index").to_pylist()
    for camera, episode in (("top", 1), ("wrist", 3)):
        name = f"observation.images.{camera}"
        rows = table.column(name).to_pylist()
        rows[episodes.index(episode)]["bytes"] = b"no picture"
        field = table.schema.field(name)
        table = table.set_column(table.column_names.index(name), field, pa.array(rows, type=field.type))
    pq.write_table(table, path)
    dataset = LeRobotDataset(root)
    with pytest.raises(BadEpisodeError, match="episode 1: frame 0") as first:
        FrameCache(dataset, ["top", "wrist"], SIZE, store=store)
    assert first.value.episodes == (1,)
    with pytest.raises(BadEpisodeError, match=r"episode 1: frame 0.*\(and 1 more\)") as both:
        FrameCache(dataset, ["top", "wrist"], SIZE, store=store, skip_bad_episodes=True)
    assert both.value.episodes == (1, 3)
    good = LeRobotDataset(root, episodes=[0, 2])
    frames = FrameCache(good, ["top"], SIZE, store=store)
    last: NDArray[np.int64] = np.array([good.num_frames - 1])
    assert_array_equal(frames.images("top", last), resize_with_pad(good.images("top", last), *SIZE))
