"""Random changes of training images, drawn for each sample."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Generator, Tensor
from torch.nn import functional

from pizero.types import UserError

AugmentationKind: TypeAlias = Literal["openpi", "shift", "none"]

_CROP = 0.95
_DEGREES = 5.0
_BRIGHTNESS, _CONTRAST, _SATURATION = 0.3, 0.4, 0.5


@dataclass(frozen=True)
class BatchPart:
    """Which samples of a batch these are: part `index` of `count` equal ones. All parts draw the same numbers, those of
    the whole batch, and take their own.
    """

    index: int = 0
    count: int = 1

    def rand(self, shape: tuple[int, ...], dim: int, generator: Generator | None, device: torch.device) -> Tensor:
        """Draws in [0, 1), this part's share of `shape` along the samples' dimension `dim`."""
        return self.of(torch.rand(self.whole(shape, dim), generator=generator, device=device), dim)

    def whole(self, shape: tuple[int, ...], dim: int) -> tuple[int, ...]:
        """The shape of the whole batch, of whose part `shape` is."""
        return (*shape[:dim], shape[dim] * self.count, *shape[dim + 1 :])

    def of(self, batch: Tensor, dim: int) -> Tensor:
        """This part of a whole batch."""
        size = batch.shape[dim] // self.count
        return batch.narrow(dim, self.index * size, size)


WHOLE = BatchPart()


SHIFT = 4


@dataclass(frozen=True)
class Augmentation:
    """Changes a camera's images [B, h, w, 3] in [-1, 1], each sample by its own draw; the result stays in range.

    The T images of an observation history, [B, T, h, w, 3], share their sample's draw.

    "openpi": crops 95 % and rotates by up to 5 degrees, but not the wrist cameras (those with "wrist" in their name);
        brightness, contrast and saturation change on all cameras.
    "shift": moves each image by up to `SHIFT` pixels, the edge repeated.
    "none": nothing.
    """

    kind: AugmentationKind = "openpi"

    def __post_init__(self) -> None:
        if self.kind not in get_args(AugmentationKind):
            raise UserError(f"augmentation: got {self.kind!r}, expected one of {', '.join(get_args(AugmentationKind))}")

    def __call__(
        self, camera: str, image: Tensor, generator: Generator | None = None, part: BatchPart = WHOLE
    ) -> Tensor:
        """camera: the model camera's name. image: [B, h, w, 3] or [B, T, h, w, 3], `part` of a batch."""
        if self.kind == "none":
            return image
        frames = image.shape[1] if image.ndim == 5 else 1
        flat = image.flatten(0, -4)  # [B * T, h, w, 3]
        if self.kind == "shift":
            flat = random_shift(flat, SHIFT, generator, frames, part)
        elif self.kind == "openpi" and "wrist" not in camera:
            flat = crop_and_rotate(flat, generator, frames, part)
        if self.kind == "openpi":
            flat = color_jitter(flat, generator, frames, part)
        return flat.view(image.shape)


def random_shift(
    image: Tensor, shift: int, generator: Generator | None = None, frames: int = 1, part: BatchPart = WHOLE
) -> Tensor:
    """Moves each image [B, h, w, 3] by whole pixels in [-shift, shift] both ways; any type.

    `frames` images in a row share a draw.
    """
    batch, height, width, _ = image.shape
    draw = (_uniform((batch // frames, 2), 0, generator, image.device, part) * (2 * shift + 1)).floor().long() - shift
    draw = draw.repeat_interleave(frames, dim=0)
    rows = (torch.arange(height, device=image.device) + draw[:, :1]).clamp(0, height - 1)
    columns = (torch.arange(width, device=image.device) + draw[:, 1:]).clamp(0, width - 1)
    first = torch.arange(batch, device=image.device)[:, None, None] * height
    pixels = (first + rows[:, :, None]) * width + columns[:, None, :]
    return image.reshape(-1, image.shape[-1]).index_select(0, pixels.flatten()).view(image.shape)


def crop_and_rotate(
    image: Tensor, generator: Generator | None = None, frames: int = 1, part: BatchPart = WHOLE
) -> Tensor:
    """A random window of 95 % of each side, enlarged to the whole image, turned by up to 5 degrees; edges repeated.

    `frames` images in a row share a draw.
    """
    batch, height, width, _ = image.shape
    draw = (_uniform((3, batch // frames), 1, generator, image.device, part) * 2 - 1).repeat_interleave(frames, dim=1)
    angle = draw[0] * math.radians(_DEGREES)
    sine, cosine = angle.sin(), angle.cos()
    # Output to input position, both in [-1, 1]; turning must happen in pixels, hence the ratio of the sides.
    affine = _CROP * torch.stack(
        [
            torch.stack([cosine, -sine * height / width, draw[1] * (1 - _CROP) / _CROP], dim=-1),
            torch.stack([sine * width / height, cosine, draw[2] * (1 - _CROP) / _CROP], dim=-1),
        ],
        dim=1,
    )
    channels_first = image.permute(0, 3, 1, 2)
    grid = functional.affine_grid(affine.to(image.dtype), list(channels_first.shape), align_corners=False)
    moved = functional.grid_sample(channels_first, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return moved.permute(0, 2, 3, 1).clamp(-1, 1)


def color_jitter(image: Tensor, generator: Generator | None = None, frames: int = 1, part: BatchPart = WHOLE) -> Tensor:
    """Brightness by a factor in 1 ± 0.3, contrast about the image's mean 1 ± 0.4, saturation 1 ± 0.5.

    `frames` images in a row share a draw.
    """
    strength = torch.tensor([_BRIGHTNESS, _CONTRAST, _SATURATION], device=image.device)[:, None]
    draw = 1 + strength * (_uniform((3, image.shape[0] // frames), 1, generator, image.device, part) * 2 - 1)
    draw = draw.repeat_interleave(frames, dim=1)
    brightness, contrast, saturation = draw.to(image.dtype)[..., None, None, None]
    x = ((image + 1) / 2 * brightness).clamp(0, 1)
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    x = ((x - mean) * contrast + mean).clamp(0, 1)
    gray = x.mean(dim=3, keepdim=True)
    x = ((x - gray) * saturation + gray).clamp(0, 1)
    return x * 2 - 1


def _uniform(
    shape: tuple[int, ...], dim: int, generator: Generator | None, device: torch.device, part: BatchPart
) -> Tensor:
    """Draws in [0, 1) on the generator's own device, so that a CPU generator serves any device."""
    return part.rand(shape, dim, generator, device if generator is None else generator.device).to(device)
