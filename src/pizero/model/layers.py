"""The small parts: norms, gated MLP, rotary embedding, flow-time embedding. Statistics are kept in float32."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPSILON = 1e-6
WITHOUT_FLOAT64 = ("mps",)
"""Kinds of devices that have no float64; what needs it is computed on the host."""


def gelu(x: Tensor) -> Tensor:
    """The tanh form, used everywhere in SigLIP and Gemma."""
    return F.gelu(x, approximate="tanh")


def rms_normalize(x: Tensor) -> Tensor:
    """x / rms(x) over the last axis, in float32; the caller scales and casts back."""
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPSILON)


class RMSNorm(nn.Module):
    """Gemma's RMSNorm: x / rms(x) * (1 + scale). Returns no gate, so that both norms are used alike."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, conditioning: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        return (rms_normalize(x) * (1 + self.scale.float())).to(x.dtype), None


class AdaptiveRMSNorm(nn.Module):
    """RMSNorm whose scale, shift and gate come from the flow time (π0.5; DiT's adaLN with RMSNorm).

    `conditioning` is [B, width], or [B, T, width] with a time for each token. Returns x / rms(x) * (1 + scale) + shift,
    and the gate [B, 1 or T, width] of the residual.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor, conditioning: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        if conditioning is None:
            raise ValueError("an adaptive norm needs the conditioning that embed_suffix returns")
        modulation = self.modulation(conditioning.to(self.modulation.weight.dtype)).to(x.dtype)
        scale, shift, gate = (modulation[:, None] if modulation.ndim == 2 else modulation).chunk(3, dim=-1)
        return (rms_normalize(x) * (1 + scale.float()) + shift.float()).to(x.dtype), gate


def gated_residual(x: Tensor, y: Tensor, gate: Tensor | None) -> Tensor:
    """x + y, or x + y * gate after an adaptive norm."""
    return x + y if gate is None else x + y * gate


def _autocasts(x: Tensor) -> bool:
    """Whether autocast is on where x lies; the meta device, on which shapes are measured, knows none."""
    kind = x.device.type
    return kind != "meta" and torch.is_autocast_enabled(kind)


def float32_products(x: Tensor) -> AbstractContextManager[object]:
    """Products inside stay in float32 whatever autocast says."""
    return torch.autocast(x.device.type, enabled=False) if _autocasts(x) else nullcontext()


def cast_once(x: Tensor) -> Tensor:
    """x in the dtype of products under autocast, for several of them: autocast would cast it for each one again."""
    return x.to(torch.get_autocast_dtype(x.device.type)) if _autocasts(x) else x


class GatedMLP(nn.Module):
    """down(gelu(gate(x)) * up(x)), without biases."""

    def __init__(self, width: int, mlp_dim: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, mlp_dim, bias=False)
        self.up = nn.Linear(width, mlp_dim, bias=False)
        self.down = nn.Linear(mlp_dim, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = cast_once(x)
        return self.down(gelu(self.gate(x)) * self.up(x))


class Float32Linear(nn.Linear):
    """A linear layer that computes in float32 whatever autocast says: the small projections of actions, state, time."""

    def forward(self, input: Tensor) -> Tensor:
        with float32_products(input):
            return F.linear(input.float(), self.weight.float(), self.bias.float())


def rotary_table(positions: Tensor, head_dim: int, base: float = 10_000.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines [B, T, 1, head_dim / 2] in float32 for integer positions [B, T]."""
    exponents = torch.arange(head_dim // 2, device=positions.device, dtype=torch.float32) * (2.0 / head_dim)
    angles = positions[..., None].float() / base**exponents
    return angles.cos()[:, :, None], angles.sin()[:, :, None]


def apply_rotary(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Rotates the two halves of each head against each other: [B, T, heads, head_dim], float32 inside."""
    cos, sin = table
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def embed_time(time: Tensor, width: int, min_period: float = 4e-3, max_period: float = 4.0) -> Tensor:
    """Sine-cosine embedding of the flow time: [...] in [0, 1] -> [..., width], sines then cosines.

    Periods run from 4e-3 to 4 (openpi src/openpi/models/pi0.py, posemb_sincos). Computed in float64: a float32 phase
    of up to 1,600 radians is only good to 2e-4.
    """
    if width % 2:
        raise ValueError(f"the width of a time embedding must be even, got {width}")
    device = torch.device("cpu") if time.device.type in WITHOUT_FLOAT64 else time.device
    fraction = torch.linspace(0.0, 1.0, width // 2, dtype=torch.float64, device=device)
    periods = min_period * (max_period / min_period) ** fraction
    phase = time.to(device).double()[..., None] * (2 * math.pi / periods)
    return torch.cat([phase.sin(), phase.cos()], dim=-1).float().to(time.device)


class TargetTime(nn.Module):
    """Flow time at which a step ends, [...] -> [..., width]: added to the embedding of the time at which it begins.

    Its last layer starts at zero: a model that gets it computes what it did before, to the last bit.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp_in = Float32Linear(width, width)
        self.mlp_out = Float32Linear(width, width)

    def forward(self, target: Tensor) -> Tensor:
        return self.mlp_out(F.silu(self.mlp_in(embed_time(target, self.mlp_in.in_features))))
