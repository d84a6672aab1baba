"""The stored example of a checkpoint or an export: an observation, the noise, and the chunk that they must give."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
from numpy.typing import NDArray

from pizero.types import RobotDict, UserError

_IMAGE = "image/"
_LARGEST_EXAMPLE = 256 << 20  # bytes


@dataclass(frozen=True)
class Example:
    """noise: [H, action_dim]; actions: [H, robot_action_dim] in robot units, from `num_steps` steps of sampling.
    Actions that lie before the observation are dropped.

    The observation has the history that the pipeline asks for. low_precision: whether the model that made the actions
    had weights or products in bfloat16, so that they are good to two digits only.
    """

    observation: RobotDict
    noise: NDArray[np.float32]
    actions: NDArray[np.float32]
    num_steps: int
    low_precision: bool = False

    def save(self, path: Path) -> None:
        """An .npz without pickled parts."""
        images = {_IMAGE + name: image for name, image in self.observation["images"].items()}
        values: dict[str, Any] = {
            "state": self.observation["state"], "prompt": np.array(self.observation["prompt"]), "noise": self.noise,
            "actions": self.actions, "num_steps": np.array(self.num_steps),
            "low_precision": np.array(self.low_precision),
        }  # fmt: skip
        if "subtask" in self.observation:
            values["subtask"] = np.array(self.observation["subtask"])
        np.savez_compressed(path, **values, **images)

    @staticmethod
    def load(path: Path) -> Example:
        """The inverse of `save`."""
        try:
            values = _read_arrays(path)
            images = {name.removeprefix(_IMAGE): values[name] for name in values if name.startswith(_IMAGE)}
            observation = {"state": values["state"], "images": images, "prompt": str(values["prompt"])}
            if "subtask" in values:
                observation["subtask"] = str(values["subtask"])
            low = bool(values.get("low_precision", False))
            return Example(observation, values["noise"], values["actions"], int(values["num_steps"]), low)
        except UserError:
            raise
        except Exception as error:  # zip, zlib and NumPy have a dozen kinds for damaged files
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{path} cannot be read as an example ({reason}); copy the checkpoint again") from error

    def error(self, actions: NDArray[np.float32]) -> float:
        """Of other actions: the largest distance, as a part of each action dimension's largest value.

        UserError where they have another shape.
        """
        if actions.shape != self.actions.shape or self.actions.dtype.kind != "f":
            kind = f"{self.actions.shape} of {self.actions.dtype}"
            raise UserError(f"the stored example has actions {kind}, this model gives {actions.shape} of float32")
        scale = np.abs(self.actions).max(axis=0)
        floor = max(1e-3 * float(scale.max()), 1e-6)  # a dimension that is always 0 has no scale of its own
        return float((np.abs(actions - self.actions) / np.maximum(scale, floor)).max())


def _read_arrays(path: Path) -> dict[str, Any]:
    """The arrays of an .npz; UserError when it would unpack to more than any example, before it does."""
    with ZipFile(path) as file:
        sizes = [entry.file_size for entry in file.infolist()]
        for name in file.namelist():
            with file.open(name) as member:
                version = np.lib.format.read_magic(member)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(member)
                sizes.append(math.prod(shape) * dtype.itemsize)
    if max(sizes, default=0) > _LARGEST_EXAMPLE or sum(sizes) > 4 * _LARGEST_EXAMPLE:
        raise UserError(f"{path} would unpack to {max(sizes) / 1e6:.0f} MB, more than any example; it is not read")
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}
