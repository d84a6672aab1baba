"""Decoded frames, resized to the model's size once: in memory, in a memory-mapped file, or decoded when asked for."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.datasets.meta.layout import BadEpisodeError
from pizero.data.images import resize_with_pad
from pizero.files import cache_folder, partial_path, remove_leftovers, write_bytes
from pizero.types import Convention, UserError

FrameStore: TypeAlias = Literal["auto", "memory", "disk", "decode"]
"""memory: decoded when a run starts. disk: decoded once into a file that later runs map into memory. decode: decoded
when asked for. auto: memory up to MEMORY_LIMIT, else disk where there is room, else decode.
"""
MEMORY_LIMIT = 2 * 2**30
"""Bytes of decoded frames."""
_VERSION = 1
_CHUNK = 64  # frames decoded and resized at once

OnProgress: TypeAlias = Callable[[int, int], None]
"""(frames done, frames in all)."""


class FrameCache:
    """Frames of some cameras, uint8 [F, height, width, 3] each, `images` by position in the dataset.

    May be shared by threads, forked and pickled; a file is mapped by every process for itself.
    """

    def __init__(
        self,
        dataset: LeRobotDataset,
        cameras: Sequence[str],
        image_size: tuple[int, int],
        *,
        store: FrameStore = "auto",
        convention: Convention = "openpi",
        folder: Path | None = None,
        on_progress: OnProgress | None = None,
        skip_bad_episodes: bool = False,
    ) -> None:
        """convention: of the resizing; "lerobot" is rounded to grey levels here. folder: for files of all
        datasets. A frame that cannot be decoded is a BadEpisodeError: at once, or with `skip_bad_episodes` after all
        are tried, of all the episodes that have one. UserError when the disk has no room.
        """
        if store not in get_args(FrameStore):
            raise UserError(f"frames: got {store!r}, expected one of {', '.join(get_args(FrameStore))}")
        self._dataset, self._size = dataset, image_size
        self._convention: Convention = convention
        self._folder = (folder or cache_folder() / "frames") / fingerprint(dataset, cameras, image_size, convention)
        self.num_bytes = dataset.num_frames * len(cameras) * image_size[0] * image_size[1] * 3
        for camera in cameras:
            remove_leftovers(self._path(camera))  # they may be what fills the disk
        self.store = self._choose(cameras) if store == "auto" else store
        self._frames: dict[str, NDArray[np.uint8]] = {}
        self._checks: dict[str, tuple[NDArray[np.uint32], NDArray[np.bool_]]] = {}
        if self.store != "decode":
            self._build(cameras, on_progress or (lambda done, total: None), skip_bad_episodes)

    def images(self, camera: str, frames: NDArray[np.int64]) -> NDArray[np.uint8]:
        """uint8 [N, h, w, 3] of the frames with these positions [N], in their order; [N, T, h, w, 3] of [N, T]."""
        if self.store == "memory":
            return self._frames[camera][frames]
        flat = frames.ravel()
        images = (
            self._mapped(camera, flat) if self.store == "disk" else self._resize(self._dataset.images(camera, flat))
        )
        return images.reshape(*frames.shape, *images.shape[1:])

    def _choose(self, cameras: Sequence[str]) -> FrameStore:
        if self.num_bytes <= MEMORY_LIMIT:
            return "memory"
        missing = [camera for camera in cameras if not self._path(camera).is_file()]
        return "disk" if not missing or self.num_bytes <= _free(self._folder) else "decode"

    def _build(self, cameras: Sequence[str], on_progress: OnProgress, skip_bad_episodes: bool) -> None:
        missing = [camera for camera in cameras if self.store == "memory" or not self._path(camera).is_file()]
        shape = (self._dataset.num_frames, *self._size, 3)
        total, done = len(missing) * shape[0], 0
        if missing and self.store == "disk" and total * int(np.prod(shape[1:])) > _free(self._folder):
            raise UserError(
                f"{self._folder} has no room for {total * int(np.prod(shape[1:])) / 1e9:.1f} GB of decoded frames; "
                "set PIZERO_CACHE to a folder on a larger disk, or use --frames decode"
            )
        faults: list[BadEpisodeError] = []
        for camera in missing:
            partial = None if self.store == "memory" else self._new_partial(camera)
            if partial is None:
                frames = np.empty(shape, np.uint8)
            else:
                frames = np.lib.format.open_memmap(partial, "w+", np.uint8, shape)
            sums = np.zeros(shape[0], np.uint32)
            try:
                for positions, images in self._decoded(camera, faults if skip_bad_episodes else None):
                    frames[positions.start : positions.stop] = images
                    if partial is not None:
                        sums[positions.start : positions.stop] = [zlib.crc32(image) for image in images]
                    done += len(positions)
                    on_progress(done, total)
                if faults:
                    continue
                if isinstance(frames, np.memmap) and partial is not None:
                    frames.flush()
                    write_bytes(self._path(camera, "crc32"), sums.tobytes())
                    self._describe(cameras)
                    partial.rename(self._path(camera))
                else:
                    self._frames[camera] = frames
            finally:
                if partial is not None:
                    partial.unlink(missing_ok=True)
        if faults:
            raise BadEpisodeError(
                f"{faults[0]}" + (f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""),
                sorted({episode for fault in faults for episode in fault.episodes}),
            )

    def _decoded(self, camera: str, faults: list[BadEpisodeError] | None) -> Iterator[tuple[range, NDArray[np.uint8]]]:
        """All frames of a camera, in pieces of an episode, as they are ready; decoding in threads holds no GIL."""

        def read(piece: range) -> tuple[range, NDArray[np.uint8]]:
            return piece, self._resize(self._dataset.images(camera, np.arange(piece.start, piece.stop)))

        workers = max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
        pieces = iter(self._pieces())
        with ThreadPoolExecutor(workers) as pool:
            waiting = {pool.submit(read, piece) for piece in islice(pieces, 2 * workers)}
            while waiting:
                finished = next(as_completed(waiting))
                waiting.remove(finished)
                waiting |= {pool.submit(read, piece) for piece in islice(pieces, 1)}
                try:
                    yield finished.result()
                except BadEpisodeError as fault:
                    if faults is None:
                        pool.shutdown(cancel_futures=True)
                        raise
                    faults.append(fault)

    def _pieces(self) -> Iterator[range]:
        dataset = self._dataset
        for start, length in zip(dataset.episode_starts.tolist(), dataset.episode_lengths.tolist(), strict=True):
            for first in range(start, start + length, _CHUNK):
                yield range(first, min(first + _CHUNK, start + length))

    def _mapped(self, camera: str, frames: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Every frame is checked against its checksum when it is first read."""
        if camera not in self._frames:
            self._frames[camera] = self._map(camera)
            sums = np.fromfile(self._path(camera, "crc32"), np.uint32)
            self._checks[camera] = sums, np.zeros(len(sums), np.bool_)
        images = np.asarray(self._frames[camera][frames])
        sums, known = self._checks[camera]
        for row in np.flatnonzero(~known[frames]).tolist():
            if zlib.crc32(images[row]) != sums[frames[row]]:
                raise UserError(
                    f"{self._path(camera)} is damaged at frame {frames[row]}; delete it, and it is made again"
                )
        known[frames] = True
        return images

    def _map(self, camera: str) -> NDArray[np.uint8]:
        path, shape = self._path(camera), (self._dataset.num_frames, *self._size, 3)
        try:
            frames = np.load(path, mmap_mode="r")
            if frames.shape != shape or self._path(camera, "crc32").stat().st_size != 4 * shape[0]:
                raise ValueError("its size is another than the dataset's")
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be used ({error}); delete it, and it is made again") from None
        return frames

    def _path(self, camera: str, kind: str = "npy") -> Path:
        return self._folder / f"{quote(camera, safe='')}.{kind}"

    def _new_partial(self, camera: str) -> Path:
        self._folder.mkdir(parents=True, exist_ok=True)
        return partial_path(self._path(camera))

    def _describe(self, cameras: Sequence[str]) -> None:
        """A note for people who wonder what the folder is."""
        values = {"dataset": str(self._dataset.root.resolve()), "cameras": list(cameras), "image_size": self._size}
        write_bytes(self._folder / "about.json", json.dumps(values, indent=1).encode())

    def _resize(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        resized = resize_with_pad(images, *self._size, self._convention)
        return (np.rint(resized) if self._convention == "lerobot" else resized).astype(np.uint8, copy=False)

    def __getstate__(self) -> dict[str, Any]:
        """Without the maps: pickled, they would become copies of the whole file."""
        state = dict(self.__dict__)
        return state if self.store == "memory" else state | {"_frames": {}, "_checks": {}}


def fingerprint(
    dataset: LeRobotDataset, cameras: Sequence[str], image_size: tuple[int, int], convention: Convention
) -> str:
    """Hexadecimal name of the frames that this dataset gives now: another when one of its files was changed since."""
    episodes = [dataset.episodes.tolist(), dataset.episode_lengths.tolist()]
    files = [(_name(path, dataset.root), *_size_and_time(path)) for path in dataset.image_files(cameras)]
    values = [_VERSION, convention, image_size, episodes, files]
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:24]


def _name(path: Path, root: Path) -> str:
    return str(path.relative_to(root) if path.is_relative_to(root) else path)


def _size_and_time(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:  # told with the episode when it is read
        return -1, 0
    return found.st_size, found.st_mtime_ns


def _free(folder: Path) -> int:
    """Bytes free on the disk of a folder that need not exist yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
