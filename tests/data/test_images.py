from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from pizero.data.augment import Augmentation, color_jitter, crop_and_rotate, random_shift
from pizero.data.images import interpolated_plainly, resize_with_pad, to_float
from pizero.types import UserError


@settings(max_examples=40, deadline=None)
@given(h=st.integers(1, 60), w=st.integers(1, 60), height=st.integers(8, 40), width=st.integers(8, 40))
def test_resize_keeps_the_aspect_ratio_and_the_centre(h: int, w: int, height: int, width: int) -> None:
    out = resize_with_pad(np.full((h, w, 3), 200, dtype=np.uint8), height, width)
    assert out.shape == (height, width, 3)
    rows, columns = np.flatnonzero(out[..., 0].any(axis=1)), np.flatnonzero(out[..., 0].any(axis=0))
    assert len(rows) >= height - 1 or len(columns) >= width - 1  # the reference's rounding can lose one
    assert abs((rows[0] + rows[-1]) - (height - 1)) <= 1
    assert abs((columns[0] + columns[-1]) - (width - 1)) <= 1
    assert_array_equal(np.unique(out[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]), 200)


def test_resize_of_the_right_size_is_free() -> None:
    image = np.zeros((2, 8, 9, 3), dtype=np.uint8)
    assert resize_with_pad(image, 8, 9) is image


def test_resize_of_a_batch_equals_singles() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 30, 20, 3), dtype=np.uint8)
    out = resize_with_pad(images, 16, 16)
    assert_array_equal(out[1, 2], resize_with_pad(images[1, 2], 16, 16))
    assert_array_equal(
        resize_with_pad(images[:, :, :, ::-1], 16, 16)[0, 0], resize_with_pad(images[0, 0][:, ::-1], 16, 16)
    )


def test_to_float_ends() -> None:
    values = np.array([0, 255], dtype=np.uint8)
    assert_array_equal(to_float(values), np.array([-1, 1], dtype=np.float32))
    tensor = to_float(torch.from_numpy(values))
    assert tensor.dtype == torch.float32
    assert tensor.tolist() == [-1, 1]


def noise_images(batch: int = 4, height: int = 24, width: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.rand((batch, height, width, 3), generator=torch.Generator().manual_seed(seed)) * 2 - 1


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("function", [crop_and_rotate, color_jitter, lambda x, g: random_shift(x, 3, g)])
def test_each_sample_has_its_own_draw(function: Any) -> None:
    same = noise_images(1).expand(4, -1, -1, -1)
    out = function(same, seeded())
    assert out.shape == same.shape
    assert out.min() >= -1
    assert out.max() <= 1
    assert all(not torch.equal(out[0], out[i]) for i in range(1, 4))
    assert torch.equal(function(same, seeded()), out)
    assert not torch.equal(function(same, seeded(1)), out)


def test_shift_moves_whole_pixels_and_repeats_the_edge() -> None:
    images = noise_images(64)
    out = random_shift(images, 2, seeded())
    seen = set()
    for source, moved in zip(images.numpy(), out.numpy(), strict=True):
        padded = np.pad(source, [(2, 2), (2, 2), (0, 0)], mode="edge")
        fits = [
            (i, j)
            for i in range(5)
            for j in range(5)
            if np.array_equal(padded[i : i + source.shape[0], j : j + source.shape[1]], moved)
        ]
        assert len(fits) == 1
        seen.add(fits[0])
    assert {i for i, _ in seen} == {j for _, j in seen} == set(range(5))


def test_crop_and_rotate_moves_a_picture_by_a_few_pixels() -> None:
    """A dot in the centre stays near it, a ramp stays a ramp, one colour stays that colour."""
    ramp = torch.linspace(-1, 1, 65)[None, :, None].expand(16, 33, 65, 3).reshape(16, 33, 65, 3)
    out = crop_and_rotate(ramp, seeded())
    middle = out[:, 16, 32, 0]  # x of the crop's centre: within 2.5 % of the width
    assert middle.abs().max() <= 0.05 + 1e-6
    assert middle.abs().max() > 0.02
    across = (out[:, 16, 48, 0] - out[:, 16, 16, 0]) / (ramp[:, 16, 48, 0] - ramp[:, 16, 16, 0])
    assert (across < 0.9501).all()  # enlarged by 1 / 0.95
    assert (across > 0.95 * np.cos(np.radians(5.01))).all()
    down = out[:, 24, 32, 0] - out[:, 8, 32, 0]  # 16 pixels down: turned by up to 5 degrees
    assert down.abs().max() <= 0.95 * 16 * np.sin(np.radians(5.01)) * (2 / 64)
    assert down.abs().max() > 0.01
    assert torch.allclose(crop_and_rotate(torch.full((2, 9, 9, 3), 0.4)), torch.tensor(0.4), atol=1e-6)


def test_color_jitter_changes_colours_only() -> None:
    gray = torch.full((200, 2, 2, 3), 0.0)
    out = color_jitter(gray, seeded())
    assert torch.allclose(out, out[:, :1, :1, :1].expand_as(out), atol=1e-6)
    factors = (out[:, 0, 0, 0] + 1) / 2 / 0.5
    assert 0.7 <= factors.min() < 0.75
    assert 1.25 < factors.max() <= 1.3


KINDS = [Augmentation("openpi"), Augmentation("shift")]


@pytest.mark.parametrize("camera", ["base_0_rgb", "left_wrist_0_rgb"])
@pytest.mark.parametrize("augmentation", KINDS, ids=lambda a: a.kind)
def test_the_frames_of_a_history_share_a_draw(augmentation: Augmentation, camera: str) -> None:
    """Frame by frame the result is that of images without a history and the same draws."""
    frames = [noise_images(seed=seed) for seed in range(3)]
    out = augmentation(camera, torch.stack(frames, dim=1), seeded())
    for index, frame in enumerate(frames):
        torch.testing.assert_close(out[:, index], augmentation(camera, frame, seeded()), atol=1e-6, rtol=0)
    same = noise_images(1).expand(4, -1, -1, -1)[:, None].expand(-1, 3, -1, -1, -1)
    alike = augmentation(camera, same, seeded())
    assert torch.equal(alike[:, 0], alike[:, 2])
    assert not torch.equal(alike[0], alike[1])


def test_kinds() -> None:
    images = noise_images()
    assert Augmentation("none")("base_0_rgb", images, seeded()) is images
    wrist = Augmentation("openpi")("left_wrist_0_rgb", images, seeded())
    assert torch.equal(wrist, color_jitter(images, seeded()))
    base = Augmentation("openpi")("base_0_rgb", images, seeded())
    assert not torch.equal(base, wrist)
    shifted = Augmentation("shift")("left_wrist_0_rgb", images, seeded())
    assert torch.equal(shifted, random_shift(images, 4, seeded()))
    with pytest.raises(UserError, match="got 'mirror'"):
        Augmentation("mirror")  # type: ignore[arg-type]


@pytest.mark.parametrize(("shape", "wanted"), [((480, 640), (168, 224)), ((10, 20), (28, 56)), ((7, 5), (45, 32))])
def test_numpy_interpolates_as_torch(shape: tuple[int, int], wanted: tuple[int, int]) -> None:
    """Within a hundredth of a grey level, for what runs an export."""
    image = np.random.default_rng(0).integers(0, 256, (2, *shape, 3), dtype=np.uint8)
    levels = torch.from_numpy(image).permute(0, 3, 1, 2).float()
    expected = torch.nn.functional.interpolate(levels, wanted, mode="bilinear", align_corners=False)
    found = interpolated_plainly(image, *wanted)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected.permute(0, 2, 3, 1).numpy(), atol=1e-2)
