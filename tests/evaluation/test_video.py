"""Videos: size, count, colours, and nothing half-written."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from pizero.evaluation.video import write_mp4
from pizero.types import UserError


def test_frames_come_back(tmp_path: Path) -> None:
    frames = [np.full((33, 47, 3), (40 * number, 100, 200), np.uint8) for number in range(5)]
    path = tmp_path / "new" / "clip.mp4"
    write_mp4(path, frames, 12.5)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert float(stream.average_rate) == 12.5
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(decoded) == 5
    for ours, theirs in zip(frames, decoded, strict=True):
        assert theirs.shape == (34, 48, 3)
        assert np.abs(theirs[:33, :47].astype(int) - ours).max() <= 6
    assert [entry.name for entry in path.parent.iterdir()] == ["clip.mp4"]


def test_an_interrupted_video_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"old")

    def interrupted():
        yield np.zeros((8, 8, 3), np.uint8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_mp4(path, interrupted(), 10)
    with pytest.raises(UserError, match="at least one frame"):
        write_mp4(path, [], 10)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["clip.mp4"]
