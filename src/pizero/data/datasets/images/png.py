"""Lossless frames as PNG: an encoder made for small simulator frames, several times faster than Pillow's."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Generator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
DEPTH_MODES = ("I", "F")
"""How Pillow's modes of one channel with more than 8 bits begin; as grey levels their numbers would be cut."""
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
"""Of images in datasets. Pillow knows others that start programs, such as EPS."""
MOST_PIXELS = 50_000_000
"""Of one image; a frame of 8K video has 33 million."""
_UP_FILTER = 2  # each byte minus the one above it: cheap, and near zero on rendered scenes


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """uint8 [h, w, 3] -> an RGB PNG file."""
    height, width, _ = image.shape
    pixels = image.reshape(height, 3 * width)
    rows = np.empty((height, 1 + 3 * width), np.uint8)
    rows[:, 0] = _UP_FILTER
    rows[0, 1:] = pixels[0]
    np.subtract(pixels[1:], pixels[:-1], out=rows[1:, 1:])  # modulo 256, as PNG wants
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB
    return b"".join(
        (
            _SIGNATURE,
            _chunk(b"IHDR", header),
            _chunk(b"IDAT", zlib.compress(rows.tobytes(), level=1)),
            _chunk(b"IEND", b""),
        )
    )


class OtherSizeError(ValueError):
    """An image of another size than expected; size: (height, width)."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__(f"it is {size[0]}x{size[1]}")
        self.size = size


def decode_image(data: bytes, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """An encoded image of FORMATS -> uint8 [h, w, 3]; ValueError when it is damaged or of more than MOST_PIXELS.

    size: (height, width) that it must have, else OtherSizeError. Nothing is decoded before the header is looked at.
    """
    with _opened(data) as image:
        if image.mode[:1] in DEPTH_MODES:
            raise ValueError(f"it is a depth image, mode {image.mode}")
        found = _size(image)
        if size is not None and size != found:
            raise OtherSizeError(found)
        upright = ImageOps.exif_transpose(image) if _orientation(image) > 1 else image
        return np.asarray(upright if upright.mode == "RGB" else upright.convert("RGB"))


def describe_image(data: bytes) -> tuple[int, int, str]:
    """(height, width, Pillow's mode) without decoding; ValueError when it is damaged or of more than MOST_PIXELS."""
    with _opened(data) as image:
        return *_size(image), image.mode


def _orientation(image: Image.Image) -> int:
    """How a camera that was turned was held, by the header; 1 is upright."""
    said = image.getexif().get(0x112) if "exif" in image.info else None
    return said if isinstance(said, int) and 1 <= said <= 8 else 1


def _size(image: Image.Image) -> tuple[int, int]:
    """(height, width), upright."""
    return (image.width, image.height) if _orientation(image) > 4 else (image.height, image.width)


@contextmanager
def _opened(data: bytes) -> Generator[Image.Image]:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(f"it has {image.height}x{image.width} pixels; at most {MOST_PIXELS} are taken")
            yield image
    except OtherSizeError:
        raise
    except UnidentifiedImageError:
        raise ValueError(f"it is none of {', '.join(FORMATS)}") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow raises any of them
        raise ValueError(" ".join(str(error).split())) from None


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))
