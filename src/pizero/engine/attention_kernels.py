"""Which of PyTorch's kernels computes attention on the fast path."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from pizero.model.attention import Attention, attend, attend_folded, attend_fused

FEW_QUERIES = 128
SPLITS_KEYS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def attention_of(device: torch.device, compiled: bool) -> Attention:
    return attend_compiled if device.type == "cuda" and compiled else attend


def attend_compiled(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """As `attend`, inside of a compiled layer on a GPU.

    For the shapes of π0 an H100 took (docs/results/inference.md): 50 queries without a mask 13 us by FlashAttention,
    which splits the keys, and 26 us by cuDNN; a whole prefix 46 and 27 us; with a mask compiled products are ahead.
    """
    if mask is not None:
        return attend_folded(query, key, value, mask)
    if query.shape[1] > FEW_QUERIES:
        return attend_fused(query, key, value, mask)
    with sdpa_kernel(SPLITS_KEYS):
        return attend_fused(query, key, value, mask)
