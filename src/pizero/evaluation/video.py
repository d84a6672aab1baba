"""Writes frames as a video that every browser plays."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pizero.files import partial_path
from pizero.types import UserError

FONT_SIZE, LINE = 16, 22
"""Of captions, in pixels."""


def write_mp4(path: Path, frames: Iterable[NDArray[np.uint8]], fps: float) -> None:
    """H.264 video of frames [h, w, 3] of one size, RGB, 0 to 255. Odd sides are padded by one pixel.

    The file appears under its name only when it is complete. UserError without frames.
    """
    temporary = partial_path(path)
    try:
        _encode(temporary, frames, fps)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def captioned(frames: Sequence[NDArray[np.uint8]], captions: Sequence[Sequence[str]]) -> Iterator[NDArray[np.uint8]]:
    """The frames [h, w, 3] with lines of text in a band under each, of the same height for all; as they are without."""
    if not captions:
        yield from frames
        return
    font, lines = ImageFont.load_default(FONT_SIZE), max(map(len, captions))
    for frame, texts in zip(frames, captions, strict=True):
        height, width, _ = frame.shape
        image = Image.new("RGB", (width, height + lines * LINE), (20, 22, 26))
        image.paste(Image.fromarray(frame), (0, 0))
        draw = ImageDraw.Draw(image)
        for number, text in enumerate(texts):
            shown = _shortened(text, width - 12)
            draw.text((6, height + number * LINE + 2), shown, (235, 235, 235) if number == 0 else (250, 190, 90), font)
        yield np.asarray(image)


def _shortened(text: str, width: int) -> str:
    """The text, or as much of it as fits into the width with three dots."""
    font, shown = ImageFont.load_default(FONT_SIZE), text
    while text and font.getlength(shown) > width:
        text = text[:-1]
        shown = f"{text}..."
    return shown


def _encode(path: Path, frames: Iterable[NDArray[np.uint8]], fps: float) -> None:
    import av

    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "20"}
        count = 0
        for count, frame in enumerate(frames, start=1):
            # yuv420p halves both sides
            even = np.pad(frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)), mode="edge")
            if count == 1:
                stream.height, stream.width = even.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")))
        if not count:
            raise UserError("a video needs at least one frame, got none")
        container.mux(stream.encode(None))
