"""The LeRobot reader against what the LeRobot library itself returned for the same folders."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from av.video.frame import PictureType
from hypothesis import given, settings
from hypothesis import strategies as st

from pizero.data.datasets.files import parquet
from pizero.data.datasets.files.open_files import OpenFiles
from pizero.data.datasets.images import video
from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.datasets.writer.lerobot_writer import LeRobotWriter
from pizero.types import UserError

GOLDEN = Path(__file__).parents[1] / "golden/lerobot/datasets"
PNG, H264, AV1, PNG_V21, AV1_V21 = (
    GOLDEN / name for name in ("v30_png", "v30_h264_multifile", "v30_av1", "v21_png", "v21_av1")
)
LENGTHS = [40, 38, 42, 41]


@pytest.fixture
def png_copy(tmp_path: Path) -> Path:
    return shutil.copytree(PNG, tmp_path / "png")


@pytest.fixture
def h264_copy(tmp_path: Path) -> Path:
    return shutil.copytree(H264, tmp_path / "h264")


@pytest.mark.parametrize("root", [PNG, H264, AV1, PNG_V21, AV1_V21], ids=lambda root: root.name)
def test_equals_what_lerobot_returned(root: Path) -> None:
    dataset = LeRobotDataset(root)
    expected = np.load(root / "expected.npz")
    frames = expected["query_index"]
    for camera in ("top", "wrist"):
        images = dataset.images(camera, frames)
        np.testing.assert_array_equal(images.transpose(0, 3, 1, 2), expected[f"observation.images.{camera}__uint8_chw"])
    actions, is_pad = dataset.window("action", frames, 10)
    np.testing.assert_array_equal(actions, expected["action"])
    np.testing.assert_array_equal(is_pad, expected["action_is_pad"])
    np.testing.assert_array_equal(dataset.column("observation.state")[frames], expected["observation.state"])
    assert dataset.prompts(frames) == expected["task"].tolist()
    for key in ("episode_index", "frame_index", "task_index", "timestamp"):
        np.testing.assert_array_equal(getattr(dataset, key)[frames], expected[key])


def test_png_frames_are_those_given_to_the_writer() -> None:
    expected = np.load(PNG / "expected.npz")
    images = LeRobotDataset(PNG).images("top", expected["query_index"])
    np.testing.assert_array_equal(images, expected["source.top_hwc"])


def test_description() -> None:
    dataset = LeRobotDataset(H264)
    assert (dataset.fps, dataset.robot_type, dataset.cameras) == (10.0, "toy", ("top", "wrist"))
    assert (dataset.num_frames, dataset.num_episodes) == (161, 4)
    assert dataset.image_shape("top") == (96, 96)
    assert dataset.image_shape("wrist") == (64, 80)
    assert dataset.tasks == ["push the red square to the right", "push the blue square to the left"]
    assert dataset.episodes.tolist() == [0, 1, 2, 3]
    assert dataset.episode_lengths.tolist() == LENGTHS
    assert dataset.episode_starts.tolist() == [0, 40, 78, 120]
    assert dataset.column("action").shape == (161, 3)
    assert dataset.column("action").dtype == np.float32
    assert dataset.column("timestamp").shape == (161, 1)
    assert dataset.stats["action"]["count"] == [161]


@pytest.mark.parametrize("root", [PNG, H264, AV1, PNG_V21, AV1_V21], ids=lambda root: root.name)
def test_images_in_any_order_with_repeats(root: Path) -> None:
    dataset = LeRobotDataset(root)
    in_order = dataset.images("top", np.arange(161))
    assert len(in_order) == 161
    frames = np.random.default_rng(0).integers(0, 161, 40)
    np.testing.assert_array_equal(dataset.images("top", frames), in_order[frames])
    assert dataset.images("top", []).shape == (0, 96, 96, 3)


@pytest.mark.parametrize("root", [PNG, H264], ids=lambda root: root.name)
def test_chosen_episodes(root: Path) -> None:
    everything, chosen = LeRobotDataset(root), LeRobotDataset(root, episodes=[3, 1])
    assert chosen.episodes.tolist() == [3, 1]
    assert chosen.episode_starts.tolist() == [0, 41]
    assert chosen.num_frames == 79
    same = np.concatenate([np.arange(120, 161), np.arange(40, 78)])
    for key in ("action", "observation.state"):
        np.testing.assert_array_equal(chosen.column(key), everything.column(key)[same])
    frames = np.array([78, 0, 40, 41])
    np.testing.assert_array_equal(chosen.images("wrist", frames), everything.images("wrist", same[frames]))
    assert chosen.prompts(frames) == everything.prompts(same[frames])
    for ours, full in zip(
        chosen.window("action", frames, 5), everything.window("action", same[frames], 5), strict=True
    ):
        np.testing.assert_array_equal(ours, full)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 160), min_size=1, max_size=8), st.integers(1, 60))
def test_window_repeats_the_last_value_of_the_episode(frames: list[int], horizon: int) -> None:
    dataset = _PNG_DATASET
    values, is_pad = dataset.window("action", frames, horizon)
    assert values.shape == (len(frames), horizon, 3)
    column, ends = dataset.column("action"), np.cumsum(LENGTHS)
    for row, frame in enumerate(frames):
        end = next(end for end in ends if frame < end)
        for step in range(horizon):
            assert is_pad[row, step] == (frame + step >= end)
            np.testing.assert_array_equal(values[row, step], column[min(frame + step, end - 1)])


_PNG_DATASET = LeRobotDataset(PNG)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 160), min_size=1, max_size=8), st.integers(1, 60))
def test_history_repeats_the_first_frame_of_the_episode(frames: list[int], length: int) -> None:
    positions = _PNG_DATASET.history(frames, length)
    assert positions.shape == (len(frames), length)
    for row, frame in enumerate(frames):
        start = max(start for start in _PNG_DATASET.episode_starts.tolist() if start <= frame)
        assert positions[row].tolist() == [max(start, frame - back) for back in range(length)][::-1]


def test_numbers_never_touch_video(h264_copy: Path) -> None:
    (h264_copy / "videos/observation.images.top/chunk-000/file-001.mp4").unlink()
    dataset = LeRobotDataset(h264_copy, cameras=())
    assert dataset.window("action", [0, 160], 4)[0].shape == (2, 4, 3)
    with pytest.raises(UserError, match=r"observation\.images\.top.*file-001\.mp4, episode 3: the file is missing"):
        dataset.images("top", [160])


@pytest.mark.parametrize("root", [PNG, H264], ids=lambda root: root.name)
def test_shared_by_threads_and_pickled(root: Path) -> None:
    dataset = LeRobotDataset(root)
    frames = np.random.default_rng(1).permutation(161)[:48].reshape(4, 12)
    expected = [dataset.images("top", chunk) for chunk in frames]
    with ThreadPoolExecutor(4) as pool:
        threaded = list(pool.map(lambda chunk: dataset.images("top", chunk), frames))
    np.testing.assert_array_equal(threaded, expected)
    copied = pickle.loads(pickle.dumps(dataset))
    np.testing.assert_array_equal(copied.images("top", frames[0]), expected[0])


@pytest.mark.parametrize("root", [PNG, H264, AV1, PNG_V21, AV1_V21], ids=lambda root: root.name)
def test_used_after_fork(root: Path) -> None:
    dataset = LeRobotDataset(root)
    frames = np.array([0, 60])  # two frames: small enough for the queue's pipe
    expected = dataset.images("top", frames)  # the parent's decoder is open, and part of the way through
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=lambda: queue.put(dataset.images("top", frames)))
    child.start()
    child.join(timeout=20)
    assert child.exitcode == 0
    np.testing.assert_array_equal(queue.get(), expected)
    np.testing.assert_array_equal(dataset.images("top", frames), expected)


def test_a_fork_opens_its_own_files() -> None:
    files = OpenFiles(lambda path: object(), limit=2)
    inherited = files.get(Path("a"))
    assert files.get(Path("a")) is inherited
    context = multiprocessing.get_context("fork")
    child = context.Process(target=lambda: sys.exit(0 if files.get(Path("a")) is not inherited else 1))
    child.start()
    child.join(timeout=20)
    assert child.exitcode == 0
    for name in "bc":
        files.get(Path(name))
    assert files.get(Path("a")) is not inherited  # beyond the limit


def test_few_keyframes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random access is right, and costs no more than a pass from the keyframe, when keyframes are far apart."""
    name, options = video.ENCODERS["h264"]
    monkeypatch.setitem(video.ENCODERS, "h264", (name, {**options, "g": "120", "crf": "0"}))
    _write(tmp_path / "d", image_format="h264", lengths=[120], fps=30)
    dataset = LeRobotDataset(tmp_path / "d")
    in_order = dataset.images("top", np.arange(120))
    assert np.all(np.abs(in_order[:, 8, 8, 0].astype(int) - np.arange(120) * 2) <= 2)
    frames = np.array([110, 3, 59, 60, 61, 100, 0])
    np.testing.assert_array_equal(dataset.images("top", frames), in_order[frames])
    dataset = LeRobotDataset(tmp_path / "d")
    decoder = dataset._pictures._decoders.get(dataset._episodes[0].videos["observation.images.top"].path)
    decoded = 0
    advance = decoder._advance

    def count() -> bool:
        nonlocal decoded
        decoded += 1
        return advance()

    monkeypatch.setattr(decoder, "_advance", count)
    dataset.images("top", np.arange(0, 120, 20))
    assert decoded < 150  # 306 if it went back to the keyframe each time


@pytest.fixture
def hevc_dataset(tmp_path: Path) -> Path:
    """120 frames of H.265 with frames that refer forward, also across keyframes (x265's defaults), 24 to a keyframe.

    A frame is grey, twice its number.
    """
    if "libx265" not in av.codecs_available:
        pytest.skip("this PyAV has no libx265, so no H.265 can be made here")
    _write(tmp_path / "d", image_format="h264", lengths=[70, 50], fps=30)
    (path,) = (tmp_path / "d").rglob("*.mp4")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx265", rate=30)
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv420p"
        stream.options = {"crf": "10", "x265-params": "keyint=24:min-keyint=24:log-level=none"}
        for number in range(120):
            image = np.full((64, 64, 3), 2 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return tmp_path / "d"


def test_h265_is_read(hevc_dataset: Path) -> None:
    dataset = LeRobotDataset(hevc_dataset)
    with av.open(str(dataset._episodes[0].videos["observation.images.top"].path)) as container:
        assert container.streams.video[0].codec_context.name == "hevc"
        kinds = {PictureType(frame.pict_type) for frame in container.decode(video=0)}
        assert kinds == {PictureType.I, PictureType.P, PictureType.B}
    order = np.random.default_rng(0).permutation(120)
    levels = dataset.images("top", order).astype(int).mean(axis=(1, 2, 3))
    assert np.all(np.abs(levels - 2 * order) <= 2)
    for frame in (95, 96, 97, 23, 24, 119, 0, 71):  # each from its keyframe on: a new reader has nothing decoded
        alone = LeRobotDataset(hevc_dataset).images("top", [frame])
        np.testing.assert_array_equal(alone[0], dataset.images("top", [frame])[0])


def test_unnamed_task_index(png_copy: Path) -> None:
    """Some writers leave the pandas index that holds the texts without a name."""
    path = png_copy / "meta/tasks.parquet"
    table = pq.read_table(path)
    pq.write_table(table.rename_columns(["task_index", "__index_level_0__"]), path)
    assert LeRobotDataset(png_copy).tasks == _PNG_DATASET.tasks


def test_row_groups_leave_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet.EncodedImages, "BUDGET", 30_000)
    dataset = LeRobotDataset(PNG)
    frames = [0, 50, 100, 160, 0]
    np.testing.assert_array_equal(dataset.images("top", frames), _PNG_DATASET.images("top", frames))
    assert dataset._pictures._encoded._size <= 30_000
    assert len(dataset._pictures._encoded._groups) == 1


# ---- faults ----------------------------------------------------------------------------------------------------


def test_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        LeRobotDataset(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"has no meta/info\.json"):
        LeRobotDataset(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codebase_version": "v4.0"}, r"LeRobot v4\.0 dataset, which is not known; expected v3\.0, v2\.1, v2\.0"),
        ({"codebase_version": None}, r"lacks codebase_version; expected v3\.0, v2\.1, v2\.0"),
        ({"codebase_version": "v1.6"}, r"LeRobot v1\.6 dataset, which is not known"),
        ({"features": None}, "lacks features"),
        ({"features": [1]}, "lacks features"),
        ({"data_path": 3}, "data_path is 3; expected text such as"),
        ({"data_path": "data/{chunk}.parquet"}, r"but \{chunk\} is not known; a path can have chunk_index, file_index"),
        ({"data_path": "data/{chunk_index.parquet"}, r"data_path is .* cannot be read"),
        ({"data_path": "data/{chunk_index:zz}.parquet"}, "numbers are written as by"),
    ],
)
def test_info_contradicts(png_copy: Path, change: dict[str, object], message: str) -> None:
    info = json.loads((png_copy / "meta/info.json").read_text()) | change
    (png_copy / "meta/info.json").write_text(json.dumps({k: v for k, v in info.items() if v is not None}))
    if change == {"codebase_version": None}:
        shutil.rmtree(png_copy / "meta/episodes")
    _assert_one_line(png_copy, message)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("meta/info.json", "is no readable JSON file"),
        ("meta/tasks.parquet", "cannot be read as a parquet file"),
        ("meta/episodes/chunk-000/file-000.parquet", "cannot be read as a parquet file"),
        ("data/chunk-000/file-000.parquet", "cannot be read as a parquet file"),
    ],
)
def test_damaged_file(png_copy: Path, file: str, message: str) -> None:
    (png_copy / file).write_bytes(b"PAR1 not what it should be")
    _assert_one_line(png_copy, rf"{Path(file).name}(, episode 0: the file)? {message}")


def test_missing_data_file(h264_copy: Path) -> None:
    (h264_copy / "data/chunk-000/file-001.parquet").unlink()
    _assert_one_line(h264_copy, r"file-001\.parquet, episode 2: the file is missing; .* \(and 1 more: 3\)")
    assert LeRobotDataset(h264_copy, episodes=[0, 1]).num_frames == 78  # those in the other file still work


def test_episode_with_too_few_frames(png_copy: Path) -> None:
    path = png_copy / "data/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(path).slice(0, 150), path)
    _assert_one_line(png_copy, r"file-000\.parquet, episode 3: 30 frames, but the description says 41")


def test_unknown_task(png_copy: Path) -> None:
    path = png_copy / "meta/tasks.parquet"
    pq.write_table(pq.read_table(path).slice(0, 1), path)
    _assert_one_line(
        png_copy, r"episode 1: task_index 1 \(frame 0\) is not in the table of tasks of meta/, which has 1 task"
    )


def test_damaged_video(h264_copy: Path) -> None:
    path = h264_copy / "videos/observation.images.top/chunk-000/file-000.mp4"
    whole = path.read_bytes()
    path.write_bytes(b"\0" * 3000)
    _assert_one_line(h264_copy, r"file-000\.mp4, episode 0: no video can be read .* \(and 1 more: 1\); `pizero check`")
    start = whole.index(b"mdat") + 8
    path.write_bytes(whole[:start] + b"\xff" * 12000 + whole[start + 12000 :])
    with pytest.raises(UserError, match=r"file-000\.mp4, episode 1: the video"):
        LeRobotDataset(h264_copy).images("top", [50])


def test_damaged_image(png_copy: Path) -> None:
    path = png_copy / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    cells = table["observation.images.top"].to_pylist()
    cells[45]["bytes"] = cells[45]["bytes"][:60]
    cells[46]["bytes"] = None
    column = pa.array(cells, table["observation.images.top"].type)
    pq.write_table(table.set_column(0, table.schema.field(0), column), path)
    with pytest.raises(UserError, match=r"episode 1: 1 of 38 images of .* are missing, the first is that of frame 6"):
        LeRobotDataset(png_copy)
    dataset = LeRobotDataset(png_copy, cameras=[])
    with pytest.raises(UserError, match=r"file-000\.parquet, episode 1: frame 5 .* cannot be decoded"):
        dataset.images("top", [45])
    with pytest.raises(UserError, match=r"episode 1: frame 6 .* is missing: the file holds no image"):
        dataset.images("top", [46])


def test_wrong_requests() -> None:
    with pytest.raises(UserError, match="has no episode 7; it has 4, from 0 to 3"):
        LeRobotDataset(PNG, episodes=[0, 7])
    with pytest.raises(UserError, match="asked for twice"):
        LeRobotDataset(PNG, episodes=[1, 1])
    with pytest.raises(UserError, match="no episodes to read"):
        LeRobotDataset(PNG, episodes=[])
    with pytest.raises(UserError, match="no camera 'front'; it has top, wrist"):
        _PNG_DATASET.images("front", [0])
    with pytest.raises(UserError, match=r"no numeric column 'observation\.images\.top'; it has observation\.state"):
        _PNG_DATASET.column("observation.images.top")
    for frame in (-1, 161):
        with pytest.raises(IndexError, match=r"0 \.\.\. 160"):
            _PNG_DATASET.window("action", [frame], 2)


def _assert_one_line(root: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        LeRobotDataset(root)
    assert "\n" not in str(caught.value)


def _write(root: Path, *, image_format: str, lengths: list[int], fps: float) -> None:
    """One grey camera, twice as bright as the frame's number."""
    with LeRobotWriter(
        root, fps=fps, robot_type="toy", state_names=["x"], action_names=["dx"], cameras={"top": (64, 64)},
        image_format=image_format,
    ) as writer:  # fmt: skip
        for length in lengths:
            for frame in range(length):
                writer.add_frame([frame], [0], {"top": np.full((64, 64, 3), 2 * frame, np.uint8)})
            writer.save_episode("brighten")


# ---------------------------------------------------------------- older versions, bad episodes


def test_version_20_is_read_like_21(tmp_path: Path) -> None:
    """Its statistics are of the whole dataset."""
    root = shutil.copytree(PNG_V21, tmp_path / "v20")
    info = json.loads((root / "meta/info.json").read_text())
    (root / "meta/info.json").write_text(json.dumps(info | {"codebase_version": "v2.0"}))
    (root / "meta/episodes_stats.jsonl").unlink()
    (root / "meta/stats.json").write_text(json.dumps({"action": {"mean": [1.0, 2.0, 3.0]}}))
    dataset = LeRobotDataset(root)
    assert dataset.stats["action"]["mean"] == [1.0, 2.0, 3.0]
    np.testing.assert_array_equal(dataset.column("action"), LeRobotDataset(PNG_V21).column("action"))


def test_damaged_descriptions_of_version_21(tmp_path: Path) -> None:
    root = shutil.copytree(PNG_V21, tmp_path / "x")
    path = root / "meta/episodes.jsonl"
    whole = path.read_text()
    path.write_text(whole.replace('"length": 38', '"size": 38'))
    assert "does not say the length of episode 1: the rows are counted" in " ".join(LeRobotDataset(root).notes)
    path.write_text(whole.replace('"episode_index": 1', '"episode": 1'))
    _assert_one_line(root, r"episodes\.jsonl: line 2 has no episode_index")
    path.write_text("[" + whole)
    _assert_one_line(root, r"episodes\.jsonl is no readable file of JSON lines \(line 1")
    path.write_text("3\n" + whole)
    _assert_one_line(root, r"episodes\.jsonl: line 1 is no JSON object")


def test_bad_episodes_are_left_out(tmp_path: Path) -> None:
    """A missing video, a short data file: two of four, told in one line."""
    root = shutil.copytree(AV1_V21, tmp_path / "x")
    (root / "videos/chunk-000/observation.images.top/episode_000000.mp4").unlink()
    short = root / "data/chunk-000/episode_000001.parquet"
    pq.write_table(pq.read_table(short).slice(0, 30), short)
    with pytest.warns(UserWarning, match="skipped") as told:
        dataset = LeRobotDataset(root, skip_bad_episodes=True)
    assert [str(warning.message) for warning in told] == [
        f"{root}: skipped 2 of 4 episodes (missing file: 0; number of rows: 1); `pizero check` says more"
    ]
    assert [(fault.kind, fault.episode) for fault in dataset.faults] == [("missing file", 0), ("number of rows", 1)]
    assert dataset.episodes.tolist() == [2, 3]
    everything = LeRobotDataset(AV1_V21, episodes=[2, 3])
    np.testing.assert_array_equal(dataset.column("action"), everything.column("action"))
    np.testing.assert_array_equal(dataset.images("top", [5]), everything.images("top", [5]))
    (root / "data/chunk-000/episode_000002.parquet").write_bytes(b"nothing")
    (root / "data/chunk-000/episode_000003.parquet").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid 1")
    with pytest.raises(
        UserError, match=r"every episode \(4\) has a fault; the first: .*episode 0: the file is missing"
    ):
        LeRobotDataset(root, skip_bad_episodes=True)


def test_a_file_of_several_episodes_that_cannot_be_read(h264_copy: Path) -> None:
    (h264_copy / "data/chunk-000/file-001.parquet").write_bytes(b"PAR1 nothing")
    with pytest.warns(UserWarning, match=r"skipped 2 of 4 episodes \(unreadable data: 2-3\)"):
        dataset = LeRobotDataset(h264_copy, skip_bad_episodes=True)
    assert dataset.episodes.tolist() == [0, 1]


def test_a_video_that_ends_too_soon(h264_copy: Path) -> None:
    """The second file of a camera is the first one's, which is shorter than its episodes."""
    videos = h264_copy / "videos/observation.images.top/chunk-000"
    shutil.copy(videos / "file-000.mp4", videos / "file-001.mp4")
    with pytest.warns(UserWarning, match=r"skipped 2 of 4 episodes \(frames of the video: 2-3\)"):
        dataset = LeRobotDataset(h264_copy, skip_bad_episodes=True)
    assert dataset.faults[0].text == "the video has 5 frames fewer than its episodes have rows, and nothing shows where"
    assert dataset.faults[1].text == "the video ends at 7.800 s, before the episode does (8.300 s)"
    assert dataset.episodes.tolist() == [0, 1]


@pytest.mark.parametrize("name", ["10:22:33", "file:x", "a%05d[1] b"])
def test_relative_paths_of_any_name(
    h264_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    h264_copy.rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert LeRobotDataset(f"{name}/").images("top", [3]).shape == (1, 96, 96, 3)


# ---------------------------------------------------------------- columns that embodiments name


def add_column(root: Path, name: str, values: pa.Array, dtype: str) -> None:
    """To a dataset of one data file."""
    path = next((root / "data").rglob("*.parquet"))
    pq.write_table(pq.read_table(path).append_column(name, values), path)
    info = json.loads((root / "meta/info.json").read_text())
    info["features"][name] = {"dtype": dtype, "shape": [1], "names": None}
    (root / "meta/info.json").write_text(json.dumps(info))


def test_several_columns_side_by_side() -> None:
    dataset = LeRobotDataset(PNG)
    both = dataset.column(("action", "observation.state"))
    parts = [dataset.column("action"), dataset.column("observation.state")]
    np.testing.assert_array_equal(both, np.concatenate(parts, axis=1))
    values, is_pad = dataset.window(("observation.state", "action"), [3, 39], 4)
    for start, key in ((0, "observation.state"), (parts[1].shape[1], "action")):
        alone, alone_pad = dataset.window(key, [3, 39], 4)
        np.testing.assert_array_equal(values[..., start : start + alone.shape[2]], alone)
        np.testing.assert_array_equal(is_pad, alone_pad)
    with pytest.raises(UserError, match="no numeric column 'gripper'"):
        dataset.column(("action", "gripper"))


def test_prompts_from_a_column(png_copy: Path) -> None:
    texts = [f"step {frame}" for frame in range(161)]
    texts[40], texts[41] = "", None
    add_column(png_copy, "instruction", pa.array(texts), "string")
    dataset = LeRobotDataset(png_copy, episodes=[1, 0])
    frames = [0, 1, 2, 38]  # frames 40, 41, 42 of the file, then its first
    assert dataset.prompts(frames, "instruction") == ["", "", "step 42", "step 0"]
    assert dataset.prompts(frames, "instruction", "wait") == ["wait", "wait", "step 42", "step 0"]
    assert dataset.prompts(frames, "task", "wait") == dataset.prompts(frames)
    with pytest.raises(UserError, match="no column of text 'action'; it has task, instruction"):
        dataset.prompts(frames, "action")


def test_a_column_of_text_without_text(png_copy: Path) -> None:
    add_column(png_copy, "instruction", pa.array(range(161)), "string")
    with pytest.raises(UserError, match="'instruction' holds no text but int"):
        LeRobotDataset(png_copy).prompts([0], "instruction")
