"""Patches, positions and images of any size."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from model_helpers import make_actions, make_observation, random_model

from pizero.model.config import SiglipConfig
from pizero.model.precision import cast_weights
from pizero.model.siglip import ConvolutionalStem, VisionTower

STEM = SiglipConfig(width=16, depth=1, mlp_dim=32, num_heads=2, patch_size=4, stem_width=8)


@pytest.fixture(scope="module")
def tower() -> VisionTower:
    return random_model().vision_tower


def image(height: int, width: int, batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, height, width, 3, generator=torch.Generator().manual_seed(height)) * 2 - 1


def test_patches_are_a_convolution(tower: VisionTower) -> None:
    x = image(28, 42)
    kernel = tower.patch_embedding.weight.view(16, 14, 14, 3).permute(0, 3, 1, 2)
    expected = torch.nn.functional.conv2d(x.permute(0, 3, 1, 2), kernel, tower.patch_embedding.bias, stride=14)
    expected = expected.flatten(2).transpose(1, 2) + tower.positions(2, 3)
    assert torch.allclose(tower.embed_patches(x), expected, atol=1e-5)


def test_memory_layout_does_not_matter(tower: VisionTower) -> None:
    x = image(28, 28)
    channels_first = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert torch.equal(tower(channels_first), tower(x))


def test_the_native_size_keeps_its_table(tower: VisionTower) -> None:
    assert torch.equal(tower.positions(2, 2), tower.position_embedding)


def test_other_sizes_interpolate_the_table(tower: VisionTower) -> None:
    """A constant stays one; what varies along rows alone still does; a mirrored table gives mirrored positions."""
    table = tower.position_embedding.data.clone()
    try:
        tower.position_embedding.data.fill_(0.7)
        assert torch.allclose(tower.positions(3, 5), torch.full((15, 16), 0.7), atol=1e-6)
        grid = table.view(2, 2, 16)
        tower.position_embedding.data = grid[:, :1].expand(2, 2, 16).reshape(4, 16)
        by_row = tower.positions(4, 3).view(4, 3, 16)
        assert torch.allclose(by_row, by_row[:, :1].expand_as(by_row), atol=1e-6)
        assert not torch.allclose(by_row[0], by_row[3], atol=1e-2)
        tower.position_embedding.data = table
        straight = tower.positions(4, 3).view(4, 3, 16)
        tower.position_embedding.data = grid.flip(0).reshape(4, 16)
        assert torch.allclose(tower.positions(4, 3).view(4, 3, 16), straight.flip(0), atol=1e-6)
    finally:
        tower.position_embedding.data = table


@pytest.mark.parametrize(("height", "width"), [(14, 14), (28, 28), (42, 28), (28, 56)])
def test_tokens_follow_the_size(tower: VisionTower, height: int, width: int) -> None:
    tokens = tower(image(height, width))
    assert tokens.shape == (2, (height // 14) * (width // 14), 24)
    assert bool(torch.isfinite(tokens).all())


def test_the_table_learns_from_other_sizes(tower: VisionTower) -> None:
    (gradient,) = torch.autograd.grad(tower(image(42, 42)).square().sum(), tower.position_embedding)
    assert bool(gradient.abs().amax(dim=1).all())


@pytest.mark.parametrize("pi05", [False, True])
def test_every_camera_may_have_its_own_size(pi05: bool) -> None:
    model = random_model(pi05=pi05)
    base, left, right = model.config.cameras
    images = {base: image(28, 28), left: image(42, 28), right: image(28, 28) * 0.5}
    observation = make_observation(model.config, images=images)
    tokens, mask = model.embed_prefix(observation)
    expected = torch.cat([model.vision_tower(images[name]) for name in (base, left, right)], dim=1)
    assert tokens.shape[1] == mask.shape[1] == 4 + 6 + 4 + 8
    assert torch.allclose(tokens[:, :14], expected, atol=1e-5)
    actions, noise, time = make_actions(model.config)
    joint = model.velocity(observation, actions, time)
    cached = model.decode(model.prefill(observation), observation.state, actions, time)
    assert torch.allclose(joint, cached, atol=1e-5)
    assert model.sample_actions(observation, num_steps=2, noise=noise).shape == actions.shape


def test_two_sizes_and_a_camera_that_some_samples_lack() -> None:
    model = random_model()
    base, left, right = model.config.cameras
    images = {base: image(28, 28), left: image(42, 28), right: image(42, 28) * 0.5}
    masks = {base: torch.tensor([True, True]), left: torch.tensor([False, True]), right: torch.tensor([True, False])}
    observation = make_observation(model.config, images=images, image_masks=masks)
    actions, _, time = make_actions(model.config)
    together = model.velocity(observation, actions, time)
    for i, camera in enumerate((right, left)):
        given = {base: images[base], camera: images[camera]}
        alone = replace(observation, images=given)[i : i + 1]
        assert torch.allclose(model.velocity(alone, actions[i : i + 1], time[i : i + 1])[0], together[i], atol=1e-5)


def test_a_stem_is_convolutions_of_stride_two() -> None:
    """Widths, group norms and places, computed step by step; a patch then sees beyond its own pixels."""
    torch.manual_seed(0)
    stem, x = ConvolutionalStem(STEM), image(12, 8)
    y = x.permute(0, 3, 1, 2)
    for convolution, width in zip(stem.convolutions, (8, 16), strict=True):
        kernel = convolution.get_parameter("weight")
        y = torch.nn.functional.conv2d(y, kernel, stride=2, padding=1)
        assert y.shape[1] == width
        flat = y.flatten(1)  # one group: 8 and 16 channels
        y = ((flat - flat.mean(1, True)) / (flat.var(1, correction=0, keepdim=True) + 1e-5).sqrt()).view_as(y).relu()
    assert stem.out_width == 16
    torch.testing.assert_close(stem(x), y.flatten(2).mT)
    assert stem(x).shape == (2, 3 * 2, 16)
    whole = VisionTower(STEM, 8, 24)
    assert whole(x).shape == (2, 6, 24)


def test_a_stem_has_at_most_eight_times_the_channels() -> None:
    stem = ConvolutionalStem(replace(STEM, patch_size=32, stem_width=16))
    widths = [convolution.get_parameter("weight").shape[0] for convolution in stem.convolutions]
    assert widths == [16, 32, 64, 128, 128]
    assert [norm.num_groups for norm in stem.norms] == [1, 2, 4, 8, 8]


def test_a_stem_stays_in_float32() -> None:
    """As patches do: whatever the model's dtype and autocast say."""
    torch.manual_seed(0)
    tower, x = VisionTower(STEM, 8, 24), image(8, 8)
    expected = tower.embed_patches(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(tower.embed_patches(x), expected)
    assert torch.equal(cast_weights(tower, torch.bfloat16).embed_patches(x), expected)
    assert tower(x).dtype == torch.bfloat16
