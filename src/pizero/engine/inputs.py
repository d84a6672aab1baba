"""What of an observation is computed at all: decided on the host, before anything is."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor

from pizero.model.config import Pi0Config
from pizero.types import Observation

PROMPT_LENGTHS = (16, 48, 112)
"""Prompts are padded to the next of them, or to the model's own length, where shapes must be few."""


class Inputs(NamedTuple):
    """An observation without what nobody sees.

    images: per camera [B, h, w, 3]. present: [cameras, B] bool where some samples lack an image, else None.
    prompt: tokens [B, L]. padding: [B, P] bool, None where everything is seen. state: [B, state_dim] or None.
    """

    images: tuple[Tensor, ...]
    present: Tensor | None
    prompt: Tensor
    padding: Tensor | None
    state: Tensor | None


def make_inputs(
    observation: Observation,
    config: Pi0Config,
    device: torch.device,
    drop_absent: bool,
    static: bool,
    kept: Collection[str] = (),
) -> Inputs:
    """drop_absent: without the cameras and prompt slots that no sample uses. static: see `PROMPT_LENGTHS`.
    kept: cameras that are computed though no sample has them.
    """
    given = [name for name in config.cameras if name in observation.images]
    masks = {name: observation.image_masks[name] for name in given}
    cameras = [name for name in given if name in kept or bool(masks[name].any())] if drop_absent else given
    slots = _slots(observation.prompt_mask, static) if drop_absent else slice(None)
    shown = observation.prompt_mask[:, slots].cpu()
    present = torch.stack([masks[name].cpu() for name in cameras]) if cameras else torch.ones(0, len(shown)).bool()
    padding = None
    if not (bool(present.all()) and bool(shown.all())):
        patch = config.vision.patch_size
        sizes = [observation.images[name].shape[1:3] for name in cameras]
        parts = [
            row[:, None].expand(-1, height // patch * (width // patch))
            for row, (height, width) in zip(present, sizes, strict=True)
        ]
        padding = torch.cat([*parts, shown], dim=1).to(device)
    skipped = drop_absent and not static and device.type == "cpu" and not bool(present.all())
    return Inputs(
        tuple(observation.images[name] for name in cameras), present if skipped else None,
        observation.prompt_tokens[:, slots], padding, observation.state if config.has_state_token else None,
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
