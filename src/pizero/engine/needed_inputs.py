"""What of an observation is computed at all: decided on the host, before anything is."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pizero.model.config import Pi0Config
from pizero.model.pi0_fast import Pi0FastConfig
from pizero.types import Observation

PROMPT_LENGTHS = (16, 48, 112)
"""Prompts are padded to the next of them, or to the model's own length, where shapes must be few."""


class Inputs(NamedTuple):
    """An observation without what nobody sees.

    images: per camera [B, h, w, 3]. present: [cameras, B] bool where some samples lack an image, else None.
    prompt: tokens [B, L]. padding: [B, P] bool, None where everything is seen. state: [B, state_dim] or None.
    starts: [B, P] bool of tokens that start a block, None where the prefix is one block; with it comes a padding.
    """

    images: tuple[Tensor, ...]
    present: Tensor | None
    prompt: Tensor
    padding: Tensor | None
    state: Tensor | None
    starts: Tensor | None = None


def make_inputs(
    observation: Observation,
    config: Pi0Config | Pi0FastConfig,
    device: torch.device,
    static: bool,
    computed: Collection[str] = (),
) -> Inputs:
    """Without the cameras and prompt slots that no sample uses; on a CPU without the images that a sample lacks.

    static: shapes must be few, see `PROMPT_LENGTHS`. computed: cameras that are computed though no sample has them.
    """
    cameras = [
        name for name in config.cameras
        if name in observation.images and (name in computed or bool(observation.image_masks[name].any()))
    ]  # fmt: skip
    slots = _slots(observation.prompt_mask, static)
    return take(observation, config, device, cameras, slots, skip_absent=not static and device.type == "cpu")


def take(
    observation: Observation, config: Pi0Config | Pi0FastConfig, device: torch.device, cameras: Sequence[str],
    slots: Tensor | slice, skip_absent: bool,
) -> Inputs:  # fmt: skip
    """These cameras and prompt slots. skip_absent: images that a sample lacks need not be computed."""
    shown = observation.prompt_mask[:, slots].cpu()
    masks = [observation.image_masks[name].cpu() for name in cameras]
    present = torch.stack(masks) if masks else torch.ones(0, len(shown)).bool()
    padding, causal, starts = None, observation.prompt_causal, None
    if not (bool(present.all()) and bool(shown.all())) or causal is not None:
        patch = config.vision.patch_size
        sizes = [observation.images[name].shape[1:3] for name in cameras]
        parts = [
            row[:, None].expand(-1, height // patch * (width // patch))
            for row, (height, width) in zip(present, sizes, strict=True)
        ]
        padding = torch.cat([*parts, shown], dim=1).to(device)
        if causal is not None:
            starts = torch.cat([*(part.new_zeros(part.shape) for part in parts), causal[:, slots].cpu()], dim=1)
            starts = starts.to(device)
    return Inputs(
        tuple(observation.images[name] for name in cameras),
        present if skip_absent and not bool(present.all()) else None,
        observation.prompt_tokens[:, slots], padding, observation.state if config.has_state_token else None,
        starts,
    )  # fmt: skip


def with_lost_cameras(observation: Observation, black: dict[str, Tensor]) -> Observation:
    """With a black image for each camera that was there in an earlier call and is not now; its mask says so.

    black: by camera, [1, h, w, 3]; takes those that are there.
    """
    images = dict(observation.images)
    for name, mask in observation.image_masks.items():
        if bool(mask.any()):
            black[name] = torch.zeros_like(images[name][:1])
        elif name in black and name not in images:
            images[name] = black[name].expand(len(mask), -1, -1, -1)
    return dataclasses.replace(observation, images=images)


def _slots(mask: Tensor, static: bool) -> Tensor | slice:
    """Which prompt slots are computed: those that a sample uses, or the first few."""
    used = torch.nonzero(mask.any(dim=0)).flatten()
    if not static:
        return used
    last = int(used[-1]) + 1 if len(used) else 0
    return slice(0, min((length for length in PROMPT_LENGTHS if length >= last), default=mask.shape[1]))
