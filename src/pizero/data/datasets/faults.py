"""What is wrong with single episodes of a dataset: found the same way by training, conversion and `pizero check`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pizero.data.datasets.files.columns import BadColumn, NumberColumns
from pizero.data.datasets.files.index_columns import index_faults
from pizero.data.datasets.files.json_files import POINTER_ADVICE, is_pointer
from pizero.data.datasets.files.rows import RowFinder
from pizero.data.datasets.images.pictures import Pictures
from pizero.data.datasets.images.video import VideoError
from pizero.data.datasets.images.video_index import QUARTER, VideoIndex
from pizero.data.datasets.meta.features import camera_keys
from pizero.data.datasets.meta.frame_rate import stamp_unit
from pizero.data.datasets.meta.layout import BadEpisodeError, Episode, Layout
from pizero.types import UserError

ADVICE = "`pizero check` shows all; --skip-bad-episodes leaves them out"
CLOCK_TOLERANCE = 1e-4
"""Seconds by which two frames may be more or less than 1 / fps apart."""


@dataclass(frozen=True)
class Fault:
    """kind: two or three words. text: what is seen, and what to do; None of it names the file or the episode."""

    kind: str
    episode: int
    text: str
    file: Path

    def __str__(self) -> str:
        return f"{self.file}, episode {self.episode}: {self.text}"


def find_faults(
    layout: Layout,
    episodes: Sequence[Episode],
    cameras: Collection[str] | None,
    pictures: Pictures,
    columns: NumberColumns | None = None,
    notes: list[str] | None = None,
) -> tuple[list[Fault], dict[int, NDArray[np.int64]]]:
    """(faults in the order of the episodes, rows [length] in their data files of those whose numbers are whole).

    cameras: whose files are looked at; None for all. No video is decoded. columns: those that are looked at; afterwards
    it holds them. notes: where to say what had to be assumed.
    """
    keys = [key for camera, key in camera_keys(layout.features).items() if cameras is None or camera in cameras]
    finder = RowFinder(episode.index for episode in layout.episodes)
    rows, faults = _find_rows(episodes, finder)
    whole = [episode for episode in episodes if episode.index in rows]
    for key in keys:
        if layout.features[key]["dtype"] == "video":
            faults += _find_video_faults(episodes, pictures.videos, key)
        else:
            faults += _find_image_faults(whole, rows, pictures, key)
    columns = columns or NumberColumns(layout.features)
    bad = columns.examine(whole, rows)
    faults += number_faults(bad)
    rows = {episode: own for episode, own in rows.items() if episode not in {found.episode.index for found in bad}}
    wrong = [*index_faults(layout, [episode for episode in whole if episode.index in rows], rows)]
    faults += [Fault(kind, episode.index, text, episode.data_path) for kind, episode, text in wrong]
    rows = {episode: own for episode, own in rows.items() if episode not in {found.index for _, found, _ in wrong}}
    if notes is not None:
        notes += [*finder.notes(), *columns.notes()]
    order = {episode.index: position for position, episode in enumerate(episodes)}
    return sorted(faults, key=lambda fault: order[fault.episode]), rows


def number_faults(bad: Iterable[BadColumn]) -> list[Fault]:
    return [Fault(found.kind, found.episode.index, found.text, found.episode.data_path) for found in bad]


def clock_note(fps: float, times: NDArray[np.float64], frames: Mapping[int, NDArray[np.int64]]) -> str | None:
    """What to say of time stamps [F] that are not the frame's number over fps; frames: of each episode.

    Their float32 rounding is no fault.
    """
    off: list[int] = []
    steps: list[NDArray[np.float64]] = []
    for episode, positions in frames.items():
        stamps = times[positions]
        steps.append(np.diff(stamps))
        allowed = CLOCK_TOLERANCE + 2 * np.spacing(np.abs(stamps[1:]).astype(np.float32)).astype(np.float64)
        even = np.abs(steps[-1] - 1 / fps) <= allowed
        if not (even.all() and abs(stamps[0]) <= QUARTER / fps):
            off.append(episode)
    if not off:
        return None
    step = float(np.nanmedian(np.concatenate(steps))) if any(map(len, steps)) else 1 / fps
    unit, name = stamp_unit(step)
    rate = "" if abs(step * fps - 1) < 0.02 else f" (they come {unit / step:.3g} a second)" if step > 0 else ""
    rate = f" (they are in {name})" if unit > 1 and abs(step * fps / unit - 1) < 0.02 else rate
    return (
        f"the time stamps of {len(off)} of {len(frames)} episodes ({ranges(off)}) are not the frame's number / fps, "
        f"fps {fps:g}{rate}: the number counts, not the time stamp"
    )


def _find_rows(episodes: Iterable[Episode], finder: RowFinder) -> tuple[dict[int, NDArray[np.int64]], list[Fault]]:
    """(rows [length] of each whole episode in its data file, faults of the others); each file is read once."""
    rows: dict[int, NDArray[np.int64]] = {}
    faults: list[Fault] = []
    for path, group in groupby(sorted(episodes, key=lambda e: e.data_path), key=lambda e: e.data_path):
        members = list(group)
        if (wrong := _file_fault(path)) is not None:
            faults += [Fault(wrong[0], episode.index, wrong[1], path) for episode in members]
            continue
        try:
            found = finder.find(path, members)
        except UserError as error:
            text = str(error).removeprefix(f"{path} ")
            faults += [Fault("unreadable data", episode.index, f"the file {text}", path) for episode in members]
            continue
        for episode in members:
            own = found[episode.index]
            if len(own) == episode.length:
                rows[episode.index] = own
            else:
                why = "the copy is incomplete: download the dataset again"
                if len(own) > episode.length:
                    why = "the description is wrong, or rows are there twice or of another episode"
                text = f"{len(own)} frames, but the description says {episode.length}; {why}"
                faults.append(Fault("number of rows", episode.index, text, path))
    return rows, faults


def _find_video_faults(episodes: Sequence[Episode], index: VideoIndex, key: str) -> list[Fault]:
    """Of a camera's videos: missing, unreadable, of another size, of other frames than the episode's rows."""
    faults: list[Fault] = []
    paths = list(dict.fromkeys(episode.videos[key].path for episode in episodes))

    def look(path: Path) -> tuple[str, str] | None:
        return _file_fault(path) or _video_fault(path, index)

    with ThreadPoolExecutor(8) as pool:  # files on a network answer late
        files = dict(zip(paths, pool.map(look, paths), strict=True))
    sizes = {path: (index.file(path).height, index.file(path).width) for path, wrong in files.items() if wrong is None}
    usual = Counter(sizes.values()).most_common(1)
    for episode in episodes:
        path = episode.videos[key].path
        wrong = files[path]
        if wrong is None and sizes[path] != usual[0][0]:
            (height, width), (most_height, most_width) = sizes[path], usual[0][0]
            wrong = (
                "size of the frames",
                f"its frames are {height}x{width}, those of most are {most_height}x{most_width}",
            )
        if wrong is None:
            try:
                index.frames(episode, key)
                continue
            except VideoError as error:
                wrong = "frames of the video", str(error)
        faults.append(Fault(wrong[0], episode.index, wrong[1], path))
    return faults


def _find_image_faults(
    episodes: Sequence[Episode], rows: Mapping[int, NDArray[np.int64]], pictures: Pictures, key: str
) -> list[Fault]:
    """Of a camera's images, in the data files or beside them: those that are not there."""
    faults: list[Fault] = []
    for episode in episodes:
        paths = pictures.beside(key, episode, rows[episode.index])
        if paths is None:
            missing, paths = pictures.missing(key, episode, rows[episode.index]), [None]
        else:
            missing = [frame for frame, path in enumerate(paths) if path is None]
        if paths[0] is not None and (wrong := _file_fault(paths[0])) is not None:
            faults.append(Fault(wrong[0], episode.index, wrong[1], paths[0]))
        elif missing:
            text = (
                f"{len(missing)} of {episode.length} images of {key!r} are missing, the first is that of frame "
                f"{missing[0]}; copy or download the dataset again"
            )
            faults.append(Fault("missing image", episode.index, text, episode.data_path))
    return faults


def refusal(faults: Sequence[Fault]) -> BadEpisodeError:
    """The first of them, how many more, and what can be done."""
    episodes = sorted({fault.episode for fault in faults})
    more = f" (and {len(episodes) - 1} more: {ranges(episodes, but=faults[0].episode)})" if len(episodes) > 1 else ""
    return BadEpisodeError(f"{faults[0]}{more}; {ADVICE}", episodes)


def nothing_left(faults: Sequence[Fault]) -> BadEpisodeError:
    """Where every episode has one."""
    episodes = {fault.episode for fault in faults}
    return BadEpisodeError(f"every episode ({len(episodes)}) has a fault; the first: {faults[0]}", episodes)


def left_out(faults: Sequence[Fault], count: int) -> str:
    """Which of `count` episodes were skipped, and why, in one line."""
    kinds = {kind: {fault.episode for fault in faults if fault.kind == kind} for kind in _kinds(faults)}
    told = "; ".join(f"{kind}: {ranges(episodes)}" for kind, episodes in kinds.items())
    return f"skipped {len({fault.episode for fault in faults})} of {count} episodes ({told}); `pizero check` says more"


def ranges(numbers: Iterable[int], but: int | None = None) -> str:
    """ "0, 4-7, 9"."""
    parts: list[list[int]] = []
    for number in sorted(set(numbers) - {but}):
        if parts and number == parts[-1][-1] + 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ", ".join("-".join(map(str, part)) for part in parts)


def _kinds(faults: Sequence[Fault]) -> list[str]:
    return list(dict.fromkeys(fault.kind for fault in faults))


def _file_fault(path: Path) -> tuple[str, str] | None:
    """(kind, text) of a file that is not there, or is the pointer that Git LFS leaves for it."""
    try:
        if is_pointer(path):
            return "Git LFS pointer", f"the file {POINTER_ADVICE}"
    except FileNotFoundError:
        return "missing file", "the file is missing; copy or download the dataset again"
    except OSError as error:
        return "unreadable file", f"the file cannot be read ({error.strerror})"
    return None


def _video_fault(path: Path, index: VideoIndex) -> tuple[str, str] | None:
    try:
        index.file(path)
    except VideoError as error:
        return "unreadable video", str(error)
    return None
