"""The vision tower: SigLIP So400m/14, and its projection to the prefix width. One image becomes S_img tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pizero.model.attention import Attention, attend
from pizero.model.config import SiglipConfig
from pizero.model.layers import EPSILON, Float32Linear, cast_once, float32_products, gelu
from pizero.types import Observation


class VisionBlock(nn.Module):
    """One pre-norm transformer layer with full attention over an image's patches."""

    def __init__(self, config: SiglipConfig) -> None:
        super().__init__()
        width = config.width
        self.num_heads, self.head_dim = config.num_heads, width // config.num_heads
        self.attention_norm = nn.LayerNorm(width, eps=EPSILON)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width, eps=EPSILON)
        self.mlp_in = nn.Linear(width, config.mlp_dim)
        self.mlp_out = nn.Linear(config.mlp_dim, width)
        self.attend: Attention = attend

    def forward(self, x: Tensor) -> Tensor:
        y = cast_once(self.attention_norm(x))
        query, key, value = (
            layer(y).unflatten(-1, (self.num_heads, self.head_dim)) for layer in (self.query, self.key, self.value)
        )  # [n, S_img, heads, head_dim]
        x = x + self.output(self.attend(query * self.head_dim**-0.5, key, value))
        return x + self.mlp_out(gelu(self.mlp_in(self.mlp_norm(x))))


class ConvolutionalStem(nn.Module):
    """Images [n, h, w, 3] -> features [n, S_img, out_width], one for each patch, in float32: convolutions of 3 x 3 and
    stride 2, as many as halve an image down to its patches, each with twice the channels of the one before (at most
    eight times the first's), a group norm and a ReLU (arXiv 2106.14881).
    """

    def __init__(self, config: SiglipConfig) -> None:
        super().__init__()
        halvings = config.patch_size.bit_length() - 1
        widths = [3, *(config.stem_width * 2 ** min(level, 3) for level in range(halvings))]
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1, bias=False) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(nn.GroupNorm(1 if width % 16 else width // 16, width) for width in widths[1:])
        self.out_width = widths[-1]

    def forward(self, images: Tensor) -> Tensor:
        x = images.float().permute(0, 3, 1, 2)
        with float32_products(images):
            for convolution, norm in zip(self.convolutions, self.norms, strict=True):
                x = F.relu(norm(convolution(x)))
        return x.flatten(2).mT


class VisionTower(nn.Module):
    """Images [n, h, w, 3] in [-1, 1] -> tokens [n, S_img, out_width], S_img = (h / patch) * (w / patch).

    The position table belongs to `image_size`; for other sizes it is interpolated (bicubic). Patches and positions are
    computed in float32 and then cast, as in the reference.
    """

    def __init__(self, config: SiglipConfig, image_size: int, out_width: int) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.grid = image_size // config.patch_size
        self.stem = ConvolutionalStem(config) if config.stem_width else None
        inputs = 3 * config.patch_size**2 if self.stem is None else self.stem.out_width
        self.patch_embedding = Float32Linear(inputs, config.width)  # inputs without a stem: row, column, channel
        self.position_embedding = nn.Parameter(torch.zeros(self.grid**2, config.width))
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.depth))
        self.final_norm = nn.LayerNorm(config.width, eps=EPSILON)
        self.projection = nn.Linear(config.width, out_width)

    def forward(self, images: Tensor) -> Tensor:
        return self.projection(self.encode(self.embed_patches(images)))

    def embed_patches(self, images: Tensor) -> Tensor:
        """[n, h, w, 3] -> [n, S_img, width] in float32: patches plus positions."""
        n, height, width, _ = images.shape
        patch = self.patch_size
        rows, columns = height // patch, width // patch
        if self.stem is not None:
            patches = self.stem(images)
        else:
            patches = images.float().view(n, rows, patch, columns, patch, 3).permute(0, 1, 3, 2, 4, 5)
            patches = patches.reshape(n, rows * columns, 3 * patch**2)
        return self.patch_embedding(patches) + self.positions(rows, columns)

    def encode(self, x: Tensor) -> Tensor:
        """Patch embeddings -> [n, S_img, width] after the final norm."""
        x = x.to(self.projection.weight.dtype)
        for block in self.blocks:
            x = block(x)
        return self.final_norm(x)

    def positions(self, rows: int, columns: int) -> Tensor:
        """The position table for a grid of patches, [rows * columns, width], in float32."""
        table = self.position_embedding.float()
        if (rows, columns) == (self.grid, self.grid):
            return table
        table = table.view(1, self.grid, self.grid, -1).permute(0, 3, 1, 2)
        table = F.interpolate(table, size=(rows, columns), mode="bicubic", align_corners=False)
        return table.permute(0, 2, 3, 1).flatten(0, 2)


def embed_images(
    observation: Observation, cameras: Sequence[str], vision_tower: Callable[[Tensor], Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Per camera of `cameras`: tokens [B, S_img, W] and mask [B, S_img]. Images of one size form one batch."""
    tokens: dict[str, Tensor] = {}
    for size in dict.fromkeys(observation.images[name].shape[1:3] for name in cameras):
        group = [name for name in cameras if observation.images[name].shape[1:3] == size]
        images = torch.cat([observation.images[name] for name in group])
        present = torch.cat([observation.image_masks[name] for name in group])
        if present.device.type == "cpu" and bool(present.all()):  # a mask on the host costs no wait for the device
            embedded = vision_tower(images)
        else:
            index = present.nonzero().squeeze(1).to(images.device)
            some = vision_tower(images[index])
            embedded = some.new_zeros(len(images), *some.shape[1:]).index_copy(0, index, some)
        tokens.update(zip(group, embedded.chunk(len(group)), strict=True))
    device = observation.prompt_tokens.device
    masks = [observation.image_masks[n].to(device)[:, None].expand(-1, tokens[n].shape[1]) for n in cameras]
    return [tokens[name] for name in cameras], masks
