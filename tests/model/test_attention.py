"""Who sees whom, positions, and the two ways to compute attention."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pizero.model.attention import attend, attend_folded, attend_fused, block_mask, token_positions

BITS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=9)


@given(BITS)
def test_block_mask_is_the_rule(tokens: list[tuple[bool, bool]]) -> None:
    """A valid token sees the valid tokens of its own and of earlier blocks."""
    valid, starts = (list(column) for column in zip(*tokens, strict=True))
    mask = block_mask(torch.tensor([valid]), torch.tensor(starts))[0]
    for query in range(len(tokens)):
        for key in range(len(tokens)):
            starts_between = any(starts[query + 1 : key + 1])
            assert bool(mask[query, key]) == (valid[query] and valid[key] and not starts_between)


@given(BITS)
def test_positions_count_valid_tokens(tokens: list[tuple[bool, bool]]) -> None:
    valid = [flag for flag, _ in tokens]
    positions = token_positions(torch.tensor([valid]))[0]
    assert positions[torch.tensor(valid)].tolist() == list(range(sum(valid)))


def inputs(kv_heads: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(2, 5, 4, 8, generator=generator)
    key, value = (torch.randn(2, 7, kv_heads, 8, generator=generator) for _ in range(2))
    mask = torch.rand(2, 5, 7, generator=generator) < 0.6
    mask[..., 0] = True
    return query, key, value, mask


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("masked", [True, False])
def test_attention_head_by_head(kv_heads: int, masked: bool) -> None:
    query, key, value, mask = inputs(kv_heads)
    expected = torch.zeros(2, 5, 4, 8)
    for head in range(4):
        shared = head // (4 // kv_heads)
        logits = query[:, :, head] @ key[:, :, shared].transpose(1, 2)
        if masked:
            logits = logits.masked_fill(~mask, -torch.inf)
        expected[:, :, head] = logits.softmax(-1) @ value[:, :, shared]
    for function in (attend, attend_folded, attend_fused):
        actual = function(query, key, value, mask if masked else None)
        assert torch.allclose(actual, expected.flatten(2), atol=1e-5)


def test_one_mask_serves_a_batch() -> None:
    query, key, value, mask = inputs(1)
    for function in (attend_folded, attend_fused):
        one = function(query, key, value, mask[:1])
        assert torch.allclose(one, function(query, key, value, mask[:1].expand(2, -1, -1)), atol=1e-6)


@pytest.mark.parametrize("function", [attend_folded, attend_fused])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_that_sees_nothing_is_uniform(function, dtype: torch.dtype) -> None:
    query, key, value, mask = inputs(1)
    query, key, value = (x.to(dtype).requires_grad_() for x in (query, key, value))
    mask[:, 2] = False
    out = function(query, key, value, mask)
    assert out.dtype == dtype
    expected = value.float().mean(dim=1).repeat(1, 1, 4).flatten(1)
    assert torch.allclose(out[:, 2].float(), expected, atol=1e-6 if dtype == torch.float32 else 0.02)
    out.sum().backward()
    assert all(bool(torch.isfinite(x.grad).all()) for x in (query, key, value))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.sampled_from([1, 2, 4]))
def test_masked_keys_do_not_matter(seed: int, kv_heads: int) -> None:
    query, key, value, mask = inputs(kv_heads, seed)
    mask[..., 4:] = False
    for function in (attend_folded, attend_fused):
        short = function(query, key[:, :4], value[:, :4], mask[..., :4])
        assert torch.allclose(function(query, key, value, mask), short, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_masks_in_every_dtype(dtype: torch.dtype) -> None:
    """Large logits beside masked ones, and a row without any key: numbers, and those of float32 but for rounding."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 6, heads, 8, generator=generator) for heads in (4, 1, 1))
    query = query * torch.tensor([1.0, 20.0])[:, None, None, None]
    mask = torch.rand(2, 6, 6, generator=generator) < 0.5
    mask[:, 2] = False
    with torch.no_grad():
        expected = attend_folded(query, key, value, mask)
        found = attend_folded(query.to(dtype), key.to(dtype), value.to(dtype), mask).float()
    assert bool(found.isfinite().all())
    seen = mask.any(-1)
    assert float((found - expected)[seen].abs().mean()) < 0.05
