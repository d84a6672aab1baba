"""A LeRobot dataset's description, whatever the version."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pizero.data.datasets.meta.features import Feature
from pizero.types import UserError


class BadEpisodeError(UserError):
    """A fault of the files that concerns single episodes; `episodes` are their ids."""

    def __init__(self, message: str, episodes: Iterable[int]) -> None:
        super().__init__(message)
        self.episodes = tuple(episodes)


@dataclass(frozen=True)
class VideoSlice:
    """Where an episode's frames of one camera begin and end, in seconds; end is None where `meta/` does not say it."""

    path: Path
    start: float
    end: float | None = None


@dataclass(frozen=True)
class Episode:
    """tasks: the texts that `meta/` gives it."""

    index: int
    length: int
    data_path: Path
    videos: Mapping[str, VideoSlice] = field(default_factory=dict[str, VideoSlice])
    tasks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """A dataset's description. `tasks[i]` is the text of the task that the data's columns call `task_ids[i]`.

    task_ids: empty where nothing says it; then an episode's own `tasks` count. missing_cameras: why, by the camera's
    name, where info.json names one of which there is no file. notes: what was assumed where `meta/` is incomplete or
    contradicts itself, a line each. interrupted: info.json announces episodes after those that are listed.
    """

    root: Path
    version: str
    fps: float
    robot_type: str
    features: dict[str, Feature]
    tasks: list[str]
    task_ids: list[int]
    episodes: list[Episode]
    stats: dict[str, Any]
    missing_cameras: Mapping[str, str] = field(default_factory=dict[str, str])
    notes: list[str] = field(default_factory=list[str])
    interrupted: bool = False


def episodes_text(indices: Iterable[int], shown: int = 6) -> str:
    """ "episode 3", "episodes 1, 2 and 40 more"."""
    found = sorted(indices)
    more = f" and {len(found) - shown} more" if len(found) > shown else ""
    return f"episode{'s' if len(found) > 1 else ''} {', '.join(map(str, found[:shown]))}{more}"
