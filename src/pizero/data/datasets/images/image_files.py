"""Images that lie beside the parquet files: one file for each frame, at a path that the recording machine wrote."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from pizero.files import lies_inside

ENDINGS = (".png", ".jpg", ".jpeg", ".PNG", ".JPG", ".JPEG")


class ImageFinder:
    """Finds image files of a dataset by the path in its rows, or where LeRobot v2.0 puts them.

    Paths may be relative to the dataset, to its images, or to the data file; of an absolute one of another machine the
    end counts. No path leads out of the dataset, but for links in it. Rows are alike: the rule that held for the one
    before is tried first.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._last = 0

    def find(self, said: str | None, key: str, episode: int, frame: int, data_path: Path) -> Path | None:
        """The image of a frame (counted in its episode); None where there is none."""
        places = [] if not said else self._places(said, data_path)
        folder = self._root / "images" / key / f"episode_{episode:06d}"
        places += [folder / f"frame_{frame:06d}{ending}" for ending in ENDINGS]
        if self._last < len(places) and os.path.isfile(places[self._last]):
            return places[self._last]
        for number, place in enumerate(places):
            if os.path.isfile(place):
                self._last = number
                return place
        return None

    def _places(self, said: str, data_path: Path) -> list[Path]:
        path = PurePosixPath(said.replace("\\", "/"))
        parts = path.parts[1:] if path.is_absolute() else path.parts
        places = list(self._candidates(parts, data_path))
        return [place for place in places if lies_inside(place, self._root)] if ".." in parts else places

    def _candidates(self, parts: Sequence[str], data_path: Path) -> Iterator[Path]:
        yield self._root.joinpath(*parts)
        yield self._root.joinpath("images", *parts)
        yield data_path.parent.joinpath(*parts)
        for first in range(1, len(parts) - 1):  # a name alone is that of a frame in every episode
            yield self._root.joinpath(*parts[first:])
        for first in range(1, len(parts) - 1):
            yield self._root.joinpath("images", *parts[first:])
