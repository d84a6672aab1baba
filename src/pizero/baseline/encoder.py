"""Image encoder: a ResNet with group norms, then a spatial softmax (arXiv 2303.04137, section III-B)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Norm = Callable[[int], nn.Module]
"""The norm of a convolution with so many channels."""


class ImageEncoder(nn.Module):
    """Images [M, C, h, w] -> features [M, 2 * keypoints]. With four widths and stride 4 it is ResNet-18.

    The features are the keypoints' positions in the image, mixed by a linear layer. batch_norm: fixed batch norms in
    place of group norms.
    """

    def __init__(
        self, channels: int, widths: Sequence[int], stem_stride: int, keypoints: int, batch_norm: bool = False
    ) -> None:
        super().__init__()
        norm: Norm = FixedBatchNorm if batch_norm else group_norm
        kernel, stride = (3, 1) if stem_stride == 1 else (7, 2)
        self.stem = nn.Conv2d(channels, widths[0], kernel, stride, kernel // 2, bias=False)
        self.stem_norm = norm(widths[0])
        self.pool = nn.MaxPool2d(3, 2, 1) if stem_stride == 4 else nn.Identity()
        self.levels = nn.ModuleList()
        before = widths[0]
        for index, width in enumerate(widths):
            first = ResidualBlock2d(before, width, 1 if index == 0 else 2, norm)
            self.levels.append(nn.Sequential(first, ResidualBlock2d(width, width, 1, norm)))
            before = width
        self.keypoints = nn.Conv2d(before, keypoints, 1)
        self.output = nn.Linear(2 * keypoints, 2 * keypoints)

    def forward(self, images: Tensor) -> Tensor:
        x = self.pool(F.relu(self.stem_norm(self.stem(images.to(self.stem.weight.dtype)))))
        for level in self.levels:
            x = level(x)
        points = spatial_softmax(self.keypoints(x))  # [M, K, 2]
        return F.relu(self.output(points.flatten(1).to(self.output.weight.dtype)))


class ResidualBlock2d(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut: [M, C, h, w] -> [M, width, h / stride, w / stride]."""

    def __init__(self, channels: int, width: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.norm1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = norm(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != width:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), norm(width))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class FixedBatchNorm(nn.Module):
    """A batch norm whose statistics stay as they were stored, in training too: [M, W, h, w] -> the same shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(
            x, self.get_buffer("running_mean"), self.get_buffer("running_var"), self.weight, self.bias
        )  # eps 1e-5


def group_norm(width: int) -> nn.GroupNorm:
    """In place of ResNet's batch norm, whose statistics and an average of the weights do not go together."""
    return nn.GroupNorm(max(1, width // 16), width)


def spatial_softmax(logits: Tensor) -> Tensor:
    """Where each map looks: [M, K, h, w] -> mean position [M, K, 2], x then y, in [-1, 1] from corner to corner."""
    height, width = logits.shape[-2:]
    weights = logits.float().flatten(2).softmax(dim=-1).view(logits.shape)
    x = torch.linspace(-1.0, 1.0, width, device=logits.device)
    y = torch.linspace(-1.0, 1.0, height, device=logits.device)
    return torch.stack([(weights.sum(dim=2) * x).sum(dim=-1), (weights.sum(dim=3) * y).sum(dim=-1)], dim=-1)
