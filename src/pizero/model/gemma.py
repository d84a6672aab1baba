"""The parts of one Gemma layer at one width, for either expert."""

from __future__ import annotations

from torch import Tensor, nn

from pizero.model.config import GemmaConfig
from pizero.model.layers import AdaptiveRMSNorm, GatedMLP, RMSNorm, apply_rotary, cast_once, gated_residual

Rotary = tuple[Tensor, Tensor]


def make_norm(width: int, adaptive: bool) -> RMSNorm | AdaptiveRMSNorm:
    return AdaptiveRMSNorm(width) if adaptive else RMSNorm(width)


class GemmaBlock(nn.Module):
    """Attention and MLP of one expert in one layer; `TwoExpertLayer` attends between `project` and `finish`."""

    def __init__(self, config: GemmaConfig, adaptive: bool) -> None:
        super().__init__()
        width, self.head_dim = config.width, config.head_dim
        self.attention_norm = make_norm(width, adaptive)
        self.query = nn.Linear(width, config.num_heads * config.head_dim, bias=False)
        self.key = nn.Linear(width, config.num_kv_heads * config.head_dim, bias=False)
        self.value = nn.Linear(width, config.num_kv_heads * config.head_dim, bias=False)
        self.output = nn.Linear(config.num_heads * config.head_dim, width, bias=False)
        self.mlp_norm = make_norm(width, adaptive)
        self.mlp = GatedMLP(width, config.mlp_dim)

    def project(
        self, x: Tensor, rotary: Rotary, conditioning: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """x [B, T, W] -> query (scaled), key, value [B, T, heads, head_dim], rotated; and the residual's gate."""
        y, gate = self.attention_norm(x, conditioning)
        y = cast_once(y)
        query, key, value = (
            layer(y).unflatten(-1, (-1, self.head_dim)) for layer in (self.query, self.key, self.value)
        )
        return apply_rotary(query, rotary) * self.head_dim**-0.5, apply_rotary(key, rotary), value, gate

    def finish(self, x: Tensor, attended: Tensor, gate: Tensor | None, conditioning: Tensor | None) -> Tensor:
        """Output projection, residual, MLP, residual: [B, T, W]."""
        x = gated_residual(x, self.output(attended), gate)
        y, gate = self.mlp_norm(x, conditioning)
        return gated_residual(x, self.mlp(y), gate)
