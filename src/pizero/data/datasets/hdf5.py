"""Episodes in HDF5 as robomimic and ACT (ALOHA) write them. Needs h5py: `pip install 'pizero[hdf5]'`.

robomimic: one file, data/demo_0, demo_1, ... with actions [T, d], obs/<name> [T, ...]; images are uint8 [T, h, w, 3]
    (https://robomimic.github.io/docs/datasets/overview.html).
ACT: one file per episode, episode_0.hdf5, ... with action [T, d], observations/qpos [T, d], observations/images/<name>
    uint8 [T, h, w, 3], or JPEG bytes (github.com/tonyzhaozh/act, record_sim_episodes.py).
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pizero.data.datasets.images.png import decode_image
from pizero.types import UserError

Frame = tuple[NDArray[np.float32], NDArray[np.float32], dict[str, NDArray[np.uint8]]]
"""State [d], action [d], images by camera [h, w, 3]."""


@dataclass(frozen=True)
class Hdf5Episodes:
    """kind: "robomimic" or "act". parts: by episode the open group that holds it."""

    kind: str
    parts: list[Any]

    def __len__(self) -> int:
        return len(self.parts)

    def sizes(self) -> tuple[int, int, dict[str, tuple[int, int]]]:
        """Widths of state and action; (height, width) by camera."""
        state, action, images = next(next(self.episodes()))
        return len(state), len(action), {name: (image.shape[0], image.shape[1]) for name, image in images.items()}

    def episodes(self) -> Iterator[Iterator[Frame]]:
        """Each episode as its frames; UserError names an episode that lacks something."""
        for part in self.parts:
            yield self._frames(part)

    def _frames(self, part: Any) -> Iterator[Frame]:
        where = f"{part.file.filename}, {part.name}"
        actions, states, images = self._columns(part, where)
        length = len(actions)
        for name, column in {"state": states, **images}.items():
            if len(column) != length:
                raise UserError(f"{where}: {len(column)} frames of {name}, but {length} actions; leave the episode out")
        for step in range(length):
            yield (
                np.asarray(states[step], dtype=np.float32),
                np.asarray(actions[step], dtype=np.float32),
                {name: _image(column[step], f"{where}, {name}, frame {step}") for name, column in images.items()},
            )

    def _columns(self, part: Any, where: str) -> tuple[Any, NDArray[Any], dict[str, Any]]:
        """actions, states [T, d], images by camera."""
        names = ("action", "observations/qpos", "observations/images") if self.kind == "act" else ("actions", "obs")
        missing = [name for name in names if name not in part]
        if missing:
            raise UserError(f"{where} has no {missing[0]}; expected an episode of {self.kind}")
        if self.kind == "act":
            pictures: Mapping[str, Any] = part["observations/images"]
            return part["action"], np.asarray(part["observations/qpos"]), dict(pictures.items())
        observed: Mapping[str, Any] = part["obs"]
        images = {name: column for name, column in observed.items() if column.dtype == np.uint8 and column.ndim == 4}
        numbers = [
            np.asarray(column).reshape(len(column), -1)
            for name, column in sorted(observed.items())
            if name not in images and column.ndim <= 2 and name.startswith("robot")
        ]
        if not numbers:
            raise UserError(f"{where} has no obs/robot*: no state of the robot is known")
        return part["actions"], np.concatenate(numbers, axis=1), images


@contextmanager
def open_hdf5(path: Path) -> Generator[Hdf5Episodes, None, None]:
    """A robomimic file, an ACT file, or a folder of ACT files. UserError when it is neither, or h5py is missing."""
    try:
        import h5py  # pyright: ignore[reportMissingImports, reportMissingTypeStubs]
    except ImportError:
        raise UserError("HDF5 needs h5py; install it with: pip install 'pizero[hdf5]'") from None
    files = sorted(path.glob("*.hdf5"), key=_number) if path.is_dir() else [path]
    with ExitStack() as stack:
        try:
            opened: list[Any] = [stack.enter_context(h5py.File(file, "r")) for file in files]  # pyright: ignore
        except OSError as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{path} cannot be read as HDF5 ({reason}); copy it again") from error
        if len(opened) == 1 and "data" in opened[0]:
            group = opened[0]["data"]
            names = sorted((name for name in group if name.startswith("demo")), key=lambda name: _number(Path(name)))
            found = Hdf5Episodes("robomimic", [group[name] for name in names])
        else:
            found = Hdf5Episodes("act", opened)
        if not len(found):
            raise UserError(f"{path} holds no episodes")
        yield found


def _number(path: Path) -> tuple[int, str]:
    digits = re.findall(r"\d+", path.stem)
    return int(digits[-1]) if digits else -1, path.name


def _image(stored: NDArray[np.uint8], where: str) -> NDArray[np.uint8]:
    """[h, w, 3]; one-dimensional: a compressed file, with zeros behind it."""
    if stored.ndim == 3 and stored.shape[2] == 3:
        return np.asarray(stored)
    if stored.ndim == 1:
        try:
            return decode_image(stored.tobytes())
        except ValueError as error:
            raise UserError(f"{where}: the image cannot be decoded ({error})") from None
    raise UserError(f"{where}: got an image of shape {stored.shape}, expected [h, w, 3] or a compressed one")
