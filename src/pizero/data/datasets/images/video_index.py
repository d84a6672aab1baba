"""Which frames of the video files are an episode's, found by number, without decoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pizero.data.datasets.images.video import VideoError, VideoFrames, read_frames
from pizero.data.datasets.meta.layout import Episode

QUARTER = 0.25
"""Of a frame's time, by which a time may be off."""


@dataclass
class _Piece:
    """An episode's part of a video file, in seconds since the first frame; stop is None where nothing gives it."""

    episode: Episode
    start: float
    stop: float | None


class VideoIndex:
    """Where the episodes of a dataset lie in its video files. Each file is opened once, and nothing decoded.

    An episode's part of a video must have as many frames as the episode has rows: then the frame's number is the clock,
    whatever the time stamps say. A video with another rate than the rows gives the frame at each row's time.
    """

    def __init__(self, episodes: Sequence[Episode], fps: float, interrupted: bool = False) -> None:
        """episodes: all of the dataset, since those that share a file are compared. interrupted: others were recorded
        after them and are not listed.
        """
        self._fps = fps
        self._members: dict[tuple[str, Path], list[Episode]] = {}
        numbers = [episode.index for episode in episodes]
        # Where numbers are missing, episodes were taken out, and their frames may still be there.
        self._after_others = {b for a, b in zip([min(0, *numbers), *numbers], numbers, strict=False) if b > a + 1}
        self._before_others = {max(numbers)} if interrupted and numbers else set[int]()
        for episode in episodes:
            for key, video in episode.videos.items():
                self._members.setdefault((key, video.path), []).append(episode)
        self._files: dict[Path, VideoFrames | VideoError] = {}
        self._found: dict[tuple[str, Path], dict[int, NDArray[np.float64] | VideoError]] = {}

    def frames(self, episode: Episode, key: str) -> NDArray[np.float64]:
        """Seconds [length] at which the episode's frames are shown. Raises VideoError."""
        path = episode.videos[key].path
        if (key, path) not in self._found:
            self._found[key, path] = self._places(key, path)
        found = self._found[key, path][episode.index]
        if isinstance(found, VideoError):
            raise found
        return found

    def file(self, path: Path) -> VideoFrames:
        """Raises VideoError."""
        if path not in self._files:
            try:
                self._files[path] = read_frames(path)
            except VideoError as error:
                self._files[path] = error
        found = self._files[path]
        if isinstance(found, VideoError):
            raise found
        return found

    def _places(self, key: str, path: Path) -> dict[int, NDArray[np.float64] | VideoError]:
        members = self._members[key, path]
        try:
            pieces = _pieces(members, key, self.file(path))
            return _Places(self.file(path), pieces, self._fps, self._after_others, self._before_others).found
        except VideoError as error:
            return {episode.index: error for episode in members}


def _pieces(members: Sequence[Episode], key: str, file: VideoFrames) -> list[_Piece]:
    """In the order of the file. Some count from zero although the first frame is shown later."""
    ordered = sorted(members, key=lambda episode: (episode.videos[key].start, episode.index))
    first = float(file.times[0])
    origin = first if abs(ordered[0].videos[key].start - first) <= QUARTER * file.period else 0.0
    pieces = [_Piece(episode, episode.videos[key].start - origin, episode.videos[key].end) for episode in ordered]
    for piece, following in zip(pieces, [*pieces[1:], None], strict=True):
        if piece.stop is not None:
            piece.stop -= origin
        elif following is not None:
            piece.stop = following.start
    if all(_ends_with_its_last_frame(piece, file.period) for piece in pieces):
        for piece in pieces:
            piece.stop = None if piece.stop is None else piece.stop + file.period
    return pieces


def _ends_with_its_last_frame(piece: _Piece, period: float) -> bool:
    """Some recorders put the time of the last frame in the end's place."""
    short = piece.start + (piece.episode.length - 1) * period
    return piece.stop is not None and abs(piece.stop - short) <= QUARTER * period


class _Places:
    """Compares the pieces of one file with its frames, and with each other. found: by episode."""

    def __init__(
        self, file: VideoFrames, pieces: Sequence[_Piece], fps: float, after_others: set[int], before_others: set[int]
    ) -> None:
        """after_others, before_others: episodes beside which others were, whose frames may be in the file still."""
        self._file, self._fps, self._after_others, self._before_others = file, fps, after_others, before_others
        self._edges = np.append(file.times, file.times[-1] + file.period) - file.times[0]  # [n + 1]
        self.found: dict[int, NDArray[np.float64] | VideoError] = {}
        whole = [self._place(piece, alone=len(pieces) == 1) for piece in pieces]
        self._compare(pieces, whole)

    def _place(self, piece: _Piece, alone: bool) -> tuple[int, int]:
        """(first frame, the one after the last); puts the frames' times, or what is wrong, into `found`."""
        edges, count = self._edges, len(self._edges) - 1
        first, stop = _nearest(edges, piece.start), count if piece.stop is None else _nearest(edges, piece.stop)
        length = piece.episode.length
        allowed = QUARTER * self._file.period
        ends = [piece.start] if piece.stop is None else [piece.start, piece.stop]
        beyond = [time for time in ends if time > edges[-1] + allowed or time < -allowed]
        between = [time for time in ends if abs(time - edges[_nearest(edges, time)]) > allowed]
        times = self._file.times[first:stop]
        if beyond:
            fault = f"the video ends at {edges[-1]:.3f} s, before the episode does ({ends[-1]:.3f} s)"
        elif between:
            fault = f"{between[0]:.4f} s, where meta/ says that it begins or ends, lies between two frames of the video"
        elif len(times) == length:
            fault = None
        elif (chosen := self._by_time(times, length)) is not None:
            times, fault = chosen, None
        elif alone and first == 0 and stop == count:
            fault = f"the video holds {count} frames, the episode has {length} rows"
        else:
            fault = (
                f"its part of the video, {edges[first]:.3f} to {edges[stop]:.3f} s, holds {stop - first} frames, "
                f"the episode has {length} rows"
            )
        self.found[piece.episode.index] = times if fault is None else VideoError(fault)
        return first, stop

    def _by_time(self, times: NDArray[np.float64], length: int) -> NDArray[np.float64] | None:
        """The frames at the rows' times, of a video of another rate that lasts as long as the episode; else None."""
        period, row = self._file.period, 1 / self._fps
        lasts = len(times) * period
        if abs(period / row - 1) < 0.02 or not (length - 1 - QUARTER) * row <= lasts < (length + QUARTER) * row:
            return None
        wanted = times[0] + np.arange(length) * row
        nearest = np.array([_nearest(times, time) for time in wanted])
        if (np.abs(times[nearest] - wanted) > QUARTER * period).any():
            return None
        return times[nearest]

    def _compare(self, pieces: Sequence[_Piece], places: Sequence[tuple[int, int]]) -> None:
        """Neighbours must meet. What follows a hole or an overlap is believed if it fits the end of the video; and
        where the video has as many frames as all its episodes together, they lie one after the other.
        """
        sizes = [
            stop - first if isinstance(self.found[piece.episode.index], np.ndarray) else piece.episode.length
            for piece, (first, stop) in zip(pieces, places, strict=True)
        ]
        count, end, anchored = len(self._edges) - 1, 0, True
        for number, (piece, (first, stop)) in enumerate(zip(pieces, places, strict=True)):
            before = pieces[number - 1].episode.index if number else -1
            fault = None
            sure = count == sum(sizes) and first == sum(sizes[:number])
            if not sure and (first < end or (first > end and piece.episode.index not in self._after_others)):
                fault = self._gap(first - end, before, piece.start)
            anchored = anchored and fault is None and count != sum(sizes)
            anchored = anchored or first == count - sum(sizes[number:])
            if fault is None and not anchored:
                fault = f"it begins at {piece.start:.3f} s, but episodes before it do not meet: its frames are not sure"
            if fault is not None and not isinstance(self.found[piece.episode.index], VideoError):
                self.found[piece.episode.index] = VideoError(fault)
            end = stop
        last = pieces[-1].episode.index
        if end < count and isinstance(self.found[last], np.ndarray) and last not in self._before_others:
            # Whoever counts rows for the starts puts all that follows a discarded take at frames of the one before.
            self._all_unsure(f"the video has {count - end} frames more")
        stop, allowed = pieces[-1].stop, QUARTER * self._file.period
        lacking = isinstance(self.found[last], VideoError) and (stop is None or stop > self._edges[-1] + allowed)
        if lacking and count < sum(sizes):
            self._all_unsure(f"the video has {sum(sizes) - count} frames fewer")

    def _all_unsure(self, what: str) -> None:
        fault = f"{what} than its episodes have rows, and nothing shows where"
        for index, found in self.found.items():
            self.found[index] = VideoError(fault) if isinstance(found, np.ndarray) else found

    @staticmethod
    def _gap(frames: int, before: int, start: float) -> str:
        where = f"it begins at {start:.3f} s, "
        if frames < 0:
            return f"{where}where {-frames} frames are those of episode {before} as well"
        neighbour = f"the end of episode {before}" if before >= 0 else "the start of the video"
        return f"{where}and {frames} frames between it and {neighbour} belong to no episode"


def _nearest(values: NDArray[np.float64], wanted: float) -> int:
    """Position in rising values."""
    right = int(np.clip(np.searchsorted(values, wanted), 1, len(values) - 1)) if len(values) > 1 else 0
    return right - 1 if right and wanted - values[right - 1] < values[right] - wanted else right
