"""Encoder and UNet: shapes, spatial softmax, step embedding, padding of the horizon."""

from __future__ import annotations

import math

import pytest
import torch
from baseline_helpers import seeded

from pizero.baseline.config import BaselineConfig, StepEmbedding
from pizero.baseline.encoder import ImageEncoder, spatial_softmax
from pizero.baseline.policy import masked_mean
from pizero.baseline.unet import ConvBlock, StepEncoder, UNet1d


def test_spatial_softmax_is_the_mean_position() -> None:
    logits = torch.full((1, 3, 3, 5), -1e4)
    logits[0, 0, 0, 4] = 0  # the upper right corner
    logits[0, 1, 2, 0] = 0  # the lower left one
    logits[0, 2] = 0  # everywhere
    expected = torch.tensor([[[1.0, -1.0], [-1.0, 1.0], [0.0, 0.0]]])
    assert torch.allclose(spatial_softmax(logits), expected, atol=1e-6)


@pytest.mark.parametrize(("stem_stride", "size"), [(1, 16), (2, 18), (4, 32)])
def test_encoder_shapes(stem_stride: int, size: int) -> None:
    encoder = ImageEncoder(6, (8, 16, 32), stem_stride, keypoints=5)
    sizes: list[int] = []
    encoder.keypoints.register_forward_pre_hook(lambda _, x: sizes.append(x[0].shape[-1]))
    assert encoder(torch.randn(3, 6, size, size)).shape == (3, 10)
    assert sizes == [math.ceil(size / stem_stride / 4)]


def test_the_full_encoder_is_a_resnet_18() -> None:
    """11,176,512 parameters up to the last level, as ResNet-18 without its classifier: group norms have as many."""
    config = BaselineConfig()
    with torch.device("meta"):
        encoder = ImageEncoder(3, config.encoder_widths, config.stem_stride, config.keypoints)
    heads = sum(p.numel() for part in (encoder.keypoints, encoder.output) for p in part.parameters())
    assert sum(p.numel() for p in encoder.parameters()) - heads == 11_176_512


@pytest.mark.parametrize("batch_norm", [False, True])
def test_no_batch_statistics(batch_norm: bool) -> None:
    """A sample's features do not depend on the batch that it comes in, in training as well."""
    encoder = ImageEncoder(3, (8, 16), 1, keypoints=4, batch_norm=batch_norm).train()
    images = torch.rand(3, 3, 16, 16, generator=seeded(0))
    before = {name: value.clone() for name, value in encoder.named_buffers()}
    assert torch.allclose(encoder(images)[1:2], encoder(images[1:2]), atol=1e-5)
    assert len(before) == (20 if batch_norm else 0)
    assert all(torch.equal(value, before[name]) for name, value in encoder.named_buffers())


def make_unet(kind: StepEmbedding = "sincos", levels: tuple[int, ...] = (16, 24, 32)) -> UNet1d:
    torch.manual_seed(0)
    return UNet1d(3, 10, levels, 3, 4, StepEncoder(kind, 100, 16))


@pytest.mark.parametrize("levels", [(16,), (16, 24), (16, 24, 32)])
@pytest.mark.parametrize("horizon", [1, 7, 16, 50])
def test_any_horizon(horizon: int, levels: tuple[int, ...]) -> None:
    unet = make_unet(levels=levels)
    x, observation = torch.randn(2, horizon, 3), torch.randn(2, 10)
    seen: list[torch.Size] = []
    unet.output.register_forward_hook(lambda _, args, out: seen.append(out.shape))
    assert unet(x, torch.tensor([3, 99]), observation).shape == (2, horizon, 3)
    multiple = 2 ** (len(levels) - 1)
    assert seen[0][-1] == math.ceil(horizon / multiple) * multiple


def test_padding_is_zeros_that_are_cropped() -> None:
    """The first 50 of 52 actions whose last two are zero."""
    unet = make_unet()
    x, observation = torch.randn(2, 52, 3), torch.randn(2, 10)
    x[:, 50:] = 0
    step = torch.tensor([3, 99])
    assert torch.allclose(unet(x[:, :50], step, observation), unet(x, step, observation)[:, :50], atol=1e-6)


@pytest.mark.parametrize("kind", ["table", "sincos"])
def test_every_input_matters(kind: StepEmbedding) -> None:
    unet = make_unet(kind)
    x, observation, step = torch.randn(2, 8, 3), torch.randn(2, 10), torch.tensor([3, 40])
    base = unet(x, step, observation)
    for other in (unet(x + 0.1, step, observation), unet(x, step + 9, observation), unet(x, step, observation + 0.1)):
        assert (other - base).abs().amax(dim=(1, 2)).min() > 1e-4


def test_the_table_is_read_at_the_nearest_step() -> None:
    encoder = StepEncoder("table", 10, 6)
    rows = encoder(torch.arange(10))
    assert torch.allclose(encoder(torch.tensor([-1.0, 0.4, 3.6, 9.4])), rows[[0, 0, 4, 9]])
    assert len(torch.unique(rows, dim=0)) == 10


def test_the_sine_cosine_embedding_is_that_of_the_paper() -> None:
    """sin and cos of step / 10000 ** (i / (half - 1))."""
    encoder, step = StepEncoder("sincos", 100, 8), torch.tensor([0.0, 7.0, 99.0])
    assert encoder.table is None
    seen: list[torch.Tensor] = []
    encoder.mlp_in.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    encoder(step)
    phase = step[:, None] / 10_000 ** (torch.arange(4) / 3)
    assert torch.allclose(seen[0], torch.cat([phase.sin(), phase.cos()], dim=-1), atol=1e-4)


def test_a_convolution_block_is_normalised_in_groups() -> None:
    block = ConvBlock(3, 8, 5, 2)
    before = block[1](block[0](torch.randn(4, 3, 12)))
    groups = before.view(4, 2, -1)
    assert torch.allclose(groups.mean(dim=-1), torch.zeros(4, 2), atol=1e-5)
    assert torch.allclose(groups.var(dim=-1, unbiased=False), torch.ones(4, 2), atol=1e-2)


def test_masked_mean() -> None:
    x = torch.arange(12.0).view(2, 3, 2)
    mask = torch.tensor([[True, False, True], [False, False, False]])
    assert masked_mean(x, mask).tolist() == [[2.0, 3.0], [0.0, 0.0]]
