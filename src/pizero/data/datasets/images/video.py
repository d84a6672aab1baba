"""Frames in mp4 files, through PyAV: decoding by timestamp, encoding by episode."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any, Literal, cast

import av
import av.error
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from pizero.types import UserError

TOLERANCE = 1e-4
"""Seconds by which a frame's time may differ from the time asked for."""

VideoCodec = Literal["h264", "av1"]
# A keyframe every second frame makes random access cheap. Without B-frames, packets come out in the order of the
# frames, so that an episode's packets are simply appended. One thread: frames are small, and workers are many.
# AV1 presets above 10 store a slow motion's in-between frames as copies of the frame before: a delay of one step.
ENCODERS: dict[VideoCodec, tuple[str, dict[str, str]]] = {
    "h264": ("libx264", {"crf": "20", "g": "2", "bf": "0", "preset": "veryfast"}),
    "av1": ("libsvtav1", {"crf": "30", "g": "2", "preset": "10", "svtav1-params": "lp=1"}),
}
_UNTIMED = "the file does not say when its frames are shown; convert it to mp4"
_GLOBAL_HEADER = 1 << 22  # FFmpeg's flag: codec parameters go to the file's header, as mp4 needs


class VideoError(Exception):
    """A video that cannot give the frame asked for; one line, without the file's name."""


def _open(path: Path) -> tuple[Any, Any]:
    """(container, video stream). Raises VideoError."""
    try:
        # What is relative, with a colon, would be taken for a protocol; titles and the like are not always UTF-8.
        container = av.open(os.path.abspath(path), metadata_errors="replace")
        stream = container.streams.video[0]
        if cast("Any", stream.codec_context) is None:
            raise VideoError("no video can be read from the file (its codec is not known)")
        return container, stream
    except FileNotFoundError:
        raise VideoError("the file is missing; copy or download the dataset again") from None
    except (av.error.FFmpegError, IndexError, OSError) as error:
        raise VideoError(f"no video can be read from the file ({_reason(error)})") from None


class VideoDecoder:
    """One open video file. `frame_at` decodes forward where that is shorter, else from the keyframe before."""

    def __init__(self, path: Path) -> None:
        """Raises VideoError when the file is missing or holds no video."""
        self._container, self._stream = _open(path)
        self._stream.codec_context.thread_count = 1
        self._seconds_per_tick = float(self._stream.time_base or 0)
        rate = float(self._stream.average_rate or 30)
        self._reach = 16 / rate  # seconds; up to here, decoding forward costs less than seeking
        self._keyframe: float | None = None  # time of the last one met since the last seek
        self._reformatter = VideoReformatter()  # shared by all frames: making one costs more than a small frame
        self._frames: Iterator[av.VideoFrame] = iter(())
        self._frame: av.VideoFrame | None = None
        self._time = -1.0

    def frame_at(self, timestamp: float) -> NDArray[np.uint8]:
        """uint8 [h, w, 3]: the frame shown at `timestamp` (seconds, within TOLERANCE). Raises VideoError."""
        try:
            self._move_to(timestamp)
            assert self._frame is not None
            return cast("NDArray[np.uint8]", _convert(self._reformatter, self._frame, "rgb24").to_ndarray())
        except (av.error.FFmpegError, OSError) as error:
            self._frame = None  # what the decoder holds after an error is of no use
            raise VideoError(f"the video is damaged near {timestamp:.4f} s ({_reason(error)})") from None

    def _move_to(self, timestamp: float) -> None:
        ahead = timestamp - self._time
        if self._frame is None or ahead < -TOLERANCE or ahead > self._reach:
            self._seek(timestamp)
        before = self._time
        while self._time < timestamp - TOLERANCE:
            before = self._time
            if not self._advance():
                raise VideoError(f"the video ends at {before:.4f} s, but a frame at {timestamp:.4f} s is asked for")
        if self._time > timestamp + TOLERANCE:
            nearest = min(before, self._time, key=lambda time: abs(time - timestamp))
            raise VideoError(
                f"no frame at {timestamp:.4f} s; the nearest is at {nearest:.4f} s (tolerance {TOLERANCE} s)"
            )

    def _seek(self, timestamp: float) -> None:
        """Decodes the keyframe at or before `timestamp`."""
        held = self._time if self._frame is not None and self._time <= timestamp else -1.0
        margin = 0.0
        while True:
            target = max(0.0, timestamp - margin)
            self._keyframe = None
            self._container.seek(round(target / self._seconds_per_tick), stream=self._stream)
            self._frames = self._container.decode(self._stream)
            found = self._advance()
            if target == 0.0 and not found:
                raise VideoError(f"the video has no frame at {timestamp:.4f} s")
            if target == 0.0 or (found and self._time <= timestamp + TOLERANCE):
                break
            margin = 2 * margin + 1.0  # some files seek by decoding time and land too late, or show nothing from there
        if self._time <= held:
            self._reach *= 2  # keyframes lie further apart than that: going on would have been shorter

    def _advance(self) -> bool:
        frame = next(self._frames, None)
        self._frame = frame
        if frame is not None:
            self._time = (frame.pts or 0) * self._seconds_per_tick
            if frame.key_frame:
                if self._keyframe is not None:
                    self._reach = self._time - self._keyframe
                self._keyframe = self._time
        return frame is not None


@dataclass(frozen=True)
class VideoFrames:
    """The frames of a video file: times [n], seconds at which they are shown, rising; size and pixel format of all."""

    times: NDArray[np.float64]
    height: int
    width: int
    pixels: str
    period: float  # seconds between two frames, as a rule


def read_frames(path: Path) -> VideoFrames:
    """From the file's header where it has all, else from its packets; nothing is decoded. Raises VideoError."""
    container, stream = _open(path)
    with container:
        try:
            ticks = _ticks_of_header(container, stream, path)
            if ticks is None:
                ticks = _ticks_of_packets(container, stream)
        except (av.error.FFmpegError, OSError) as error:
            raise VideoError(f"the video is damaged ({_reason(error)})") from None
        if not len(ticks):
            raise VideoError("the video has no frames")
        times = ticks.astype(np.float64) * float(stream.time_base or 0)
        rate = float(stream.average_rate or 30)
        period = float(np.median(np.diff(times))) if len(times) > 1 else 1 / rate
        return VideoFrames(times, stream.height, stream.width, stream.codec_context.pix_fmt or "", period)


def _ticks_of_header(container: Any, stream: Any, path: Path) -> NDArray[np.int64] | None:
    """Times of the frames [n] by the index of mp4; None where it does not have them."""
    if "mp4" not in str(container.format.name):
        return None  # AVI begins to show later than it says
    entries = list(getattr(stream, "index_entries", ()))  # older versions of PyAV do not have it
    if not entries or len(entries) != stream.frames or stream.start_time is None:
        return None
    if max(entry.pos + entry.size for entry in entries) > path.stat().st_size:
        raise VideoError("the file is shorter than its own index says; copy or download the dataset again")
    decoding = np.array([entry.timestamp for entry in entries if not entry.is_discard], np.int64)
    steps = np.diff(decoding)
    if stream.codec_context.has_b_frames and steps.size and steps.min() != steps.max():
        return None  # the order of showing is another one
    return stream.start_time + decoding - decoding[:1]


def _ticks_of_packets(container: Any, stream: Any) -> NDArray[np.int64]:
    if container.format.name == "avi" and stream.codec_context.has_b_frames:
        raise VideoError(_UNTIMED)  # after a seek other times are guessed
    shown = [packet.pts for packet in container.demux(stream) if packet.size and not packet.is_discard]
    if None in shown:
        raise VideoError(_UNTIMED)
    return np.sort(np.array(shown, np.int64))


class EpisodeEncoder:
    """Encodes one episode of one camera; what it holds in memory is compressed. Dropping it discards the episode."""

    def __init__(self, codec: VideoCodec, fps: float, height: int, width: int) -> None:
        name, options = ENCODERS[codec]
        os.environ.setdefault("SVT_LOG", "0")  # else the AV1 encoder writes to the terminal, a page per episode
        context: Any = av.CodecContext.create(name, "w")
        self._time_base = 1 / _rate(fps)
        context.width, context.height, context.pix_fmt = width, height, "yuv420p"
        context.framerate, context.time_base = _rate(fps), self._time_base
        context.options, context.thread_count = dict(options), 1
        context.flags |= _GLOBAL_HEADER
        with _own_priority():
            context.open()
        self._context = context
        self._reformatter = VideoReformatter()
        self._packets: list[Any] = []
        self.num_frames = 0

    def add(self, image: NDArray[np.uint8]) -> None:
        rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        frame = _convert(self._reformatter, rgb, "yuv420p")
        frame.pts, frame.time_base = self.num_frames, self._time_base
        self._packets += self._context.encode(frame)
        self.num_frames += 1

    def finish(self) -> list[Any]:
        """The episode's packets, frame i at time i of the codec's time base."""
        return self._packets + self._context.encode(None)


class VideoFileWriter:
    """One mp4 file that takes encoded episodes one after the other."""

    def __init__(self, path: Path, codec: VideoCodec, fps: float, height: int, width: int) -> None:
        name, options = ENCODERS[codec]
        path.parent.mkdir(parents=True, exist_ok=True)
        self._container: Any = av.open(str(path), "w")
        stream: Any = self._container.add_stream(name, rate=_rate(fps), options=dict(options))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = 1 / _rate(fps)
        stream.codec_context.thread_count = 1
        with _own_priority():
            self._container.start_encoding()
        self._stream = stream
        self.num_frames = 0
        self.num_bytes = 0

    def append(self, packets: list[Any]) -> None:
        """Adds one episode's packets after those already there."""
        for packet in packets:
            packet.pts += self.num_frames
            packet.dts += self.num_frames
            packet.stream = self._stream
            self.num_bytes += packet.size
            self._container.mux(packet)
        self.num_frames += len(packets)

    def close(self) -> None:
        self._container.close()


def keep_frames(path: Path, count: int) -> None:
    """Removes what follows the first `count` frames of a file that `VideoFileWriter` wrote. Raises OSError where it has
    less, or cannot be read; nothing is encoded again.
    """
    try:
        there = len(read_frames(path).times)
    except VideoError as error:
        raise OSError(f"{path}: {error}") from None
    if there < count:
        raise OSError(f"{path} is not whole")
    if there == count:
        return
    new = path.with_name(f".{path.stem}.new{path.suffix}")
    with av.open(str(path)) as source, av.open(str(new), "w") as opened:
        target: Any = opened
        copied = target.add_stream_from_template(source.streams.video[0], opaque=True)
        packets = (packet for packet in source.demux(source.streams.video[0]) if packet.dts is not None)
        for packet in islice(packets, count):
            packet.stream = copied
            target.mux(packet)
    os.replace(new, path)


def check_encoding(codec: VideoCodec, camera: str, height: int, width: int) -> None:
    """UserError where frames of this size cannot be stored with the codec, or not with the installed PyAV."""
    encoder = ENCODERS[codec][0]
    if encoder not in av.codecs_available:
        raise UserError(f"PyAV {av.__version__} comes without {encoder}; upgrade it, or choose another image_format")
    if height % 2 or width % 2:
        raise UserError(
            f"camera {camera!r} is {height}x{width}, but video needs an even height and width; "
            'resize the frames or choose image_format="png"'
        )
    if codec == "av1" and min(height, width) < 64:
        raise UserError(
            f'camera {camera!r} is {height}x{width}, but av1 needs 64 pixels a side; choose "h264" or "png"'
        )


@contextmanager
def _own_priority() -> Generator[None]:
    """The AV1 encoder gives the thread that opens it real-time priority where it may (as root): it is taken back.

    Such a thread, when it waits busily, keeps every other process from running.
    """
    if not hasattr(os, "sched_getscheduler"):  # Linux alone has it
        yield
        return
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        if os.sched_getscheduler(0) != policy:
            os.sched_setscheduler(0, policy, parameters)


def _convert(reformatter: VideoReformatter, frame: av.VideoFrame, pixel_format: str) -> av.VideoFrame:
    """In this thread alone: threads of its own would outnumber the cores, and hang a process that was forked."""
    try:
        return reformatter.reformat(frame, format=pixel_format, threads=1)
    except TypeError:  # an older PyAV, which never starts threads here
        return reformatter.reformat(frame, format=pixel_format)


def _rate(fps: float) -> Fraction:
    return Fraction(fps).limit_denominator(1001)


def _reason(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(text.split())
