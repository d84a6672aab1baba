"""Attention of compiled layers on a GPU, as far as a CPU can tell: every branch gives `attend`'s numbers."""

from __future__ import annotations

import pytest
import torch

from pizero.engine.attention_kernels import FEW_QUERIES, attend_compiled
from pizero.model.attention import attend


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("queries", [3, FEW_QUERIES + 1])
def test_every_branch_is_attend(queries: int, masked: bool) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(2, queries, 4, 8), torch.randn(2, 9, 1, 8), torch.randn(2, 9, 1, 8)
    mask = torch.rand(2, queries, 9) < 0.7 if masked else None
    torch.testing.assert_close(attend_compiled(query, key, value, mask), attend(query, key, value, mask))
