"""The stored example of a checkpoint: an observation, the noise, and the action chunk that they must give."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import torch
from numpy.typing import NDArray

from pizero.data.pipeline import Pipeline
from pizero.model.action_model import ActionSampler
from pizero.model.pi0_fast import Pi0Fast
from pizero.policy.sampling import sample_chunks
from pizero.types import LARGEST_LENGTH, RobotDict, UserError

TOLERANCE, TOLERANCE_LOW_PRECISION = 2e-3, 1e-1
"""Largest error, as a part of each action dimension's largest value: other kernels and devices stay well below."""

_IMAGE = "image/"
_LARGEST_EXAMPLE = 256 << 20  # bytes


@dataclass(frozen=True)
class Example:
    """noise: [H, action_dim]; actions: [H, robot_action_dim] in robot units, from `num_steps` steps of sampling.
    Actions that lie before the observation are dropped.

    The observation has the history that the pipeline asks for. low_precision: whether the model that made the actions
    had weights or products in bfloat16, so that they are good to `TOLERANCE_LOW_PRECISION` only.
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
        np.savez_compressed(path, **values, **images)

    @staticmethod
    def load(path: Path) -> Example:
        """The inverse of `save`."""
        try:
            values = _read_arrays(path)
            images = {name.removeprefix(_IMAGE): values[name] for name in values if name.startswith(_IMAGE)}
            observation = {"state": values["state"], "images": images, "prompt": str(values["prompt"])}
            low = bool(values.get("low_precision", False))
            return Example(observation, values["noise"], values["actions"], int(values["num_steps"]), low)
        except UserError:
            raise
        except Exception as error:  # zip, zlib and NumPy have a dozen kinds for damaged files
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{path} cannot be read as an example ({reason}); copy the checkpoint again") from error


def make_example(
    model: ActionSampler | Pi0Fast,
    pipeline: Pipeline,
    observation: RobotDict,
    noise: NDArray[np.float32],
    num_steps: int | None = None,
) -> Example:
    """Runs the model once: what `save_checkpoint` stores. num_steps: None takes the model's own number."""
    num_steps = model.config.default_num_steps if num_steps is None else num_steps
    actions = sample_chunks(model, pipeline, [observation], noise[None], num_steps)[0]
    low = not _in_float32(model) or torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")
    return Example(observation, noise, actions, num_steps, low)


def reproduce(model: ActionSampler | Pi0Fast, pipeline: Pipeline, example: Example) -> float:
    """Runs the example again; the largest error, as a part of each action dimension's largest value.

    UserError when it is above the tolerance.
    """
    shape = model.config.action_horizon, model.config.action_dim
    if example.noise.shape != shape or example.noise.dtype != np.float32:
        raise UserError(f"the stored example's noise is {example.noise.shape}, this model takes {shape} of float32")
    if not 1 <= example.num_steps <= LARGEST_LENGTH:
        raise UserError(f"the stored example has {example.num_steps} steps of sampling; copy the checkpoint again")
    actions = sample_chunks(model, pipeline, [example.observation], example.noise[None], example.num_steps)[0]
    if actions.shape != example.actions.shape or example.actions.dtype.kind != "f":
        kind = f"{example.actions.shape} of {example.actions.dtype}"
        raise UserError(f"the stored example has actions {kind}, this model gives {actions.shape} of float32")
    scale = np.abs(example.actions).max(axis=0)
    floor = max(1e-3 * float(scale.max()), 1e-6)  # a dimension that is always 0 has no scale of its own
    error = float((np.abs(actions - example.actions) / np.maximum(scale, floor)).max())
    tolerance = TOLERANCE_LOW_PRECISION if example.low_precision or not _in_float32(model) else TOLERANCE
    if not error <= tolerance:  # NaN fails as well
        raise UserError(
            f"the checkpoint's stored example no longer reproduces: relative error {error:.2g}, at most {tolerance:g} "
            "allowed; its weights, statistics or transforms were changed"
        )
    return error


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


def _in_float32(model: ActionSampler | Pi0Fast) -> bool:
    return not isinstance(model, torch.nn.Module) or all(p.dtype == torch.float32 for p in model.parameters())
