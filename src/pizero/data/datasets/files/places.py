"""Where the files of the episodes are: at what the templates of info.json give, or elsewhere in the dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from pizero.data.datasets.files.json_files import is_there
from pizero.data.datasets.meta.episode_table import Described
from pizero.data.datasets.meta.info import DATA_PATH, DATA_PATH_V2, INFO_PATH, VIDEO_PATH, VIDEO_PATH_V2, Info, fill
from pizero.types import UserError


def find_files(
    root: Path, info: Info, episodes: Sequence[Described], notes: list[str]
) -> list[tuple[Path, dict[str, Path]]]:
    """(data file, video files by column) of each episode; files that are nowhere are where info.json puts them."""
    cameras = {key for episode in episodes for key in episode.clips}
    if len(cameras) > 1 and "{video_key" not in info.video_path:
        raise UserError(
            f"{root / INFO_PATH}: video_path {info.video_path!r} has no {{video_key}}, but there are {len(cameras)} "
            "cameras with video"
        )
    data = _Finder(root, info.data_path, DATA_PATH_V2 if info.is_old else DATA_PATH, info.is_old)
    video = _Finder(root, info.video_path, VIDEO_PATH_V2 if info.is_old else VIDEO_PATH, info.is_old)
    found = [
        (
            data.path(episode.place),
            {key: video.path({**clip.place, "video_key": key}) for key, clip in episode.clips.items()},
        )
        for episode in episodes
    ]
    for key, finder in (("data_path", data), ("video_path", video)):
        if finder.moved:
            notes.append(
                f"{len(finder.moved)} files are not where {key} of meta/info.json puts them ({finder.template}), the "
                f"first is {finder.moved[0].relative_to(root)}: they are used from where they are"
            )
    return found


class _Finder:
    """by_name: names of files give the episode, so that one in another folder can be taken."""

    def __init__(self, root: Path, template: str, default: str, by_name: bool) -> None:
        self.template = template
        self.moved: list[Path] = []
        self._root = root
        self._default = default
        self._by_name = by_name
        self._known: dict[Path, Path] = {}

    def path(self, names: Mapping[str, int | str]) -> Path:
        path = fill(self._root, self.template, names)
        if path not in self._known:
            self._known[path] = path
            if not is_there(path):
                elsewhere = self._elsewhere(path, names)
                if elsewhere is not None:
                    self.moved.append(elsewhere)
                    self._known[path] = elsewhere
        return self._known[path]

    def _elsewhere(self, path: Path, names: Mapping[str, int | str]) -> Path | None:
        usual = fill(self._root, self._default, names)
        if is_there(usual):
            return usual
        below = path.relative_to(self._root).parts[1:]
        renamed = [
            found for found in self._files.get(path.name, []) if found.relative_to(self._root).parts[1:] == below
        ]
        if len(renamed) == 1 and len(below) > 1:
            return renamed[0]
        if not self._by_name:
            return None
        key = str(names.get("video_key", ""))
        own = {key, key.rpartition(".")[2]}
        alike = self._files.get(path.name, []) + (self._files.get(usual.name, []) if usual.name != path.name else [])
        if key:
            alike = [found for found in alike if own & set(found.parts)]
        return alike[0] if len(alike) == 1 else None

    @cached_property
    def _files(self) -> dict[str, list[Path]]:
        """All files with the template's ending, by name."""
        found: dict[str, list[Path]] = {}
        for path in sorted(self._root.rglob(f"*{Path(self._default).suffix}")):
            found.setdefault(path.name, []).append(path)
        return found
