"""Keys and values of the prefix, computed once per observation and read at every integration step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class KVCache:
    """keys, values: per layer [B, P, kv_heads, head_dim], keys after the rotary embedding. padding_mask: [B, P]."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    padding_mask: Tensor

    @property
    def next_position(self) -> Tensor:
        """[B, 1]: the position of the first suffix token, the number of valid prefix tokens."""
        return self.padding_mask.long().sum(dim=1, keepdim=True)
