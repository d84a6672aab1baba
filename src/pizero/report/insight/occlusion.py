"""Which parts of the input the chunk depends on: one is blanked, and the chunk is made again from the same noise.

Attention shows where a model looks, not what follows from it; this shows what follows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pizero.types import Observation

Sample: TypeAlias = Callable[[Observation], Tensor]
"""Observations [B, ...] -> their chunks [B, H, D], all from one noise."""

BATCH = 16


@dataclass(frozen=True)
class Occlusion:
    """How far the chunk moves, root mean square over its actions and the robot's dimensions, in normalised units.

    windows: by camera [rows, columns], a window of the image filled with the image's mean colour. cameras: the same for
    the whole image. words: for each token of the prompt, taken away; empty where the model reads none.
    """

    windows: dict[str, NDArray[np.float32]]
    cameras: dict[str, float]
    words: NDArray[np.float32]


def occlude(sample: Sample, observation: Observation, grids: dict[str, tuple[int, int]], dims: int) -> Occlusion:
    """observation: of batch size 1. grids: (rows, columns) of windows by camera. dims: those of the robot."""
    whole = _chunks(sample, [observation], dims)
    blanked: list[Observation] = []
    for camera, grid in grids.items():
        blanked += _windows(observation, camera, grid) + _windows(observation, camera, (1, 1))
    kept = [int(place) for place in observation.prompt_mask[0].nonzero().flatten()]
    blanked += [_without(observation, place) for place in kept]
    moved = np.sqrt(np.square(_chunks(sample, blanked, dims) - whole).mean(axis=(1, 2)))
    start, windows, cameras = 0, dict[str, NDArray[np.float32]](), dict[str, float]()
    for camera, (rows, columns) in grids.items():
        end = start + rows * columns
        windows[camera], cameras[camera] = moved[start:end].reshape(rows, columns), float(moved[end])
        start = end + 1
    return Occlusion(windows, cameras, moved[start:])


def count(grids: dict[str, tuple[int, int]], observation: Observation) -> int:
    """How many chunks `occlude` makes."""
    return 1 + sum(rows * columns + 1 for rows, columns in grids.values()) + int(observation.prompt_mask.sum())


def _chunks(sample: Sample, observations: list[Observation], dims: int) -> NDArray[np.float32]:
    found = [
        sample(_joined(observations[start : start + BATCH]))[..., :dims].float().cpu().numpy()
        for start in range(0, len(observations), BATCH)
    ]
    return np.concatenate(found)


def _windows(observation: Observation, camera: str, grid: tuple[int, int]) -> list[Observation]:
    """The image [1, (T,) h, w, 3] with one window blank, row by row."""
    image = observation.images[camera]
    height, width = image.shape[-3], image.shape[-2]
    rows = np.linspace(0, height, grid[0] + 1).round().astype(int)
    columns = np.linspace(0, width, grid[1] + 1).round().astype(int)
    found: list[Observation] = []
    for top, bottom in pairwise(rows):
        for left, right in pairwise(columns):
            blank = image.clone()
            blank[..., top:bottom, left:right, :] = image.mean(dim=(-3, -2), keepdim=True)
            found.append(replace(observation, images={**observation.images, camera: blank}))
    return found


def _without(observation: Observation, place: int) -> Observation:
    mask = observation.prompt_mask.clone()
    mask[0, place] = False
    return replace(observation, prompt_mask=mask)


def _joined(observations: list[Observation]) -> Observation:
    """One batch; all but images and the prompt's mask is the same in all of them."""
    first, size = observations[0], len(observations)
    repeated = first[torch.zeros(size, dtype=torch.long)]
    images = {name: torch.cat([one.images[name] for one in observations]) for name in first.images}
    return replace(repeated, images=images, prompt_mask=torch.cat([one.prompt_mask for one in observations]))
