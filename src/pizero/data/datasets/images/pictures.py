"""The pictures of a dataset's cameras: frames of videos, images in parquet files, images beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pizero.data.datasets.files.json_files import POINTER, POINTER_ADVICE
from pizero.data.datasets.files.open_files import OpenFiles
from pizero.data.datasets.files.parquet import EncodedImages, image_paths, rows_without_image
from pizero.data.datasets.images.image_files import ImageFinder
from pizero.data.datasets.images.png import DEPTH_MODES, OtherSizeError, decode_image, describe_image
from pizero.data.datasets.images.video import VideoDecoder, VideoError
from pizero.data.datasets.images.video_index import VideoIndex
from pizero.data.datasets.meta.layout import BadEpisodeError, Episode, Layout

_GREY = ("1", "L", "LA", "La", "gray", "gray8")


@dataclass(frozen=True)
class Kind:
    """What a picture is. mode: as Pillow calls it, or a video's pixel format."""

    height: int
    width: int
    mode: str

    @property
    def is_depth(self) -> bool:
        """More than 8 bits in one channel."""
        return self.mode.startswith(DEPTH_MODES) or (self.mode.startswith("gray") and self.mode not in _GREY)

    @property
    def note(self) -> str | None:
        """How it becomes red, green and blue, where that is not as usual."""
        if self.mode in _GREY:
            return "is grey: its one channel is used as red, green and blue"
        return "has four channels: the fourth, transparency, is dropped" if self.mode in ("RGBA", "RGBa") else None


@dataclass(frozen=True)
class Frame:
    """One frame of an episode: position in the episode, row in its data file."""

    episode: Episode
    position: int
    row: int


class Pictures:
    """May be shared by threads, forked and pickled. A picture that cannot be read is a BadEpisodeError."""

    def __init__(self, layout: Layout) -> None:
        self.videos = VideoIndex(layout.episodes, layout.fps, layout.interrupted)
        self._is_video = {key: feature.get("dtype") == "video" for key, feature in layout.features.items()}
        self._decoders = OpenFiles(VideoDecoder, limit=16)
        self._encoded = EncodedImages()
        self._finder = ImageFinder(layout.root)
        self._empty: dict[tuple[Path, str], list[int]] = {}
        self._said: dict[tuple[Path, str], Sequence[str | None] | None] = {}

    def read(self, key: str, frame: Frame, size: tuple[int, int]) -> NDArray[np.uint8]:
        """uint8 [h, w, 3]; OtherSizeError where height and width are not `size`."""
        if not self._is_video[key]:
            data, where = self._image(key, frame)
            try:
                return decode_image(data, size)
            except OtherSizeError:
                raise
            except ValueError as error:
                raise self._unread(key, frame, f"cannot be decoded ({error})", where) from None
        time = float(self.times(key, frame.episode)[frame.position])
        path = frame.episode.videos[key].path
        try:
            image = self._decoders.get(path).frame_at(time)
        except VideoError as error:
            raise _video_error(path, frame.episode, error) from None
        if image.shape[:2] != size:
            raise OtherSizeError((image.shape[0], image.shape[1]))
        return image

    def kind(self, key: str, frame: Frame) -> Kind:
        """Without decoding."""
        if self._is_video[key]:
            path = frame.episode.videos[key].path
            try:
                video = self.videos.file(path)
            except VideoError as error:
                raise _video_error(path, frame.episode, error) from None
            return Kind(video.height, video.width, video.pixels)
        data, where = self._image(key, frame)
        try:
            return Kind(*describe_image(data))
        except ValueError as error:
            raise self._unread(key, frame, f"cannot be decoded ({error})", where) from None

    def times(self, key: str, episode: Episode) -> NDArray[np.float64]:
        """Seconds [length] in its video at which the episode's frames are shown."""
        try:
            return self.videos.frames(episode, key)
        except VideoError as error:
            raise _video_error(episode.videos[key].path, episode, error) from None

    def beside(self, key: str, episode: Episode, rows: NDArray[np.int64]) -> list[Path | None] | None:
        """The image files [length] of an episode, None where one is missing; None where the data file holds them."""
        if (episode.data_path, key) not in self._said:
            self._said[episode.data_path, key] = image_paths(episode.data_path, key)
        said = self._said[episode.data_path, key]
        if said is None:
            return None
        find, index, path = self._finder.find, episode.index, episode.data_path
        numbers: list[int] = rows.tolist()
        return [find(said[row], key, index, frame, path) for frame, row in enumerate(numbers)]

    def missing(self, key: str, episode: Episode, rows: NDArray[np.int64]) -> list[int]:
        """Frames of an episode whose data file holds the images, but not theirs, which is nowhere else either."""
        if (episode.data_path, key) not in self._empty:
            self._empty[episode.data_path, key] = rows_without_image(episode.data_path, key)
        found: list[int] = []
        for number in np.flatnonzero(np.isin(rows, self._empty[episode.data_path, key])).tolist():
            try:
                self._image(key, Frame(episode, number, int(rows[number])))
            except BadEpisodeError:
                found.append(number)
        return found

    def _image(self, key: str, frame: Frame) -> tuple[bytes, Path]:
        """(encoded image, the file that holds it)."""
        episode = frame.episode
        value = self._encoded.read(episode.data_path, key, frame.row)
        if isinstance(value, bytes):
            return value, episode.data_path
        path = self._finder.find(value, key, episode.index, frame.position, episode.data_path)
        if path is None:
            named = f", and {value} is not there" if value else ""
            raise self._unread(key, frame, f"is missing: the file holds no image{named}", episode.data_path)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise self._unread(key, frame, f"cannot be read ({error.strerror})", path) from None
        if data.startswith(POINTER):
            raise self._unread(key, frame, POINTER_ADVICE, path)
        return data, path

    @staticmethod
    def _unread(key: str, frame: Frame, what: str, path: Path) -> BadEpisodeError:
        index = frame.episode.index
        return BadEpisodeError(f"{path}, episode {index}: frame {frame.position} of {key!r} {what}", [index])


def _video_error(path: Path, episode: Episode, error: VideoError) -> BadEpisodeError:
    return BadEpisodeError(f"{path}, episode {episode.index}: {error}", [episode.index])
