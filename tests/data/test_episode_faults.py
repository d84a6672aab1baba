"""Faults of single episodes: files, rows, frames of videos that are shared; clocks, which are none."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pizero.data.datasets.faults import find_faults, ranges
from pizero.data.datasets.images.pictures import Pictures
from pizero.data.datasets.images.video import (
    EpisodeEncoder,
    VideoDecoder,
    VideoError,
    VideoFileWriter,
    keep_frames,
    read_frames,
)
from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.datasets.meta.description import read_layout
from pizero.data.datasets.meta.layout import BadEpisodeError
from pizero.data.datasets.writer.lerobot_writer import LeRobotWriter
from pizero.workflows.convert_dataset import convert_dataset

FPS = 10
LENGTHS = (5, 6, 7, 6)
BRIGHTER = 8  # grey levels from frame to frame of the whole dataset
VIDEO = "videos/observation.images.top/chunk-000/file-000.mp4"
FROM, TO = (f"videos/observation.images.top/{name}_timestamp" for name in ("from", "to"))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four episodes in one video; frame i of the dataset has the grey level 8 i."""
    root = tmp_path_factory.mktemp("written") / "data"
    with LeRobotWriter(
        root, fps=FPS, robot_type="toy", state_names=["x"], action_names=["dx"], cameras={"top": (32, 32)},
    ) as writer:  # fmt: skip
        frame = 0
        for length in LENGTHS:
            for _ in range(length):
                writer.add_frame([frame], [0], {"top": np.full((32, 32, 3), BRIGHTER * frame, np.uint8)})
                frame += 1
            writer.save_episode("brighten")
    return root


@pytest.fixture
def root(written: Path, tmp_path: Path) -> Path:
    return shutil.copytree(written, tmp_path / "data")


def change(path: Path, column: str, values: Callable[[np.ndarray], Any], kind: pa.DataType | None = None) -> None:
    """A column of a parquet file becomes values(column); None takes it out."""
    table = pq.read_table(path)
    index = table.column_names.index(column)
    new = values(table[column].to_numpy().copy())
    if new is None:
        pq.write_table(table.drop_columns([column]), path)
    else:
        field = table.schema.field(index) if kind is None else pa.field(column, kind)
        pq.write_table(table.set_column(index, field, pa.array(new, field.type)), path)


def slices(root: Path, starts: Sequence[float], ends: Sequence[float] | None) -> None:
    episodes = root / "meta/episodes/chunk-000/file-000.parquet"
    change(episodes, FROM, lambda _: np.array(starts))
    change(episodes, TO, lambda _: None if ends is None else np.array(ends))


def video(path: Path, levels: Sequence[int], fps: float = FPS, size: int = 32) -> None:
    """One frame for each grey level."""
    encoder = EpisodeEncoder("h264", fps, size, size)
    for level in levels:
        encoder.add(np.full((size, size, 3), level, np.uint8))
    writer = VideoFileWriter(path, "h264", fps, size, size)
    writer.append(encoder.finish())
    writer.close()


def levels(dataset: LeRobotDataset) -> list[int]:
    """Of each frame, in frames of the dataset."""
    images = dataset.images("top", np.arange(dataset.num_frames))
    return np.rint(images.mean(axis=(1, 2, 3)) / BRIGHTER).astype(int).tolist()


def faults(root: Path) -> dict[int, str]:
    """Texts by episode, as training says the first of them."""
    with pytest.warns(UserWarning, match="skipped"):
        dataset = LeRobotDataset(root, skip_bad_episodes=True)
    with pytest.raises(BadEpisodeError, match=re.escape(str(dataset.faults[0]))) as refused:
        LeRobotDataset(root)
    assert "\n" not in str(refused.value)
    assert refused.value.episodes == tuple(sorted({fault.episode for fault in dataset.faults}))
    assert not set(refused.value.episodes) & set(dataset.episodes.tolist())
    return {fault.episode: fault.text for fault in dataset.faults}


def faults_of_all(root: Path) -> dict[int, str]:
    """Where no episode is without one."""
    with pytest.raises(BadEpisodeError, match="every episode"):
        LeRobotDataset(root, skip_bad_episodes=True)
    layout = read_layout(root)
    return {fault.episode: fault.text for fault in find_faults(layout, layout.episodes, None, Pictures(layout))[0]}


STARTS, ENDS = [0.0, 0.5, 1.1, 1.8], [0.5, 1.1, 1.8, 2.4]


def test_whole(root: Path) -> None:
    dataset = LeRobotDataset(root)
    assert levels(dataset) == list(range(24))
    assert (dataset.faults, dataset.notes) == ([], [])


@pytest.mark.parametrize("off", [0.0005, -0.0005, 0.02])
@pytest.mark.parametrize("ends", [True, False])
def test_slices_less_than_a_quarter_of_a_frame_off(root: Path, off: float, ends: bool) -> None:
    slices(root, [start + off for start in STARTS], [end + off for end in ENDS] if ends else None)
    assert levels(LeRobotDataset(root)) == list(range(24))


def test_slices_one_frame_off(root: Path) -> None:
    slices(root, [0.0, 0.5, 1.2, 1.9], ENDS)
    found = faults(root)
    assert found == {
        2: "its part of the video, 1.200 to 1.800 s, holds 6 frames, the episode has 7 rows",
        3: "its part of the video, 1.900 to 2.400 s, holds 5 frames, the episode has 6 rows",
    }


def test_slices_one_frame_off_at_both_ends(root: Path) -> None:
    """Every episode from there on, also those that have the right length and meet their neighbour."""
    slices(root, [0.0, 0.6, 1.2, 1.9], [0.5, 1.2, 1.9, 2.5])
    found = faults(root)
    assert set(found) == {1, 2, 3}
    assert found[2] == "it begins at 1.200 s, but episodes before it do not meet: its frames are not sure"
    slices(root, [0.0, 0.5, 1.2, 1.9], None)  # each ends where the next one begins
    assert set(faults(root)) == {1, 2, 3}


def test_slices_that_end_with_the_time_of_their_last_frame(root: Path) -> None:
    starts = np.cumsum(LENGTHS) - LENGTHS
    slices(root, starts / FPS, (starts + LENGTHS - 1) / FPS)
    assert levels(LeRobotDataset(root)) == list(range(sum(LENGTHS)))
    slices(root, starts / FPS, (starts + LENGTHS - [1, 1, 1, 0]) / FPS)
    with pytest.raises(BadEpisodeError, match="holds 4 frames, the episode has 5 rows"):  # not all of them do
        LeRobotDataset(root)


def test_half_a_frame_off(root: Path) -> None:
    slices(root, [0.0, 0.55, 1.1, 1.8], ENDS)
    assert faults(root) == {
        1: "0.5500 s, where meta/ says that it begins or ends, lies between two frames of the video"
    }


def discard(root: Path, after: int, frames: int) -> None:
    """A take of so many black frames after that frame of the video."""
    kept = [BRIGHTER * frame for frame in range(sum(LENGTHS))]
    video(root / VIDEO, [*kept[:after], *[0] * frames, *kept[after:]])


def test_a_discarded_take_in_an_episode(root: Path) -> None:
    discard(root, 5, 9)
    slices(root, [0.0, 0.5, 2.0, 2.7], [0.5, 2.0, 2.7, 3.3])
    assert faults(root) == {1: "its part of the video, 0.500 to 2.000 s, holds 15 frames, the episode has 6 rows"}
    with pytest.warns(UserWarning, match="skipped"):
        assert levels(LeRobotDataset(root, skip_bad_episodes=True)) == [*range(5), *range(11, 24)]


def test_a_discarded_take_between_episodes(root: Path) -> None:
    discard(root, 5, 9)
    slices(root, [0.0, 1.4, 2.0, 2.7], [0.5, 2.0, 2.7, 3.3])
    assert faults(root) == {
        1: "it begins at 1.400 s, and 9 frames between it and the end of episode 0 belong to no episode"
    }


def test_frames_of_nobody_at_the_end(root: Path) -> None:
    """The take may be anywhere where rows were counted for the starts; else another episode was recorded last."""
    discard(root, 24, 4)
    text = "the video has 4 frames more than its episodes have rows, and nothing shows where"
    with pytest.raises(BadEpisodeError, match=rf"episode 0: {text} \(and 3 more: 1-3\)"):
        LeRobotDataset(root)
    info = root / "meta/info.json"
    info.write_text(info.read_text().replace('"total_episodes": 4', '"total_episodes": 5'))
    dataset = LeRobotDataset(root)
    assert levels(dataset) == list(range(24))
    assert "meta/info.json says total_episodes 5" in dataset.notes[0]
    slices(root, STARTS, None)
    assert faults(root) == {3: "its part of the video, 1.800 to 2.800 s, holds 10 frames, the episode has 6 rows"}


@pytest.mark.parametrize("missing", [0, 8, 23])
@pytest.mark.parametrize("ends", [True, False])
def test_a_video_that_lacks_a_frame_somewhere(root: Path, missing: int, ends: bool) -> None:
    """Rows were counted for the starts, so that the last episode alone seems to lack it."""
    video(root / VIDEO, [BRIGHTER * frame for frame in range(24) if frame != missing])
    slices(root, STARTS, ENDS if ends else None)
    found = faults_of_all(root)
    assert found[0] == "the video has 1 frames fewer than its episodes have rows, and nothing shows where"
    assert set(found) == {0, 1, 2, 3}


@pytest.mark.parametrize("ends", [True, False])
def test_a_video_that_lacks_a_frame_where_the_slices_tell(root: Path, ends: bool) -> None:
    video(root / VIDEO, [BRIGHTER * frame for frame in range(24) if frame != 8])
    slices(root, [0.0, 0.5, 1.0, 1.7], [0.5, 1.0, 1.7, 2.3] if ends else None)
    assert faults(root) == {1: "its part of the video, 0.500 to 1.000 s, holds 5 frames, the episode has 6 rows"}
    with pytest.warns(UserWarning, match="skipped"):
        assert levels(LeRobotDataset(root, skip_bad_episodes=True)) == [*range(5), *range(11, 24)]


def test_an_episode_taken_out_and_its_starts_counted_anew(root: Path) -> None:
    """The frames at the end are no interrupted recording's: the numbers tell that one before them is missing."""
    episodes, data = root / "meta/episodes/chunk-000/file-000.parquet", root / "data/chunk-000/file-000.parquet"
    for path in (episodes, data):
        table = pq.read_table(path)
        pq.write_table(table.filter([index != 2 for index in table["episode_index"].to_pylist()]), path)
    slices(root, [0.0, 0.5, 1.1], [0.5, 1.1, 1.7])
    text = "the video has 7 frames more than its episodes have rows, and nothing shows where"
    assert faults_of_all(root) == dict.fromkeys((0, 1, 3), text)


def test_slices_that_overlap(root: Path) -> None:
    slices(root, [0.0, 0.5, 1.1, 1.7], [0.5, 1.1, 1.8, 2.3])
    assert faults(root)[3] == "it begins at 1.700 s, where 1 frames are those of episode 2 as well"


def test_episodes_that_were_taken_out(root: Path) -> None:
    """Numbers are missing, and their frames are still in the video: the slices are right."""
    episodes, data = root / "meta/episodes/chunk-000/file-000.parquet", root / "data/chunk-000/file-000.parquet"
    for path in (episodes, data):
        table = pq.read_table(path)
        pq.write_table(table.filter([index != 1 for index in table["episode_index"].to_pylist()]), path)
    info = root / "meta/info.json"
    info.write_text(info.read_text().replace('"total_episodes": 4', '"total_episodes": 3').replace("24,", "18,"))
    assert levels(LeRobotDataset(root)) == [*range(5), *range(11, 24)]


def test_files_that_are_not_there(root: Path) -> None:
    (root / VIDEO).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 5\n")
    with pytest.raises(BadEpisodeError, match=r"a Git LFS pointer: run `git lfs pull` .* \(and 3 more: 1-3\)"):
        LeRobotDataset(root)
    (root / VIDEO).unlink()
    with pytest.raises(BadEpisodeError, match=r"file-000\.mp4, episode 0: the file is missing; .* \(and 3 more: 1-3\)"):
        LeRobotDataset(root)
    assert LeRobotDataset(root, cameras=["other"]).num_episodes == 4  # not the robot's


def test_a_copy_that_broke_off(root: Path) -> None:
    """The index stands in front of the frames in many files, which then open although their end is missing."""
    whole = root / "whole.mp4"
    (root / VIDEO).rename(whole)
    with av.open(str(whole)) as source, av.open(str(root / VIDEO), "w", options={"movflags": "faststart"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    assert levels(LeRobotDataset(root)) == list(range(24))
    (root / VIDEO).write_bytes((root / VIDEO).read_bytes()[:-20])
    with pytest.raises(BadEpisodeError, match="the file is shorter than its own index says"):
        LeRobotDataset(root)


def test_a_video_of_another_rate(root: Path) -> None:
    """Thirty frames a second for ten rows: the frame at each row's time, if the video lasts as long."""
    video(root / VIDEO, [BRIGHTER * (frame // 3) for frame in range(72)], 3 * FPS)
    assert levels(LeRobotDataset(root)) == list(range(24))
    slices(root, STARTS, [*ENDS[:3], 2.3])
    assert set(faults(root)) == {3}


def remux(path: Path, ticks: Sequence[int]) -> None:
    """The same frames, shown at these ticks of 1/1000 s."""
    before = path.with_name("before.mp4")
    path.rename(before)
    with av.open(str(before)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(source.streams.video[0]) if packet.dts is not None]
        for packet, tick in zip(packets, ticks, strict=True):
            packet.stream, packet.time_base = stream, Fraction(1, 1000)
            packet.pts = packet.dts = tick
            target.mux(packet)
    before.unlink()


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """v2.1: a video for each episode, frame i of which is 4 i + 40 bright; lengths 40, 38, 42, 41."""
    root = shutil.copytree(Path(__file__).parents[1] / "golden/lerobot/datasets/v21_av1", tmp_path / "old")
    for episode, length in enumerate((40, 38, 42, 41)):
        video(old_video(root, episode), range(40, 40 + 4 * length, 4), size=96)
    return root


def old_video(root: Path, episode: int) -> Path:
    return root / f"videos/chunk-000/observation.images.top/episode_{episode:06d}.mp4"


def old_frames(root: Path) -> list[int]:
    """Of episodes 0 and 1, as numbers in their video."""
    images = LeRobotDataset(root, episodes=[0, 1], cameras=["top"]).images("top", np.arange(78))
    return np.rint((images.mean(axis=(1, 2, 3)) - 40) / 4).astype(int).tolist()


TICKS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "wall clock": lambda number: 100 * number + np.random.default_rng(1).integers(0, 60, len(number)),
    "starts late": lambda number: 100 * number + 300,
    "another rate": lambda number: 54 * number,
    "a pause": lambda number: 100 * number + 5000 * (number > 20),
    "whole milliseconds": lambda number: np.round(1000 * number / 30).astype(int),
}


@pytest.mark.parametrize("name", TICKS)
def test_clocks_of_videos_with_the_right_number_of_frames(old: Path, name: str) -> None:
    for episode, length in ((0, 40), (1, 38)):
        remux(old_video(old, episode), TICKS[name](np.arange(length)).tolist())
    assert old_frames(old) == [*range(40), *range(38)]


@pytest.mark.parametrize("frames", [1, 39, 41, 60])
def test_a_video_with_more_or_fewer_frames_than_rows(old: Path, tmp_path: Path, frames: int) -> None:
    """A take that was discarded, or the last frames lost: never cut to the right length."""
    video(old_video(old, 0), range(40, 40 + 3 * frames, 3), size=96)
    text = re.escape(f"episode_000000.mp4, episode 0: the video holds {frames} frames, the episode has 40 rows")
    with pytest.raises(BadEpisodeError, match=text):
        LeRobotDataset(old)
    with pytest.raises(BadEpisodeError, match=text):
        convert_dataset(old, tmp_path / "new")
    with pytest.raises(BadEpisodeError, match=text):  # also where nobody looked before
        LeRobotDataset(old, cameras=()).images("top", [3])
    with pytest.warns(UserWarning, match="skipped 1 of 4"):
        assert convert_dataset(old, tmp_path / "new", skip_bad_episodes=True).episodes == 3


def test_frames_that_are_shown_in_another_order_than_stored(old: Path) -> None:
    """B-frames, with an even clock, which the header tells, and with an uneven one, which it does not."""
    for uneven in (False, True):
        with av.open(str(old_video(old, 0)), "w") as target:
            stream = target.add_stream("libx264", rate=FPS, options={"bf": "3", "g": "12"})
            stream.width, stream.height, stream.pix_fmt = 96, 96, "yuv420p"
            stream.codec_context.time_base = Fraction(1, 1000)
            for number in range(40):
                frame = av.VideoFrame.from_ndarray(np.full((96, 96, 3), 40 + 4 * number, np.uint8), format="rgb24")
                frame.pts = 100 * number + (number % 3) * 20 * uneven
                frame.time_base = Fraction(1, 1000)
                for packet in stream.encode(frame):
                    target.mux(packet)
            for packet in stream.encode(None):
                target.mux(packet)
        assert old_frames(old) == [*range(40), *range(38)]


def encoded(path: Path, codec: str, options: dict[str, str], count: int, size: int = 32) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=FPS, options=options)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for level in range(count):
            frame = av.VideoFrame.from_ndarray(np.full((size, size, 3), BRIGHTER * level, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def decoded(path: Path, frames: Sequence[int]) -> list[int]:
    decoder, times = VideoDecoder(path), read_frames(path).times
    return [round(decoder.frame_at(times[frame]).mean() / BRIGHTER) for frame in frames]


def test_a_keyframe_after_which_nothing_is_shown(tmp_path: Path) -> None:
    """With intra refresh the decoder shows nothing until a picture is whole again: it must begin earlier."""
    path = tmp_path / "a.mp4"
    encoded(path, "libx264", {"x264-params": "intra-refresh=1:keyint=12"}, 30, 96)
    order = [29, 28, 3, 27, 12, 26]
    assert decoded(path, order) == order


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
def test_avi(tmp_path: Path, codec: str) -> None:
    """Its first frame is shown later than its header says; with B-frames it cannot be told when."""
    path = tmp_path / "a.avi"
    encoded(path, codec, {"bf": "0", "g": "6", "b": "2000000"}, 20)
    order = [*range(20), 15, 3, 12, 19, 0]
    np.testing.assert_allclose(decoded(path, order), order, atol=0.5)
    encoded(path, codec, {"bf": "2", "g": "6"}, 20)
    with pytest.raises(VideoError, match="does not say when its frames are shown; convert it to mp4"):
        read_frames(path)


def test_a_file_that_does_not_say_when_frames_are_shown(tmp_path: Path) -> None:
    path = tmp_path / "a.h264"
    encoded(path, "libx264", {}, 5)
    with pytest.raises(VideoError, match="does not say when its frames are shown"):
        read_frames(path)


def test_a_title_in_another_encoding(root: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole.mp4"
    (root / VIDEO).rename(whole)
    with av.open(str(whole)) as source, av.open(str(root / VIDEO), "w") as target:
        target.metadata["title"] = "Camera"
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    (root / VIDEO).write_bytes((root / VIDEO).read_bytes().replace(b"Camera", b"Cam\xe9ra"))
    assert levels(LeRobotDataset(root)) == list(range(24))


def test_a_codec_that_is_not_known(root: Path) -> None:
    path = root / VIDEO
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz"))
    with pytest.raises(BadEpisodeError, match=r"episode 0: no video can be read .*codec is not known"):
        LeRobotDataset(root)


def test_a_video_of_another_size(old: Path) -> None:
    video(old_video(old, 2), range(42), size=64)
    with pytest.raises(BadEpisodeError, match="episode 2: its frames are 64x64, those of most are 96x96"):
        LeRobotDataset(old)


CLOCKS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "jitter": lambda times: times + np.random.default_rng(0).uniform(0, 0.03, len(times)),
    "begins at one": lambda times: times + 0.1,
    "epoch": lambda times: times + 1.7e9,
    "another rate": lambda times: times * 10 / 9.25,
    "goes on": lambda times: np.arange(len(times)) / FPS,
    "stands still": lambda times: np.zeros(len(times)),
    "a gap": lambda times: times + 3 * (np.arange(len(times)) > 8),
    "not a number": lambda times: np.where(np.arange(len(times)) == 8, np.nan, times),
}


@pytest.mark.parametrize("name", CLOCKS)
@pytest.mark.parametrize("kind", [pa.float32(), pa.float64()], ids=str)
def test_the_number_of_a_frame_counts_not_its_time_stamp(root: Path, name: str, kind: pa.DataType) -> None:
    change(root / "data/chunk-000/file-000.parquet", "timestamp", CLOCKS[name], kind)
    dataset = LeRobotDataset(root)
    assert levels(dataset) == list(range(24))
    [note] = dataset.notes
    assert "of 4 episodes" in note
    assert "the number counts" in note
    assert ("9.25 a second" in note) == (name == "another rate")


def test_frames_at_the_end_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    video(path, range(0, 80, 10))
    before = VideoDecoder(path).frame_at(0.4)
    keep_frames(path, 5)
    assert read_frames(path).times.tolist() == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    np.testing.assert_array_equal(VideoDecoder(path).frame_at(0.4), before)
    keep_frames(path, 5)
    with pytest.raises(OSError, match="not whole"):
        keep_frames(path, 6)
    assert [found.name for found in tmp_path.iterdir()] == ["a.mp4"]


def test_ranges() -> None:
    assert ranges([4, 0, 1, 2, 9]) == "0-2, 4, 9"
    assert ranges([3, 4], but=3) == "4"


def test_a_pipe_in_the_place_of_a_file(root: Path) -> None:
    """Opening it would wait for ever."""
    (root / VIDEO).unlink()
    os.mkfifo(root / VIDEO)
    with pytest.raises(BadEpisodeError, match=r"no file, but a folder, a device or a pipe"):
        LeRobotDataset(root)
