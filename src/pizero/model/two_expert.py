"""Two Gemma experts that share attention, layer by layer.

Layer i of both experts is one module with one forward, so that sharding, activation checkpointing and compilation of a
layer always take effect. The prefix never sees the suffix; so the prefix attends to itself, the suffix to both. FAST
tokens go through the prefix expert and see the prefix, but neither prefix nor suffix sees them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pizero.model.attention import Attention, attend, block_mask, token_positions
from pizero.model.config import GemmaConfig
from pizero.model.gemma import GemmaBlock, Rotary, make_norm
from pizero.model.layers import rotary_table


@dataclass(frozen=True)
class Stream:
    """What the layers need beside one expert's tokens: rotary table, attention mask, flow-time conditioning.

    mask: [B, P, P] for the prefix, [B, S, P + S] for what comes after it. conditioning: [B, W], [B, S, W] or
    None.
    """

    rotary: Rotary
    mask: Tensor
    conditioning: Tensor | None = None


@dataclass(frozen=True)
class Tokens:
    """What the prefix expert reads: values [B, T, W] and mask [B, T], true where a token is real.

    starts: [B, T] bool, where a block starts; None: they are one block.
    """

    values: Tensor
    mask: Tensor
    starts: Tensor | None = None


class Hidden(NamedTuple):
    """Output of a joint pass after the final norms: suffix [N * B, S, E], prefix [B, P, W] and fast [B, F, W], or None
    where it was not asked for.
    """

    suffix: Tensor
    prefix: Tensor | None
    fast: Tensor | None


@dataclass(frozen=True)
class KVCache:
    """The prefix, computed once per observation and read at every integration step: `prefill` fills it.

    keys, values: per layer [B, P, kv_heads, head_dim], keys after the rotary embedding. padding_mask: [B, P].
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    padding_mask: Tensor


class LayerOutput(NamedTuple):
    """Tokens after a layer, None where there are none; cached: the prefix's (key, value)."""

    prefix: Tensor | None
    suffix: Tensor | None
    cached: tuple[Tensor, Tensor]
    fast: Tensor | None = None


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
        fast: tuple[Tensor, Stream] | None = None,
        insulated: bool = False,
    ) -> LayerOutput:
        """Tokens of either expert or of both, after this layer.

        `cached` stands for the prefix when only the suffix is given; with both the prefix continues after it. With
        `prefix_output=False` the prefix gives its keys and values only: all that the last layer of a joint pass is
        asked for. insulated: the suffix reads keys and values without sending gradients back.
        """
        x_prefix = x_suffix = x_fast = None
        if prefix is not None:
            x, stream = prefix
            query, key, value, _ = self.prefix.project(x, stream.rotary, None)
            cached = (key, value) if cached is None else _after_cached(cached, (key, value))
            if prefix_output:
                x_prefix = self.prefix.finish(x, self.attend(query, *cached, stream.mask), None, None)
        if cached is None:
            raise ValueError("the suffix needs the prefix or its cached keys and values")
        if fast is not None:
            x, stream = fast
            query, key, value, _ = self.prefix.project(x, stream.rotary, None)
            attended = self.attend(query, *_after_cached(cached, (key, value)), stream.mask)
            x_fast = self.prefix.finish(x, attended, None, None)
        if suffix is not None:
            x, stream = suffix
            query, key, value, gate = self.expert.project(x, stream.rotary, stream.conditioning)
            seen = (cached[0].detach(), cached[1].detach()) if insulated else cached
            attended = self.attend(query, *_after_cached(seen, (key, value)), stream.mask)
            x_suffix = self.expert.finish(x, attended, gate, stream.conditioning)
        return LayerOutput(x_prefix, x_suffix, cached, x_fast)


class TwoExpertTransformer(nn.Module):
    """joint: training, both experts in one pass. prefill, extend and decode: inference; the prefix once, perhaps more
    tokens after it, then the suffix.
    """

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
        return self.joint_with_text(Tokens(prefix, padding_mask), (suffix, block_starts, conditioning)).suffix

    def joint_with_text(
        self,
        prefix: Tokens,
        suffix: tuple[Tensor, Tensor, Tensor | None],
        fast: Tokens | None = None,
        prefix_output: bool = False,
        insulated: bool = False,
    ) -> Hidden:
        """The same with what the prefix expert has to predict text and FAST tokens from; suffix as `joint` takes it."""
        x, x_suffix, conditioning = prefix.values.to(self.dtype), suffix[0].to(self.expert_dtype), suffix[2]
        stream = self._prefix_stream(prefix.mask, prefix.starts)
        suffix_stream = self._suffix_stream(prefix.mask, x_suffix, *suffix[1:])
        x_fast, fast_stream = (None, None) if fast is None else (fast.values.to(x), self._later(prefix.mask, fast))
        for i, layer in enumerate(self.layers):
            wanted = prefix_output or i + 1 < len(self.layers)
            x, x_suffix, _, x_fast = layer(
                (x, stream), (x_suffix, suffix_stream), prefix_output=wanted,
                fast=None if x_fast is None else (x_fast, fast_stream), insulated=insulated,
            )  # fmt: skip
        outputs = (None if out is None else self.prefix_norm(out)[0] for out in (x, x_fast))
        return Hidden(self.expert_norm(x_suffix, conditioning)[0], *outputs)

    def prefill(
        self, prefix: Tensor, padding_mask: Tensor, block_starts: Tensor | None = None
    ) -> tuple[Tensor, KVCache]:
        """prefix [B, P, W], padding_mask and maybe block_starts [B, P] -> hidden states [B, P, W] after the final norm,
        and the cache.
        """
        return self._prefix_pass(Tokens(prefix, padding_mask, block_starts), None)

    def extend(self, cache: KVCache, tokens: Tokens) -> tuple[Tensor, KVCache]:
        """More tokens of the prefix expert, which see all that is cached: hidden states [B, T, W], the longer cache."""
        return self._prefix_pass(tokens, cache)

    def _prefix_pass(self, tokens: Tokens, cache: KVCache | None) -> tuple[Tensor, KVCache]:
        x, layers = tokens.values.to(self.dtype), len(self.layers)
        mask = tokens.mask if cache is None else torch.cat([cache.padding_mask, tokens.mask], dim=1)
        stream = self._prefix_stream(mask, tokens.starts) if cache is None else self._later(cache.padding_mask, tokens)
        before = [None] * layers if cache is None else list(zip(cache.keys, cache.values, strict=True))
        pairs: list[tuple[Tensor, Tensor]] = []
        for layer, cached in zip(self.layers, before, strict=True):
            x, _, pair, _ = layer((x, stream), None, cached)
            pairs.append(pair)
        keys, values = zip(*pairs, strict=True)
        return self.prefix_norm(x)[0], KVCache(keys, values, mask)

    def decode(
        self, cache: KVCache, suffix: Tensor, block_starts: Tensor, conditioning: Tensor | None = None
    ) -> Tensor:
        """suffix [N * B, S, E] against the cache -> [N * B, S, E] after the final norm."""
        suffix = suffix.to(self.expert_dtype)
        stream = self._suffix_stream(cache.padding_mask, suffix, block_starts, conditioning)
        for layer, key, value in zip(self.layers, cache.keys, cache.values, strict=True):
            suffix = layer(None, (suffix, stream), cached=(key, value)).suffix
        return self.expert_norm(suffix, conditioning)[0]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the prefix expert's large matrices; its tokens are cast to it on the way in."""
        return self.get_submodule("layers.0.prefix.query").get_parameter("weight").dtype

    @property
    def expert_dtype(self) -> torch.dtype:
        """The action expert's; another one where only one of them is frozen in a training in mixed precision."""
        return self.get_submodule("layers.0.expert.query").get_parameter("weight").dtype

    def _prefix_stream(self, padding_mask: Tensor, starts: Tensor | None = None) -> Stream:
        mask = block_mask(padding_mask, torch.zeros_like(padding_mask) if starts is None else starts)
        return Stream(rotary_table(token_positions(padding_mask), self.head_dim), mask)

    def _suffix_stream(
        self, padding_mask: Tensor, suffix: Tensor, block_starts: Tensor, conditioning: Tensor | None
    ) -> Stream:
        batch, length = len(padding_mask), suffix.shape[1]
        mask, positions = _rows_after(
            padding_mask, padding_mask.new_ones(batch, length), block_starts.expand(batch, -1)
        )
        draws = suffix.shape[0] // batch
        rotary = rotary_table(positions.repeat(draws, 1), self.head_dim)
        return Stream(rotary, mask.repeat(draws, 1, 1), conditioning)

    def _later(self, padding_mask: Tensor, tokens: Tokens) -> Stream:
        starts = torch.zeros_like(tokens.mask) if tokens.starts is None else tokens.starts
        mask, positions = _rows_after(padding_mask, tokens.mask, starts)
        return Stream(rotary_table(positions, self.head_dim), mask)


def _rows_after(padding_mask: Tensor, valid: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """Of tokens after a prefix, all of which they see: the last rows of the whole mask [B, T, P + T], and positions
    [B, T] that follow the valid prefix tokens. valid, starts: [B, T] of the tokens.
    """
    length = padding_mask.shape[1]
    whole = torch.cat([padding_mask, valid], dim=1)
    blocks = torch.cat([torch.zeros_like(padding_mask), starts], dim=1)
    return block_mask(whole, blocks)[:, length:], token_positions(whole)[:, length:]


def _after_cached(cached: tuple[Tensor, Tensor], own: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Keys and values of the prefix [B, P, ...], repeated for each draw, before the later tokens' [N * B, T, ...]."""
    draws = own[0].shape[0] // cached[0].shape[0]
    parts = (part.repeat(draws, 1, 1, 1) if draws > 1 else part for part in cached)
    key, value = (torch.cat(pair, dim=1) for pair in zip(parts, own, strict=True))
    return key, value
