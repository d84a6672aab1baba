"""Two Gemma experts that share attention, layer by layer.

Layer i of both experts is one module with one forward, so that sharding, activation checkpointing and compilation of a
layer always take effect. The prefix never sees the suffix; so the prefix attends to itself, the suffix to both.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pizero.model.attention import Attention, attend, block_mask, token_positions
from pizero.model.config import GemmaConfig
from pizero.model.gemma import GemmaBlock, Rotary, make_norm
from pizero.model.layers import rotary_table


@dataclass(frozen=True)
class Stream:
    """What the layers need beside one expert's tokens: rotary table, attention mask, flow-time conditioning.

    mask: [B, P, P] for the prefix, [B, S, P + S] for the suffix. conditioning: [B, W], [B, S, W] or
    None.
    """

    rotary: Rotary
    mask: Tensor
    conditioning: Tensor | None = None


@dataclass(frozen=True)
class KVCache:
    """The prefix, computed once per observation and read at every integration step: `prefill` fills it.

    keys, values: per layer [B, P, kv_heads, head_dim], keys after the rotary embedding. padding_mask: [B, P].
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    padding_mask: Tensor


class TwoExpertLayer(nn.Module):
    """Layer i of the prefix expert and of the action expert."""

    def __init__(self, prefix: GemmaConfig, expert: GemmaConfig, adaptive: bool) -> None:
        super().__init__()
        self.prefix = GemmaBlock(prefix, adaptive=False)
        self.expert = GemmaBlock(expert, adaptive=adaptive)
        self.attend: Attention = attend

    def forward(
        self,
        prefix: tuple[Tensor, Stream] | None,
        suffix: tuple[Tensor, Stream] | None,
        cached: tuple[Tensor, Tensor] | None = None,
        prefix_output: bool = True,
    ) -> tuple[Tensor | None, Tensor | None, tuple[Tensor, Tensor]]:
        """Tokens of either expert or of both -> the same after this layer, and the prefix's (key, value).

        `cached` stands for the prefix when only the suffix is given. With `prefix_output=False` the prefix gives its
        keys and values only: all that the last layer of a joint pass is asked for.
        """
        x_prefix = x_suffix = None
        if prefix is not None:
            x, stream = prefix
            query, key, value, _ = self.prefix.project(x, stream.rotary, None)
            cached = key, value
            if prefix_output:
                x_prefix = self.prefix.finish(x, self.attend(query, key, value, stream.mask), None, None)
        if cached is None:
            raise ValueError("the suffix needs the prefix or its cached keys and values")
        if suffix is not None:
            x, stream = suffix
            query, key, value, gate = self.expert.project(x, stream.rotary, stream.conditioning)
            key, value = (_after_prefix(part, own) for part, own in zip(cached, (key, value), strict=True))
            attended = self.attend(query, key, value, stream.mask)
            x_suffix = self.expert.finish(x, attended, gate, stream.conditioning)
        return x_prefix, x_suffix, cached


class TwoExpertTransformer(nn.Module):
    """joint: training, both experts in one pass. prefill and decode: inference, the prefix once, then the suffix."""

    def __init__(self, prefix: GemmaConfig, expert: GemmaConfig, adaptive: bool) -> None:
        super().__init__()
        self.head_dim = prefix.head_dim
        self.layers = nn.ModuleList(TwoExpertLayer(prefix, expert, adaptive) for _ in range(prefix.depth))
        self.prefix_norm = make_norm(prefix.width, adaptive=False)
        self.expert_norm = make_norm(expert.width, adaptive)

    def joint(
        self,
        prefix: Tensor,
        padding_mask: Tensor,
        suffix: Tensor,
        block_starts: Tensor,
        conditioning: Tensor | None = None,
    ) -> Tensor:
        """prefix [B, P, W], padding_mask [B, P], suffix [N * B, S, E], block_starts [S] -> suffix [N * B, S, E].

        Several suffixes may share one prefix: N of them, the draws on the outer axis.
        """
        prefix, suffix = prefix.to(self.dtype), suffix.to(self.expert_dtype)
        prefix_stream = self._prefix_stream(padding_mask)
        suffix_stream = self._suffix_stream(padding_mask, suffix, block_starts, conditioning)
        for i, layer in enumerate(self.layers):
            last = i + 1 == len(self.layers)
            prefix, suffix, _ = layer((prefix, prefix_stream), (suffix, suffix_stream), prefix_output=not last)
        return self.expert_norm(suffix, conditioning)[0]

    def prefill(self, prefix: Tensor, padding_mask: Tensor) -> tuple[Tensor, KVCache]:
        """prefix [B, P, W], padding_mask [B, P] -> hidden states [B, P, W] after the final norm, and the cache."""
        prefix, stream = prefix.to(self.dtype), self._prefix_stream(padding_mask)
        keys: list[Tensor] = []
        values: list[Tensor] = []
        for layer in self.layers:
            prefix, _, (key, value) = layer((prefix, stream), None)
            keys.append(key)
            values.append(value)
        return self.prefix_norm(prefix)[0], KVCache(tuple(keys), tuple(values), padding_mask)

    def decode(
        self, cache: KVCache, suffix: Tensor, block_starts: Tensor, conditioning: Tensor | None = None
    ) -> Tensor:
        """suffix [N * B, S, E] against the cache -> [N * B, S, E] after the final norm."""
        suffix = suffix.to(self.expert_dtype)
        stream = self._suffix_stream(cache.padding_mask, suffix, block_starts, conditioning)
        for layer, key, value in zip(self.layers, cache.keys, cache.values, strict=True):
            _, suffix, _ = layer(None, (suffix, stream), cached=(key, value))
        return self.expert_norm(suffix, conditioning)[0]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the prefix expert's large matrices; its tokens are cast to it on the way in."""
        return self.get_submodule("layers.0.prefix.query").get_parameter("weight").dtype

    @property
    def expert_dtype(self) -> torch.dtype:
        """The action expert's; another one where only one of them is frozen in a training in mixed precision."""
        return self.get_submodule("layers.0.expert.query").get_parameter("weight").dtype

    def _prefix_stream(self, padding_mask: Tensor) -> Stream:
        mask = block_mask(padding_mask, torch.zeros_like(padding_mask))
        return Stream(rotary_table(token_positions(padding_mask), self.head_dim), mask)

    def _suffix_stream(
        self, padding_mask: Tensor, suffix: Tensor, block_starts: Tensor, conditioning: Tensor | None
    ) -> Stream:
        """The last S rows of the whole mask, and positions that go on after the valid prefix tokens."""
        batch, length = padding_mask.shape
        valid = torch.cat([padding_mask, padding_mask.new_ones(batch, suffix.shape[1])], dim=1)
        starts = torch.cat([torch.zeros_like(padding_mask[0]), block_starts])
        mask, positions = block_mask(valid, starts)[:, length:], token_positions(valid)[:, length:]
        draws = suffix.shape[0] // batch
        rotary = rotary_table(positions.repeat(draws, 1), self.head_dim)
        return Stream(rotary, mask.repeat(draws, 1, 1), conditioning)


def _after_prefix(prefix: Tensor, own: Tensor) -> Tensor:
    """Keys or values of the prefix [B, P, ...], repeated for each draw, before the suffix's own [N * B, S, ...]."""
    draws = own.shape[0] // prefix.shape[0]
    return torch.cat([prefix.repeat(draws, 1, 1, 1) if draws > 1 else prefix, own], dim=1)
