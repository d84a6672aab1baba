from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_allclose, assert_array_equal

from pizero.data.norm_stats import FieldStats, field_stats
from pizero.data.transforms import Normalize, RelativeActions, pad_to
from pizero.types import UserError

NUMBERS = st.floats(-100, 100, width=32)
MODES = st.sampled_from(["zscore", "quantile"])


@settings(max_examples=100, deadline=None)
@given(
    data=hnp.arrays(np.float32, st.tuples(st.integers(2, 12), st.integers(1, 5)), elements=NUMBERS),
    mode=MODES,
    extra=st.integers(0, 2),
)
def test_normalize_and_back(data: Any, mode: Any, extra: int) -> None:
    """Any data comes back, whatever its statistics; batch dimensions do not matter."""
    stats = field_stats(data)
    normalize = Normalize(stats, mode)
    y = normalize(data)
    assert np.isfinite(y).all()
    wide = np.broadcast_to(data, (1,) * extra + data.shape)
    assert_array_equal(normalize(wide), np.broadcast_to(y, wide.shape))
    sure = stats.spread(mode) >= 1e-4
    assert_allclose(normalize.inverse(y)[:, sure], data[:, sure], atol=1e-4)


@settings(max_examples=100, deadline=None)
@given(x=hnp.arrays(np.float64, (3, 2), elements=st.floats(-1e9, 1e9)), mode=MODES)
def test_a_dimension_without_spread_stays_bounded(x: Any, mode: Any) -> None:
    stats = field_stats(np.full((10, 2), 0.3))
    y = Normalize(stats, mode)(x)
    assert (np.abs(y) <= 5).all()
    assert_allclose(Normalize(stats, mode).inverse(np.clip(y, -5, 5)), 0.3, atol=1e-5)


def test_ordinary_dimensions_are_not_clipped() -> None:
    stats = FieldStats(np.zeros(1), np.ones(1), -np.ones(1), np.ones(1))
    assert Normalize(stats, "zscore")(np.array([1000.0]))[0] == pytest.approx(1000, rel=1e-5)
    assert Normalize(stats, "quantile")(np.array([1000.0]))[0] == pytest.approx(1000, rel=1e-5)


def test_normalize_cuts_the_statistics_but_never_invents_them() -> None:
    stats = FieldStats(np.arange(3.0), np.ones(3))
    assert_allclose(Normalize(stats, "zscore")(np.array([1.0, 1.0])), [1, 0], atol=1e-5)
    with pytest.raises(UserError, match="got 4 dimensions, but the norm stats have 3"):
        Normalize(stats, "zscore")(np.zeros(4))


@settings(max_examples=100, deadline=None)
@given(
    mask=st.lists(st.booleans(), max_size=4).map(tuple),
    actions=hnp.arrays(np.float64, (2, 3, 4), elements=NUMBERS),
    state=hnp.arrays(np.float64, (2, 5), elements=NUMBERS),
    order=st.permutations(range(5)),
    mapped=st.booleans(),
)
def test_relative_and_back(mask: Any, actions: Any, state: Any, order: Any, mapped: bool) -> None:
    indices = tuple(order[: len(mask)]) if mapped else ()
    transform = RelativeActions(mask, indices)
    relative = transform(actions, state)
    assert_allclose(transform.inverse(relative, state), actions, atol=1e-9)
    assert_array_equal(transform(actions[1], state[1]), relative[1])
    for dim in range(4):
        on = dim < len(mask) and mask[dim]
        start = state[:, None, indices[dim] if mapped else dim] if on else 0.0
        assert_array_equal(relative[..., dim], actions[..., dim] - start)


def test_relative_leaves_its_input_alone() -> None:
    actions = np.ones((2, 1), dtype=np.float32)
    out = RelativeActions((True,))(actions, np.array([0.25], dtype=np.float32))
    assert_array_equal(actions, 1)
    assert out.dtype == np.float32
    assert_array_equal(out, 0.75)


@pytest.mark.parametrize(("mask", "indices"), [((True,) * 3, ()), ((True, True), (0, 4))])
def test_relative_refuses_dimensions_that_do_not_exist(mask: Any, indices: Any) -> None:
    with pytest.raises(UserError, match="correct the mask"):
        RelativeActions(mask, indices)(np.zeros((1, 2)), np.zeros(4))


def test_relative_needs_an_index_for_every_place_of_the_mask() -> None:
    with pytest.raises(UserError, match="1 state indices for a mask of 2"):
        RelativeActions((True, True), (0,))


@given(x=hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=5), elements=NUMBERS), dim=st.integers(1, 8))
def test_pad_then_crop(x: Any, dim: int) -> None:
    out = pad_to(x, dim)
    assert out.shape[-1] == max(dim, x.shape[-1])
    assert_array_equal(out[..., : x.shape[-1]], x)
    assert_array_equal(out[..., x.shape[-1] :], 0)
