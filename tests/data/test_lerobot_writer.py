"""The LeRobot writer: what it writes is read back, has the form LeRobot expects, and is never half there."""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from pizero.data.datasets.images.png import decode_image, encode_png
from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.datasets.writer import lerobot_files, lerobot_writer
from pizero.data.datasets.writer.lerobot_stats import ImageStats, merge_stats, numeric_stats
from pizero.data.datasets.writer.lerobot_writer import LeRobotWriter
from pizero.types import UserError

GOLDEN = Path(__file__).parents[1] / "golden/lerobot/datasets"
SIZES = {"top": (64, 96), "wrist": (64, 64)}
EPISODE_TABLE = "meta/episodes/chunk-000/file-000.parquet"
DATA = "data/chunk-000/file-000.parquet"


EPISODE_VALUES = arrays(np.float32, st.tuples(st.integers(1, 9), st.just(2)), elements=st.floats(-9, 9, width=32))


def make(root: Path, **changes: Any) -> LeRobotWriter:
    arguments: dict[str, Any] = {
        "fps": 10, "robot_type": "toy", "state_names": list("xyzw"), "action_names": ["dx", "dy", "grip"],
        "cameras": SIZES, "image_format": "png",
    }  # fmt: skip
    return LeRobotWriter(root, **(arguments | changes))


def make_frame(episode: int, frame: int) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """A gradient that moves by four grey levels a frame, in a colour that changes with the episode."""
    rng = np.random.default_rng((episode, frame))
    images: dict[str, np.ndarray] = {}
    for camera, (height, width) in SIZES.items():
        ramp = np.add.outer(np.arange(height), np.arange(width)) // 2 + 4 * frame
        images[camera] = np.stack([ramp, ramp[::-1] + 40 * episode, np.full_like(ramp, 100)], axis=-1) % 200
        images[camera] = (images[camera] + 20).astype(np.uint8)
    return rng.normal(size=4).astype(np.float32), rng.normal(size=3).astype(np.float32), images


def write(writer: LeRobotWriter, lengths: list[int]) -> None:
    for episode, length in enumerate(lengths):
        for frame in range(length):
            writer.add_frame(*make_frame(episode, frame))
        writer.save_episode(["push left", "push right"][episode % 2])


def source(lengths: list[int]) -> list[tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]]:
    return [make_frame(episode, frame) for episode, length in enumerate(lengths) for frame in range(length)]


@settings(max_examples=50, deadline=None)
@given(arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))))
def test_png_is_exact_and_standard(image: np.ndarray) -> None:
    data = encode_png(image)
    np.testing.assert_array_equal(decode_image(data), image)
    with Image.open(io.BytesIO(data)) as opened:
        opened.verify()
        assert (opened.format, opened.mode) == ("PNG", "RGB")


def test_one_dimension_is_a_number_as_lerobot_has_it(tmp_path: Path) -> None:
    with make(tmp_path / "d", state_names=["x"], action_names=["dx"], cameras={}) as writer:
        for frame in range(4):
            writer.add_frame([frame / 2], [-frame], {})
        writer.save_episode("push left")
    schema = pq.read_schema(tmp_path / "d" / DATA)
    assert [str(schema.field(key).type) for key in ("observation.state", "action")] == ["float", "float"]
    noted = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert noted["action"] == {"dtype": "float32", "_type": "Value"}
    dataset = LeRobotDataset(tmp_path / "d")
    assert dataset.column("observation.state").tolist() == [[0.0], [0.5], [1.0], [1.5]]
    assert dataset.features["action"]["shape"] == [1]
    assert np.asarray(dataset.stats["action"]["mean"]).tolist() == [-1.5]


def test_png_round_trip(tmp_path: Path) -> None:
    lengths = [7, 150, 3]  # the second spans two row groups
    with make(tmp_path / "d") as writer:
        write(writer, lengths)
    dataset, frames = LeRobotDataset(tmp_path / "d"), source(lengths)
    assert dataset.episode_lengths.tolist() == lengths
    assert dataset.tasks == ["push left", "push right"]
    assert dataset.task_index.tolist() == [0] * 7 + [1] * 150 + [0] * 3
    np.testing.assert_array_equal(dataset.column("observation.state"), [state for state, _, _ in frames])
    np.testing.assert_array_equal(dataset.column("action"), [action for _, action, _ in frames])
    for camera in SIZES:
        images = dataset.images(camera, np.arange(dataset.num_frames))
        np.testing.assert_array_equal(images, [images[camera] for _, _, images in frames])
    expected = np.concatenate([np.arange(length) for length in lengths])
    np.testing.assert_array_equal(dataset.frame_index, expected)
    np.testing.assert_array_equal(dataset.timestamp, (expected / 10).astype(np.float32))
    meta = pq.read_metadata(tmp_path / "d" / DATA)
    assert [meta.row_group(group).num_rows for group in range(meta.num_row_groups)] == [7, 128, 22, 3]


@pytest.mark.parametrize("codec", ["h264", "av1"])
@pytest.mark.parametrize("fps", [10, 29.97])
def test_video_round_trip(tmp_path: Path, codec: str, fps: float) -> None:
    lengths = [21, 9, 14]
    with make(tmp_path / "d", image_format=codec, fps=fps) as writer:
        write(writer, lengths)
    dataset, frames = LeRobotDataset(tmp_path / "d"), source(lengths)
    assert dataset.fps == fps
    for camera in SIZES:
        images = dataset.images(camera, np.arange(dataset.num_frames)).astype(int)
        true = np.array([images[camera] for _, _, images in frames]).astype(int)
        assert np.abs(images - true).mean() < 6
        # Each frame is nearest to its own source: none is early or late.
        for position in range(1, len(frames) - 1):
            errors = [np.abs(images[position] - true[position + step]).mean() for step in (-1, 0, 1)]
            assert np.argmin(errors) == 1
    rows = pq.read_table(tmp_path / "d" / EPISODE_TABLE).to_pylist()
    starts = [row["videos/observation.images.top/from_timestamp"] for row in rows]
    np.testing.assert_allclose(starts, np.array([0, 21, 30]) / fps)
    np.testing.assert_allclose(rows[2]["videos/observation.images.top/to_timestamp"], 44 / fps)


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="only Linux tells a thread's scheduling")
def test_the_encoder_does_not_keep_real_time_priority(tmp_path: Path) -> None:
    """The AV1 encoder takes it where it may, as root; a thread that waits busily would then stop the machine."""
    with make(tmp_path / "d", image_format="av1") as writer:
        write(writer, [5])
        assert os.sched_getscheduler(0) == os.SCHED_OTHER
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


@pytest.mark.parametrize("image_format", ["png", "h264"])
def test_discarded_episodes_leave_no_trace(tmp_path: Path, image_format: str) -> None:
    with make(tmp_path / "d", image_format=image_format) as writer:
        for episode in range(3):
            for frame in range(6):
                writer.add_frame(*make_frame(episode, frame))
            if episode == 1:
                writer.discard_episode()
            else:
                assert writer.save_episode("go") == episode // 2
        assert (writer.num_episodes, writer.num_frames) == (2, 12)
    dataset = LeRobotDataset(tmp_path / "d")
    assert dataset.num_frames == 12
    true = [make_frame(episode, frame)[2]["top"] for episode in (0, 2) for frame in range(6)]
    images = dataset.images("top", np.arange(12)).astype(int)
    assert np.abs(images - np.array(true)).mean() < (0.01 if image_format == "png" else 6)
    for path in (tmp_path / "d").rglob("*.mp4"):
        with av.open(str(path)) as container:
            assert sum(1 for _ in container.decode(video=0)) == 12


@pytest.mark.parametrize("image_format", ["png", "h264"])
def test_files_roll_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image_format: str) -> None:
    monkeypatch.setattr(lerobot_files, "DATA_FILE_MB", 0.001)
    monkeypatch.setattr(lerobot_files, "VIDEO_FILE_MB", 0.005)
    monkeypatch.setattr(lerobot_files, "CHUNK_SIZE", 2)
    lengths = [12, 10, 11, 12, 10]
    with make(tmp_path / "d", image_format=image_format) as writer:
        write(writer, lengths)
    files = sorted(str(path.relative_to(tmp_path / "d")) for path in (tmp_path / "d").rglob("*.parquet"))
    assert "data/chunk-000/file-001.parquet" in files
    assert "data/chunk-001/file-000.parquet" in files
    dataset, frames = LeRobotDataset(tmp_path / "d"), source(lengths)
    if image_format == "h264":
        assert len(list((tmp_path / "d/videos/observation.images.top").rglob("*.mp4"))) > 1
    order = np.random.default_rng(0).permutation(sum(lengths))
    for camera in SIZES:
        true = np.array([frames[position][2][camera] for position in order]).astype(int)
        error = np.abs(dataset.images(camera, order) - true).mean()
        assert error == 0 if image_format == "png" else error < 6
    np.testing.assert_array_equal(dataset.column("action"), [action for _, action, _ in frames])


@pytest.mark.parametrize(("image_format", "golden"), [("png", "v30_png"), ("av1", "v30_av1")])
def test_same_form_as_lerobot(tmp_path: Path, image_format: str, golden: str) -> None:
    """Key by key and column by column what LeRobot 0.6.1 wrote for the same kind of dataset."""
    sizes = {"top": (96, 96), "wrist": (64, 80)}
    with make(
        tmp_path / "d", cameras=sizes, image_format=image_format, state_names=list("xycz"),
        action_names=["dx", "dy", "gripper"],
    ) as writer:  # fmt: skip
        for episode in range(4):
            for _ in range(3):
                writer.add_frame(
                    np.zeros(4), np.ones(3), {name: np.zeros((*size, 3), np.uint8) for name, size in sizes.items()}
                )
            writer.save_episode(f"task {episode % 2}")
    ours, theirs = tmp_path / "d", GOLDEN / golden
    info, expected = (json.loads((root / "meta/info.json").read_text()) for root in (ours, theirs))
    for feature in expected["features"].values():
        if feature["dtype"] == "video":
            feature["info"]["video.preset"] = 10  # slower than LeRobot's, see video.py
    assert info == expected | {"total_frames": 12}
    stats, expected = (json.loads((root / "meta/stats.json").read_text()) for root in (ours, theirs))
    assert _shapes(stats) == _shapes(expected)
    for file in (DATA, EPISODE_TABLE, "meta/tasks.parquet"):
        schema, expected_schema = pq.read_schema(ours / file), pq.read_schema(theirs / file)
        assert schema.equals(expected_schema), file
    notes = [json.loads(pq.read_schema(root / DATA).metadata[b"huggingface"]) for root in (ours, theirs)]
    assert notes[0]["info"] == notes[1]["info"]
    row = pq.read_table(ours / EPISODE_TABLE).to_pylist()[3]
    assert (row["tasks"], row["length"], row["dataset_from_index"], row["dataset_to_index"]) == (["task 1"], 3, 9, 12)
    assert row["stats/index/min"] == [9.0]
    pandas = json.loads(pq.read_schema(ours / "meta/tasks.parquet").metadata[b"pandas"])
    assert pandas["index_columns"] == ["task"]


def _shapes(stats: dict[str, dict[str, Any]]) -> dict[str, dict[str, tuple[int, ...]]]:
    return {key: {name: np.shape(value) for name, value in entry.items()} for key, entry in stats.items()}


@settings(max_examples=20, deadline=None)
@given(st.lists(EPISODE_VALUES, min_size=1, max_size=4))
def test_merged_statistics_are_those_of_all_frames(episodes: list[np.ndarray]) -> None:
    merged = None
    for values in episodes:
        merged = merge_stats(merged, numeric_stats(values))
    assert merged is not None
    everything = np.concatenate(episodes).astype(np.float64)
    for name, value in (("min", everything.min(0)), ("max", everything.max(0)), ("mean", everything.mean(0))):
        np.testing.assert_allclose(merged[name], value, atol=1e-9)
    np.testing.assert_allclose(merged["std"], everything.std(0), atol=1e-6)
    assert merged["count"].tolist() == [len(everything)]
    weighted = sum(len(v) * np.quantile(v.astype(np.float64), 0.9, axis=0) for v in episodes) / len(everything)
    np.testing.assert_allclose(merged["q90"], weighted, atol=1e-9)


def test_image_statistics() -> None:
    images = np.random.default_rng(0).integers(0, 200, (5, 32, 40, 3), np.uint8)
    collected = ImageStats()
    for image in images:
        collected.add(image)
    stats = collected.finish()
    first = images[0].reshape(-1, 3) / 255  # every fifth frame is looked at
    assert stats["count"].tolist() == [1]
    for name, value in (("min", first.min(0)), ("max", first.max(0)), ("mean", first.mean(0)), ("std", first.std(0))):
        np.testing.assert_allclose(stats[name], value.reshape(3, 1, 1), atol=1e-9)
    for name, q in (("q01", 0.01), ("q50", 0.5), ("q99", 0.99)):
        np.testing.assert_allclose(stats[name], np.quantile(first, q, axis=0).reshape(3, 1, 1), atol=1 / 255)


# ---- never half-written ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image_format", ["png", "h264"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_exception_leaves_nothing(tmp_path: Path, image_format: str, error: type[BaseException]) -> None:
    def record() -> None:
        with make(tmp_path / "d", image_format=image_format) as writer:
            write(writer, [3])
            writer.add_frame(*make_frame(1, 0))
            assert not (tmp_path / "d").exists()
            raise error

    with pytest.raises(error):
        record()
    assert list(tmp_path.iterdir()) == []


_SCRIPT = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background of a shell ignores it
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_lerobot_writer import make, write
with make(Path({root!r}), image_format="h264") as writer:
    write(writer, [3, 3])
    print("writing", flush=True)
    time.sleep(30)
"""


@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGKILL])
def test_killed_leaves_nothing_at_root(tmp_path: Path, kill: signal.Signals) -> None:
    script = _SCRIPT.format(tests=str(Path(__file__).parent), root=str(tmp_path / "d"))
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert child.stdout is not None
    assert child.stdout.readline() == b"writing\n"
    child.send_signal(kill)
    assert child.wait(timeout=20) != 0
    child.stdout.close()
    assert not (tmp_path / "d").exists()
    if kill == signal.SIGINT:
        assert list(tmp_path.iterdir()) == []
    write(make(tmp_path / "d"), [3])  # abandoned, so that nothing of it stays either
    assert list(tmp_path.iterdir()) == []


def test_abandoned_writer_cleans_up(tmp_path: Path) -> None:
    writer = make(tmp_path / "d")
    write(writer, [3])
    del writer
    assert list(tmp_path.iterdir()) == []


def test_finalize_without_context(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()  # an empty folder is fine
    writer = make(tmp_path / "d")
    write(writer, [3])
    assert writer.finalize() == tmp_path / "d"
    writer.abort()  # does nothing any more
    assert list(tmp_path.iterdir()) == [tmp_path / "d"]
    assert LeRobotDataset(tmp_path / "d").num_frames == 3


# ---- an episode that cannot be saved --------------------------------------------------------------------------------


def fail_at(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int, *, after: bool = False) -> None:
    """The call-th call from now on raises; after: when it has done its work."""
    real, count = getattr(owner, name), iter(range(1, 1_000_000))

    def failing(*arguments: Any, **options: Any) -> Any:
        number = next(count)
        result = real(*arguments, **options) if after or number != call else None
        if number == call:
            raise OSError(28, "No space left on device")
        return result

    monkeypatch.setattr(owner, name, failing)


FAILURES = [
    (lerobot_files.TableWriter, "write", 2, False),  # the second row group of its data
    (lerobot_files.TableWriter, "write", 2, True),
    (lerobot_files.EpisodeTable, "append", 1, False),
    (lerobot_files.EpisodeTable, "append", 1, True),
    (lerobot_writer, "merge_stats", 3, False),
]
FAILURES_OF_VIDEO = [
    (lerobot_files.VideoFileWriter, "append", 2, False),  # the second camera
    (lerobot_files.VideoFileWriter, "append", 1, True),
    (lerobot_files.EpisodeEncoder, "finish", 2, False),
]
FAILURES_APART = [(lerobot_writer, "write_meta", 1, after) for after in (False, True)]
CASES = [
    (apart, image_format, *failure)
    for apart in (False, True)
    for image_format in ("png", "h264", "av1")
    for failure in [
        *FAILURES, *(() if image_format == "png" else FAILURES_OF_VIDEO), *(FAILURES_APART if apart else ())
    ]
]  # fmt: skip


@pytest.mark.parametrize(("apart", "image_format", "owner", "name", "call", "after"), CASES)
def test_an_episode_that_fails_is_gone_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, apart: bool, image_format: str, owner: Any, name: str, call: int,
    after: bool,
) -> None:  # fmt: skip
    lengths = {0: 6, 2: 8, 3: 5}
    with make(tmp_path / "d", image_format=image_format, apart=apart) as writer:
        for episode in (0, 1, 2, 3):
            for frame in range(lengths.get(episode, 140)):
                writer.add_frame(*make_frame(episode, frame))
            if episode == 1:
                with monkeypatch.context() as patch:
                    fail_at(patch, owner, name, call, after=after)
                    with pytest.raises(OSError, match="No space left"):
                        writer.save_episode("lost")
            else:
                assert writer.save_episode(f"task {episode}") == max(episode - 1, 0)
    dataset = LeRobotDataset(tmp_path / "d")
    frames = [make_frame(episode, frame) for episode, length in lengths.items() for frame in range(length)]
    assert dataset.episode_lengths.tolist() == [6, 8, 5]
    assert dataset.tasks == ["task 0", "task 2", "task 3"]
    np.testing.assert_array_equal(dataset.column("observation.state"), [state for state, _, _ in frames])
    np.testing.assert_array_equal(dataset.column("action"), [action for _, action, _ in frames])
    for camera in SIZES:
        error = np.abs(dataset.images(camera, np.arange(19)).astype(int) - [one[2][camera] for one in frames]).mean()
        assert error == 0 if image_format == "png" else error < 6
    stats = json.loads((tmp_path / "d/meta/stats.json").read_text())
    assert stats["action"]["count"] == [19]
    np.testing.assert_allclose(stats["action"]["max"], np.max([action for _, action, _ in frames], axis=0))
    assert not list((tmp_path / "d").rglob(".*"))


@pytest.mark.parametrize(("image_format", "largest"), [("png", 60_000), ("h264", 20_000), ("h264", 30_000)])
def test_what_was_saved_apart_is_whole_whatever_the_disk_does(tmp_path: Path, image_format: str, largest: int) -> None:
    """No file may grow beyond a size: an episode that is larger fails in the middle of a write."""
    lengths = [6, 150, 8]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with make(tmp_path / "d", image_format=image_format, apart=True) as writer:
        for episode, length in enumerate(lengths):
            for frame in range(length):
                writer.add_frame(*make_frame(episode, frame))
            if episode == 1:
                resource.setrlimit(resource.RLIMIT_FSIZE, (largest, before[1]))
                try:
                    with pytest.raises(OSError, match="File too large"):
                        writer.save_episode("lost")
                finally:
                    resource.setrlimit(resource.RLIMIT_FSIZE, before)
            else:
                writer.save_episode("go")
            (folder,) = tmp_path.iterdir()
            assert LeRobotDataset(folder).num_episodes == max(episode, 1)  # whole at any time
    dataset = LeRobotDataset(tmp_path / "d")
    assert dataset.episode_lengths.tolist() == [6, 8]
    assert dataset.images("wrist", np.arange(14)).shape == (14, 64, 64, 3)


def test_earlier_episodes_that_are_hit_are_told(tmp_path: Path) -> None:
    before, writer = resource.getrlimit(resource.RLIMIT_FSIZE), make(tmp_path / "d")
    write(writer, [6])
    for frame in range(150):
        writer.add_frame(*make_frame(1, frame))
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            writer.save_episode("lost")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    writer.add_frame(*make_frame(2, 0))
    with pytest.raises(UserError, match="earlier ones in its file are not whole"):
        writer.save_episode("go")
    writer.discard_episode()
    with pytest.raises(UserError, match="earlier ones in its file are not whole"):
        writer.finalize()
    writer.abort()
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_taken_meanwhile_loses_nothing(tmp_path: Path) -> None:
    writer = make(tmp_path / "d", apart=True)
    write(writer, [3])
    (tmp_path / "d").mkdir()
    (tmp_path / "d/mine").touch()
    with pytest.raises(UserError, match=r"d cannot be written .*; the dataset is in .*d-[0-9a-f]{8}"):
        writer.finalize()
    (aside,) = tmp_path.glob("d-*")
    assert LeRobotDataset(aside).num_frames == 3


# ---- user mistakes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_format": "jpeg"}, "image_format is 'jpeg'; choose png, h264 or av1"),
        ({"fps": 0}, "fps is 0; it must be above 0"),
        ({"cameras": {"a/b": (64, 64)}}, "camera name 'a/b'"),
        ({"cameras": {"top": (63, 64)}, "image_format": "h264"}, "63x64, but video needs an even height and width"),
        ({"cameras": {"top": (32, 64)}, "image_format": "av1"}, "av1 needs 64 pixels a side"),
    ],
)
def test_refused_settings(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(tmp_path / "d", **changes)
    assert list(tmp_path.iterdir()) == []


def test_missing_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(av, "codecs_available", {"libx264"})
    with pytest.raises(UserError, match=r"comes without libsvtav1; upgrade it, or choose another image_format"):
        make(tmp_path / "d", image_format="av1")


def test_refuses_a_used_folder(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/notes.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and is not empty; choose another folder"):
        make(tmp_path / "d")
    assert (tmp_path / "d/notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, a, i: (s[:3], a, i), r"frame 1: observation\.state has shape \(3,\), expected \(4,\)"),
        (lambda s, a, i: (s, a * np.nan, i), "frame 1: action is not finite"),
        (lambda s, a, i: (s, a, {"top": i["top"]}), r"frame 1: cameras \['top'\], expected \['top', 'wrist'\]"),
        (
            lambda s, a, i: (s, a, i | {"top": i["top"] / 255}),
            r"camera 'top' gave float64 \(64, 96, 3\), expected uint8",
        ),
        (lambda s, a, i: (s, a, i | {"top": i["top"][:32]}), r"camera 'top' gave uint8 \(32, 96, 3\), expected"),
    ],
)
def test_refused_frames(tmp_path: Path, change: Callable[..., Any], message: str) -> None:
    with make(tmp_path / "d") as writer:
        writer.add_frame(*make_frame(0, 0))
        with pytest.raises(UserError, match=message):
            writer.add_frame(*change(*make_frame(0, 1)))
        writer.add_frame(*make_frame(0, 1))  # a refused frame leaves no part behind
        writer.save_episode("go")
    assert LeRobotDataset(tmp_path / "d").num_frames == 2


def test_refused_endings(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the episode has no frames"), make(tmp_path / "d") as writer:
        writer.save_episode("go")
    with pytest.raises(UserError, match="was not written: no episode was saved"), make(tmp_path / "d"):
        pass
    with pytest.raises(UserError, match="1 frames are in no episode"), make(tmp_path / "d") as writer:
        writer.add_frame(*make_frame(0, 0))
    assert list(tmp_path.iterdir()) == []


def test_subtasks_are_lerobots_language_column(tmp_path: Path) -> None:
    texts = [["lift it"] * 3 + ["put it down"] * 2, ["", "lift it", "", ""]]
    with make(tmp_path / "data") as writer:
        for episode, own in enumerate(texts):
            for frame, text in enumerate(own):
                writer.add_frame(*make_frame(episode, frame), text)
            with pytest.raises(UserError, match=r"frame .: subtask is None; give one in all frames, or in none"):
                writer.add_frame(*make_frame(episode, 9))
            writer.save_episode("tidy up")
    table = pq.read_table(tmp_path / "data" / DATA)
    fields = ("role", "content", "style", "timestamp", "camera", "tool_calls")
    assert tuple(field.name for field in table.schema.field("language_persistent").type.value_type) == fields
    rows = [("assistant", "lift it", 0.0), ("assistant", "put it down", np.float32(0.3))]
    cells = [
        [(row["role"], row["content"], np.float32(row["timestamp"])) for row in cell]
        for cell in table["language_persistent"].to_pylist()
    ]
    assert cells[:5] == [rows] * 5  # at each frame of the episode, as LeRobot has them
    info = json.loads((tmp_path / "data/meta/info.json").read_text())
    assert info["features"]["language_persistent"] == {"dtype": "language", "shape": [1], "names": None}
    assert LeRobotDataset(tmp_path / "data").subtask_texts(range(9)) == [*texts[0], *texts[1]]
