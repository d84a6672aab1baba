"""Datasets of other kinds as LeRobot v3.0: LeRobot v2.0 and v2.1, robomimic's and ACT's HDF5."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pizero.checkpoints.files.remote import local_folder
from pizero.data.datasets.faults import ranges
from pizero.data.datasets.files.json_files import read_object
from pizero.data.datasets.files.parquet import merge
from pizero.data.datasets.hdf5 import open_hdf5
from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.datasets.meta.description import read_layout
from pizero.data.datasets.meta.features import NO_NUMBERS, number_keys
from pizero.data.datasets.meta.info import CHUNK_SIZE, DATA_PATH, INFO_PATH, VERSION, VIDEO_PATH
from pizero.data.datasets.meta.layout import BadEpisodeError, Layout
from pizero.data.datasets.subtasks import copy_subtasks
from pizero.data.datasets.writer.lerobot_files import DATA_FILE_MB, ROW_GROUP, VIDEO_FILE_MB, EpisodeTable
from pizero.data.datasets.writer.lerobot_meta import INDEX_TYPES, write_description
from pizero.data.datasets.writer.lerobot_stats import STAT_NAMES, ImageStats, Stats, merge_stats, numeric_stats
from pizero.data.datasets.writer.lerobot_writer import ImageFormat, LeRobotWriter
from pizero.files import new_folder
from pizero.types import UserError
from pizero.workflows.progress import tell, tell_notes

BATCH = 64
"""Frames that are decoded at a time."""


@dataclass(frozen=True)
class Converted:
    episodes: int
    frames: int


def convert_dataset(
    source: str | Path,
    target: Path,
    *,
    fps: float | None = None,
    prompt: str | None = None,
    image_format: ImageFormat = "h264",
    skip_bad_episodes: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Converted:
    """Writes `source` as a new LeRobot v3.0 dataset `target`, which appears when it is complete.

    LeRobot v2.0 and v2.1 (a folder, or an id on the hub): video files are copied as they are, one per episode, numbers
    and statistics are written again. HDF5 (a file of robomimic, a file or folder of ACT): images are encoded as
    `image_format`; fps and prompt are required, because the files do not store them.

    Episodes with faults are a BadEpisodeError, or with `skip_bad_episodes` are skipped. Episodes are numbered anew.
    """
    path = local_folder(source, "dataset")
    if path.suffix in (".hdf5", ".h5") or (path.is_dir() and any(path.glob("*.hdf5"))):
        if skip_bad_episodes:
            raise UserError(f"{path} is HDF5, of which no episodes can be skipped; remove --skip-bad-episodes")
        return _from_hdf5(path, target, fps, prompt, image_format, on_progress)
    if fps is not None or prompt is not None:
        raise UserError(f"{path} is no HDF5: a LeRobot dataset stores its fps and prompts; remove --fps and --prompt")
    layout = read_layout(path)
    if layout.version == VERSION:
        raise UserError(f"{path} is a LeRobot {VERSION} dataset already")
    dataset = LeRobotDataset(path, skip_bad_episodes=skip_bad_episodes)
    tell_notes(dataset.notes)
    while True:
        try:
            return _from_lerobot(layout, dataset, target, on_progress)
        except BadEpisodeError as error:  # an image that cannot be decoded
            good = [int(episode) for episode in dataset.episodes if episode not in error.episodes]
            if not skip_bad_episodes or not good:
                raise
            tell("skipped", f"{'episodes' if len(error.episodes) > 1 else 'episode'} {ranges(error.episodes)}: {error}")
            dataset = LeRobotDataset(path, episodes=good, cameras=())


# ---------------------------------------------------------------- LeRobot v2


def _from_lerobot(
    layout: Layout, dataset: LeRobotDataset, target: Path, on_progress: Callable[[int, int], None]
) -> Converted:
    keys = {camera: dataset.camera_key(camera) for camera in dataset.cameras}
    video = any(dataset.features[key]["dtype"] == "video" for key in keys.values())
    index = _index_columns(dataset)
    numbers = number_keys(dataset.features)
    totals: dict[str, Stats] = {}
    with new_folder(target) as folder:
        places = _merge_data(dataset, index, folder)
        table = EpisodeTable(folder, list(keys.values()), numbers, video)
        for number in range(dataset.num_episodes):
            start, length = int(dataset.episode_starts[number]), int(dataset.episode_lengths[number])
            frames = np.arange(start, start + length)
            columns = {key: index[key] if key in index else dataset.column(key) for key in numbers}
            stats = {key: numeric_stats(values[frames].reshape(length, -1)) for key, values in columns.items()}
            stats |= {key: _image_stats(dataset, camera, frames) for camera, key in keys.items()}
            row: dict[str, Any] = {
                "episode_index": number, "length": length,
                "tasks": list(dict.fromkeys(dataset.prompts(frames))),
                "dataset_from_index": start, "dataset_to_index": start + length,
                "data/chunk_index": places[number][0], "data/file_index": places[number][1],
                **_copy_videos(dataset, number, folder),
            }  # fmt: skip
            for key, found in stats.items():
                row |= {f"stats/{key}/{name}": found[name].tolist() for name in STAT_NAMES}
                totals[key] = merge_stats(totals.get(key), found)
            table.append(row)
            on_progress(number + 1, dataset.num_episodes)
        table.close()
        write_description(folder, _new_info(layout.root, dataset, video), dataset.tasks, totals)
        copy_subtasks(dataset, folder)
    return Converted(dataset.num_episodes, dataset.num_frames)


def _index_columns(dataset: LeRobotDataset) -> dict[str, NDArray[Any]]:
    """[F] each; episodes are numbered from 0 without holes, also where some were skipped."""
    return {
        "timestamp": dataset.timestamp, "frame_index": dataset.frame_index, "task_index": dataset.task_index,
        "episode_index": np.repeat(np.arange(dataset.num_episodes), dataset.episode_lengths),
        "index": np.arange(dataset.num_frames),
    }  # fmt: skip


def _merge_data(dataset: LeRobotDataset, index: dict[str, NDArray[Any]], folder: Path) -> list[tuple[int, int]]:
    """Data files of several episodes each; returns (chunk, file) by episode."""
    groups: list[list[int]] = [[]]
    size = 0
    places: list[tuple[int, int]] = []
    for number in range(dataset.num_episodes):
        files = dataset.files(number)
        paths = [files.data_path, *(path for images in files.images.values() for path in images)]
        more = sum(path.stat().st_size for path in paths)
        if groups[-1] and size + more > DATA_FILE_MB * 2**20:
            groups.append([])
            size = 0
        groups[-1].append(number)
        size += more
        places.append(divmod(len(groups) - 1, CHUNK_SIZE))
    for number, group in enumerate(groups):
        chunk, file = divmod(number, CHUNK_SIZE)
        first = dataset.episode_starts[group[0]]
        end = dataset.episode_starts[group[-1]] + dataset.episode_lengths[group[-1]]
        columns: dict[str, Any] = {key: values[first:end] for key, values in index.items()}
        for key in _vectors(dataset):  # LeRobot has a number where there is one dimension, not a list of one
            if dataset.column(key).shape[1] == 1:
                columns[key] = dataset.column(key)[first:end, 0]
        columns |= _images_beside(dataset, group)
        merge(
            [(files.data_path, files.rows) for files in map(dataset.files, group)],
            folder / DATA_PATH.format(chunk_index=chunk, file_index=file), ROW_GROUP, columns,
            kept={*dataset.features, *index},
        )  # fmt: skip
    return places


def _vectors(dataset: LeRobotDataset) -> list[str]:
    """The columns of numbers with one axis, such as state and action."""
    return [
        key for key, feature in dataset.features.items()
        if key not in INDEX_TYPES and len(feature.get("shape") or ()) == 1 and feature.get("dtype") not in NO_NUMBERS
    ]  # fmt: skip


def _images_beside(dataset: LeRobotDataset, episodes: Sequence[int]) -> dict[str, list[dict[str, Any]]]:
    """Columns of images that lie beside the data files, to be put into them."""
    columns: dict[str, list[dict[str, Any]]] = {}
    for number in episodes:
        for key, paths in dataset.files(number).images.items():
            cells = [{"bytes": path.read_bytes(), "path": path.name} for path in paths]
            columns.setdefault(key, []).extend(cells)
    return columns


def _copy_videos(dataset: LeRobotDataset, number: int, folder: Path) -> dict[str, Any]:
    """An episode's videos as they are, each a file of its own; returns its columns of the episode table."""
    chunk, file = divmod(number, CHUNK_SIZE)
    columns: dict[str, Any] = {}
    for key, (source, times) in dataset.files(number).videos.items():
        path = folder / VIDEO_PATH.format(video_key=key, chunk_index=chunk, file_index=file)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, path)
        period = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 1 / dataset.fps
        values = {
            "chunk_index": chunk, "file_index": file, "from_timestamp": float(times[0]),
            "to_timestamp": float(times[-1] + period),
        }  # fmt: skip
        columns |= {f"videos/{key}/{name}": value for name, value in values.items()}
    return columns


def _image_stats(dataset: LeRobotDataset, camera: str, frames: NDArray[np.int64]) -> Stats:
    found = ImageStats()
    for start in range(0, len(frames), BATCH):
        for image in dataset.images(camera, frames[start : start + BATCH]):
            found.add(image)
    return found.finish()


def _new_info(root: Path, dataset: LeRobotDataset, video: bool) -> dict[str, Any]:
    """The old info.json with what v3.0 calls otherwise, and the features that are used."""
    info = dict(read_object(root / INFO_PATH))
    for name in ("total_chunks", "total_videos"):
        info.pop(name, None)
    index = {key: {"dtype": kind, "shape": [1], "names": None} for key, kind in INDEX_TYPES.items()}
    widths = {key: dataset.features[key] | {"shape": [dataset.column(key).shape[1]]} for key in _vectors(dataset)}
    info["features"] = index | dataset.features | widths
    return info | {
        "fps": int(dataset.fps) if dataset.fps.is_integer() else dataset.fps,
        "codebase_version": VERSION, "chunks_size": CHUNK_SIZE, "data_files_size_in_mb": DATA_FILE_MB,
        "video_files_size_in_mb": VIDEO_FILE_MB, "data_path": DATA_PATH, "video_path": VIDEO_PATH if video else None,
        "total_episodes": dataset.num_episodes, "total_frames": dataset.num_frames, "total_tasks": len(dataset.tasks),
        "splits": {"train": f"0:{dataset.num_episodes}"},
    }  # fmt: skip


# ---------------------------------------------------------------- HDF5


def _from_hdf5(
    path: Path,
    target: Path,
    fps: float | None,
    prompt: str | None,
    image_format: ImageFormat,
    on_progress: Callable[[int, int], None],
) -> Converted:
    if not fps or not prompt:
        raise UserError(f"{path}: HDF5 files store neither the frame rate nor the instruction; give --fps and --prompt")
    with open_hdf5(path) as recording:
        state, action, cameras = recording.sizes()
        with LeRobotWriter(
            target, fps=fps, robot_type=recording.kind, image_format=image_format, cameras=cameras,
            state_names=[f"state_{i}" for i in range(state)], action_names=[f"action_{i}" for i in range(action)],
        ) as writer:  # fmt: skip
            for done, frames in enumerate(recording.episodes(), 1):
                for observed, acted, images in frames:
                    writer.add_frame(observed, acted, images)
                writer.save_episode(prompt)
                on_progress(done, len(recording))
        return Converted(writer.num_episodes, writer.num_frames)
