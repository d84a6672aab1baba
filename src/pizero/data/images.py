"""Images on the way into a policy: size and value range."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from pizero.types import Convention

if TYPE_CHECKING:
    from torch import Tensor

ArrayOrTensor = TypeVar("ArrayOrTensor", "Tensor", NDArray[Any])
GreyLevels: TypeAlias = NDArray[np.uint8 | np.float32]
"""In [0, 255]."""


def resize_with_pad(image: NDArray[np.uint8], height: int, width: int, convention: Convention = "openpi") -> GreyLevels:
    """[..., h, w, 3] -> [..., height, width, 3]: aspect ratio kept, centred, black around; the same array if it fits.

    "openpi": bilinear with the low-pass filter when shrinking (Pillow's), which the released models were trained with.
    "lerobot": plain bilinear; float32 grey levels in [0, 255], not rounded.
    """
    h, w = image.shape[-3:-1]
    if (h, w) == (height, width):
        return image
    ratio = max(h / height, w / width)
    new_h, new_w = max(1, int(h / ratio)), max(1, int(w / ratio))
    top, left = (height - new_h) // 2, (width - new_w) // 2
    if convention == "lerobot":
        padded = np.zeros((*image.shape[:-3], height, width, 3), np.float32)
        padded[..., top : top + new_h, left : left + new_w, :] = _interpolated(image, new_h, new_w)
        return padded
    from PIL import Image  # not where the trainer alone is used

    out = np.zeros((*image.shape[:-3], height, width, 3), dtype=np.uint8)
    flat_out = out.reshape(-1, height, width, 3)
    for source, target in zip(np.ascontiguousarray(image).reshape(-1, h, w, 3), flat_out, strict=True):
        small = Image.fromarray(source).resize((new_w, new_h), resample=Image.Resampling.BILINEAR)
        target[top : top + new_h, left : left + new_w] = np.asarray(small)
    return out


def to_float(image: ArrayOrTensor) -> ArrayOrTensor:
    """Grey levels in [0, 255] -> float32 in [-1, 1]."""
    as_float = image.astype(np.float32) if isinstance(image, np.ndarray) else image.float()
    return as_float / 255.0 * 2.0 - 1.0


def _interpolated(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.float32]:
    """[..., h, w, 3] -> [..., height, width, 3]: bilinear between pixels' centres, in float32.

    By PyTorch in a process that has it, as those models were trained; what runs an export has not, and comes within a
    hundredth of a grey level.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        return interpolated_plainly(image, height, width)
    levels = torch.from_numpy(np.ascontiguousarray(image).reshape(-1, *image.shape[-3:])).permute(0, 3, 1, 2).float()
    small = torch.nn.functional.interpolate(levels, (height, width), mode="bilinear", align_corners=False)
    return small.clamp(0, 255).permute(0, 2, 3, 1).numpy().reshape(*image.shape[:-3], height, width, 3)


def interpolated_plainly(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.float32]:
    """The same in NumPy."""
    rows, next_rows, down = _places(image.shape[-3], height)
    columns, next_columns, right = _places(image.shape[-2], width)
    down, right = down[:, None, None], right[:, None]

    def across(lines: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        found = image[..., lines, :, :].astype(np.float32)
        return (found[..., columns, :] * (1 - right) + found[..., next_columns, :] * right).astype(np.float32)

    return (across(rows) * (1 - down) + across(next_rows) * down).astype(np.float32)


def _places(size: int, wanted: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Of each new pixel along one axis: the old one before it and after it, and how near it is to the latter."""
    scale = np.float32(size / wanted)
    place = np.maximum((np.arange(wanted, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5), 0)
    before = np.minimum(place.astype(np.int64), size - 1)
    return before, np.minimum(before + 1, size - 1), (place - before).astype(np.float32)
