"""What distinguishes a training's data from other data, kept in its checkpoints: a resume takes the same alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # with it come the libraries of the datasets
    from pizero.data.loader import Member

Mark = Mapping[str, Any]
"""Of one dataset, by what it is of; numbers and short texts."""


def data_marks(members: Sequence[Member]) -> list[dict[str, Any]]:
    """Of all datasets of a training. The folder's place is no part of it, so that data can be moved."""
    return [_mark(member) for member in members]


def differences(before: Sequence[Mark], now: Sequence[Mark]) -> list[str]:
    """What differs, in words; empty where nothing does."""
    if len(before) != len(now):
        return [f"{len(before)} datasets, now {len(now)}"]
    found: list[str] = []
    for number, (old, new) in enumerate(zip(before, now, strict=True), 1):
        where = f" of dataset {number}" if len(now) > 1 else ""
        for name in old:
            if old[name] != new.get(name):
                counted = isinstance(old[name], int | float)
                found.append(f"{name}{where}" + (f" ({old[name]:,}, now {new.get(name):,})" if counted else ""))
    return found


def _mark(member: Member) -> dict[str, Any]:
    dataset, robot = member.dataset, member.pipeline.embodiment
    cameras = list(robot.cameras.values())
    every = dataset.prompts(np.arange(dataset.num_frames), robot.prompt_key, robot.default_prompt)
    files = [(path.name, path.stat().st_size) for path in dataset.image_files(cameras)] if cameras else []
    subtasks = {} if dataset.subtasks is None else {"subtasks": _hash("\n".join(dataset.subtasks.texts))}
    return {
        **subtasks,
        "number of episodes": dataset.num_episodes,
        "number of frames": dataset.num_frames,
        "frames per second": float(dataset.fps),
        "share": -1.0 if member.weight is None else float(member.weight),
        "episodes": _hash(dataset.episodes, dataset.episode_lengths),
        "states": _hash(dataset.column(robot.state_key)),
        "actions": _hash(dataset.column(robot.action_key)),
        "instructions": _hash("\n".join(every)),
        "sizes of image files": _hash(repr(files)),
    }


def _hash(*parts: np.ndarray[Any, Any] | str) -> str:
    digest = hashlib.blake2b(digest_size=12)
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else np.ascontiguousarray(part).data)
    return digest.hexdigest()
