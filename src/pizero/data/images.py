"""Images on the way into a policy: size and value range."""

from __future__ import annotations

from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pizero.types import Convention

ArrayOrTensor = TypeVar("ArrayOrTensor", Tensor, NDArray[Any])
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
        levels = torch.from_numpy(np.ascontiguousarray(image).reshape(-1, h, w, 3)).permute(0, 3, 1, 2).float()  # pyright: ignore[reportUnknownMemberType]
        small = functional.interpolate(levels, (new_h, new_w), mode="bilinear", align_corners=False)
        around = (left, width - new_w - left, top, height - new_h - top)
        padded = functional.pad(small.clamp(0, 255), around).permute(0, 2, 3, 1).contiguous().numpy()
        return padded.reshape(*image.shape[:-3], height, width, 3)
    from PIL import Image  # not where the trainer alone is used

    out = np.zeros((*image.shape[:-3], height, width, 3), dtype=np.uint8)
    flat_out = out.reshape(-1, height, width, 3)
    for source, target in zip(np.ascontiguousarray(image).reshape(-1, h, w, 3), flat_out, strict=True):
        small = Image.fromarray(source).resize((new_w, new_h), resample=Image.Resampling.BILINEAR)
        target[top : top + new_h, left : left + new_w] = np.asarray(small)
    return out


def to_float(image: ArrayOrTensor) -> ArrayOrTensor:
    """Grey levels in [0, 255] -> float32 in [-1, 1]."""
    as_float = image.float() if isinstance(image, Tensor) else image.astype(np.float32)
    return as_float / 255.0 * 2.0 - 1.0
