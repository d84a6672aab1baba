"""Who sees whom, and grouped-query attention.

Tokens form blocks; a token sees its own block and every earlier block. With the flag 1 where a block starts:

    π0    images  prompt | state | actions          flags  0 0 0 | 1 | 1 0 0 0      (bidirectional)
                                                           0 0 0 | 1 | 1 1 1 1      (causal)
                              keys
                    images prompt state actions
    query  images     x      x      .      .
           prompt     x      x      .      .
           state      x      x      x      .
           actions    x      x      x      x        (causal: action i sees actions up to i)

    π0.5 that writes text: t text, f FAST tokens (in training alone)

           images  prompt | t t t | f f f f | actions        flags  0 0 0 | 1 1 1 | 1 1 1 1 | 1 0 0 0

                              keys
                    images prompt  text   FAST  actions
    query  images     x      x      .      .      .
           prompt     x      x      .      .      .
           text       x      x   earlier   .      .
           FAST       x      x      x   earlier   .
           actions    x      x      x      .      x         (not FAST: it is not there at inference)

The positions of FAST tokens and actions both continue after the text. Under insulation the actions read keys and
values of the prefix without sending gradients back.

Padding is never attended and takes no position. Training and cached inference read the same rule.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

Attention: TypeAlias = Callable[..., Tensor]
"""As `attend`: query, key, value and perhaps a mask."""

MASKED = -2.3819763e38
"""Logit of a masked pair (Gemma's own constant). Finite: a query row without any key becomes uniform, never NaN."""
MASKED_FLOAT16 = -32_752.0
"""The same where numbers end at 65,504; a logit beside it is no infinity either."""


def block_mask(padding_mask: Tensor, block_starts: Tensor) -> Tensor:
    """[B, T] valid tokens and [T] or [B, T] block starts -> [B, T, T], true where query (row) may attend key (column).

    Rows and columns of padding are false.
    """
    block = torch.broadcast_to(block_starts, padding_mask.shape).long().cumsum(dim=1)
    sees = block[:, None, :] <= block[:, :, None]
    return sees & padding_mask[:, None, :] & padding_mask[:, :, None]


def token_positions(padding_mask: Tensor) -> Tensor:
    """Running count of valid tokens, minus 1: [B, T]. Padding repeats the position before it (-1 at the start)."""
    return padding_mask.long().cumsum(dim=1) - 1


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Grouped-query attention; the one place that chooses how it is computed.

    query [B, S, heads, head_dim], key and value [B, T, kv_heads, head_dim], mask [B or 1, S, T] bool or None.
    The query is already scaled. Softmax in float32. Returns [B, S, heads * head_dim].

    On a CPU two plain products, the query heads that share a key head folded into rows: 3 to 4 times faster than
    `scaled_dot_product_attention` where there are bfloat16 units, about equal at small sizes on an AVX2 machine
    (benchmarks/training/speed.py measures yours). On a GPU the fused kernel saves the logits.
    """
    return (attend_folded if query.device.type == "cpu" else attend_fused)(query, key, value, mask)


def attend_fused(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    bias = None
    if mask is not None:
        bias = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, torch.finfo(query.dtype).min)[:, None]
        # On most GPUs the one fused kernel for a mask and heads of 256 wants a key head for each query head, and groups
        # would keep whole logits; on an H100, whose kernel takes groups, this costs 7 % of a layer's attention.
        group = query.shape[2] // key.shape[2]
        key, value = (x.unsqueeze(3).expand(-1, -1, -1, group, -1).flatten(2, 3) for x in (key, value))
    out = F.scaled_dot_product_attention(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), attn_mask=bias, scale=1.0, enable_gqa=True
    )
    return out.transpose(1, 2).flatten(2)


def attend_folded(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    batch, length, heads, head_dim = query.shape
    kv_heads, group = key.shape[2], heads // key.shape[2]
    # [B, K, G * S, head_dim]: heads that share a key head become rows of one product
    rows = query.view(batch, length, kv_heads, group, head_dim).permute(0, 2, 3, 1, 4)
    rows = rows.reshape(batch, kv_heads, group * length, head_dim)
    # with a row's keys [B, K, G, S, T], so that the mask fits
    logits = torch.matmul(rows, key.permute(0, 2, 3, 1)).view(batch, kv_heads, group, length, key.shape[1])
    if torch.is_grad_enabled():  # the softmax computes in float32 anyway; its derivative is kept exact too
        logits = logits.float()
    if mask is not None:  # to add costs a tenth of filling in
        masked = MASKED if logits.dtype != torch.float16 else MASKED_FLOAT16
        logits = logits + mask.logical_not().to(logits.dtype).mul_(masked)[:, None, None]
    weights = logits.softmax(dim=-1).to(value.dtype).view(batch, kv_heads, group * length, key.shape[1])
    out = torch.matmul(weights, value.transpose(1, 2))  # [B, K, G * S, head_dim]
    out = out.view(batch, kv_heads, group, length, head_dim)
    return out.permute(0, 3, 1, 2, 4).reshape(batch, length, heads * head_dim)
