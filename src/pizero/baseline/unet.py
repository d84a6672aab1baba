"""One-dimensional UNet over the action chunk, modulated by the step and the observation (arXiv 2303.04137).

    noisy actions --> level 0 --> level 1 --> level 2 --> middle
                                      |           |          |
                             up 1 <---+-- up 0 <--+----------+      --> noise or velocity

The first level's output is not carried across: the paper's code has one upward step less than downward levels.
Shapes: M samples times draws, H action horizon, D action dimensions, C conditioning, W channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pizero.baseline.config import StepEmbedding
from pizero.model.layers import embed_time


class StepEncoder(nn.Module):
    """Diffusion step [M], 0 beside the action and `num_steps` - 1 at the noise -> [M, width].

    The step may lie between two integers: the table is read at the nearest one. Wavelengths of the sine-cosine
    embedding run from 2 pi to 20,000 pi steps, as in the paper's code.
    """

    def __init__(self, kind: StepEmbedding, num_steps: int, width: int) -> None:
        super().__init__()
        self.num_steps, self.width = num_steps, width
        self.table = nn.Embedding(num_steps, width) if kind == "table" else None
        self.mlp_in = nn.Linear(width, 4 * width)
        self.mlp_out = nn.Linear(4 * width, width)

    def forward(self, step: Tensor) -> Tensor:
        if self.table is not None:
            embedding = self.table(step.round().long().clamp(0, self.num_steps - 1))
        else:
            embedding = embed_time(step, self.width, min_period=2 * math.pi, max_period=2e4 * math.pi)
        return self.mlp_out(F.mish(self.mlp_in(embedding.to(self.mlp_in.weight.dtype))))


class ConvBlock(nn.Sequential):
    """Convolution, group norm, mish: [M, W_in, H] -> [M, W_out, H]."""

    def __init__(self, channels: int, width: int, kernel_size: int, groups: int) -> None:
        convolution = nn.Conv1d(channels, width, kernel_size, padding=kernel_size // 2)
        super().__init__(convolution, nn.GroupNorm(groups, width), nn.Mish())


class ResidualBlock1d(nn.Module):
    """Two convolutions, between them scale and shift per channel from the conditioning (FiLM), beside a shortcut."""

    def __init__(self, channels: int, width: int, conditioning: int, kernel_size: int, groups: int) -> None:
        super().__init__()
        self.conv1 = ConvBlock(channels, width, kernel_size, groups)
        self.modulation = nn.Linear(conditioning, 2 * width)
        self.conv2 = ConvBlock(width, width, kernel_size, groups)
        self.shortcut = nn.Conv1d(channels, width, 1) if channels != width else nn.Identity()

    def forward(self, x: Tensor, conditioning: Tensor) -> Tensor:
        """x [M, W_in, H], conditioning [M, C] -> [M, W_out, H]."""
        scale, shift = self.modulation(F.mish(conditioning))[..., None].chunk(2, dim=1)
        return self.conv2(scale * self.conv1(x) + shift) + self.shortcut(x)


class Level(nn.Module):
    """Two residual blocks and a change of length: half ("down"), double ("up"), or none ("same")."""

    def __init__(
        self, channels: int, width: int, conditioning: int, kernel_size: int, groups: int, resize: str
    ) -> None:
        super().__init__()
        self.first = ResidualBlock1d(channels, width, conditioning, kernel_size, groups)
        self.second = ResidualBlock1d(width, width, conditioning, kernel_size, groups)
        self.resize: nn.Module = nn.Identity()
        if resize == "down":
            self.resize = nn.Conv1d(width, width, 3, stride=2, padding=1)
        elif resize == "up":
            self.resize = nn.ConvTranspose1d(width, width, 4, stride=2, padding=1)

    def forward(self, x: Tensor, conditioning: Tensor) -> tuple[Tensor, Tensor]:
        """The result, and what a skip connection carries: the same before its length changes."""
        x = self.second(self.first(x, conditioning), conditioning)
        return self.resize(x), x


class UNet1d(nn.Module):
    """Noisy actions [M, H, D], diffusion step [M], observation [M, C] -> noise or velocity [M, H, D].

    A horizon that is no multiple of what the levels need is padded with zeros at its end, and the result is cropped.
    """

    def __init__(
        self, action_dim: int, observation_width: int, down_dims: Sequence[int], kernel_size: int, groups: int,
        step_encoder: StepEncoder,
    ) -> None:  # fmt: skip
        super().__init__()
        self.step_encoder = step_encoder
        conditioning = observation_width + step_encoder.width

        def level(channels: int, width: int, resize: str) -> Level:
            return Level(channels, width, conditioning, kernel_size, groups, resize)

        self.multiple = 2 ** (len(down_dims) - 1)
        resizes = ["down"] * (len(down_dims) - 1) + ["same"]
        inputs = [action_dim, *down_dims[:-1]]
        self.down = nn.ModuleList(map(level, inputs, down_dims, resizes))
        self.middle = level(down_dims[-1], down_dims[-1], "same")
        pairs = list(pairwise(down_dims))[::-1]
        self.up = nn.ModuleList([level(2 * wide, narrow, "up") for narrow, wide in pairs])
        self.final = ConvBlock(down_dims[0], down_dims[0], kernel_size, groups)
        self.output = nn.Conv1d(down_dims[0], action_dim, 1)

    def forward(self, x_t: Tensor, step: Tensor, observation: Tensor) -> Tensor:
        horizon, dtype = x_t.shape[1], self.output.weight.dtype
        conditioning = torch.cat([self.step_encoder(step), observation.to(dtype)], dim=-1)
        x = F.pad(x_t.to(dtype).transpose(1, 2), (0, -horizon % self.multiple))  # [M, D, padded H]
        skips: list[Tensor] = []
        for level in self.down:
            x, skip = cast("tuple[Tensor, Tensor]", level(x, conditioning))
            skips.append(skip)
        x, _ = self.middle(x, conditioning)
        for level in self.up:
            x, _ = cast("tuple[Tensor, Tensor]", level(torch.cat([x, skips.pop()], dim=1), conditioning))
        return self.output(self.final(x))[..., :horizon].transpose(1, 2)
