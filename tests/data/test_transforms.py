from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_allclose, assert_array_equal

from pizero.data.norm_stats import FieldStats, NormStats, field_stats
from pizero.data.relative_actions import RelativeActions
from pizero.data.transforms import Normalize, pad_to
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


@settings(max_examples=150, deadline=None)
@given(
    data=hnp.arrays(np.float32, st.tuples(st.integers(2, 12), st.just(5)), elements=NUMBERS),
    mode=MODES,
    convention=st.sampled_from(["openpi", "lerobot"]),
    epsilon=st.sampled_from([0.0, 1e-8, 1e-6, 1e-2]),
    dim=st.integers(1, 5),
    more=st.integers(0, 3),
)
def test_both_conventions_and_back(data: Any, mode: Any, convention: Any, epsilon: float, dim: int, more: int) -> None:
    """With fewer dimensions than the statistics have; on the way out a model's padding may follow.

    LeRobot's z-score has its epsilon on the way in alone, and so comes back smaller by epsilon in a deviation.
    """
    stats = field_stats(data)
    normalize = Normalize(stats, mode, epsilon, convention)
    sure = stats.spread(mode)[:dim] >= 1e-4
    with np.errstate(divide="ignore", invalid="ignore"):  # no spread and no epsilon: not among the sure ones
        y = normalize(data[:, :dim])
    assert y.shape == (len(data), dim)
    assert y.dtype == np.float64
    back = normalize.inverse(y)
    with np.errstate(invalid="ignore"):
        lost = epsilon / (stats.std[:dim] + epsilon) if (mode, convention) == ("zscore", "lerobot") else np.zeros(dim)
        expected = data[:, :dim] - lost * (data[:, :dim] - stats.mean[:dim])
    assert_allclose(back[:, sure], expected[:, sure], atol=2e-4)
    padded = np.concatenate([np.nan_to_num(y), np.zeros((len(data), 5 - dim + more))], axis=1)
    out = normalize.inverse(padded)
    assert out.shape == padded.shape
    assert_array_equal(out[:, :dim][:, sure], back[:, sure])
    zero = 0.0 if mode == "quantile" else pytest.approx(0.0, abs=1e-12)
    assert all(value == zero for value in out[:, 5:].ravel())


@settings(max_examples=60, deadline=None)
@given(
    data=hnp.arrays(np.float32, (9, 3), elements=NUMBERS),
    mode=MODES,
    to=st.sampled_from(["openpi", "lerobot"]),
    epsilon=st.sampled_from([1e-8, 1e-6, 0.5]),
)
def test_statistics_in_the_other_convention_normalise_alike(data: Any, mode: Any, to: Any, epsilon: float) -> None:
    """Where a dimension has spread: in float32, in which LeRobot computes.

    Of LeRobot's z-score the way out has no epsilon, and the way in is what stays.
    """
    source = "lerobot" if to == "openpi" else "openpi"
    stats = NormStats(mode, field_stats(data), field_stats(data), epsilon, source)
    moved = stats.in_convention(to)
    assert (moved.convention, moved.in_convention(to)) == (to, moved)
    sure = stats.state.spread(mode) >= 1e-2
    first, second = (Normalize(s.state, mode, s.epsilon, s.convention) for s in (stats, moved))
    y = first(data)[..., sure]
    assert_allclose(second(data)[..., sure], y, rtol=1e-4, atol=2e-3)
    wide = np.random.default_rng(0).uniform(-2, 2, size=(4, 3))
    lost = epsilon * wide if (mode, source) == ("zscore", "lerobot") else 0 * wide
    assert_allclose(second.inverse(wide)[..., sure], (first.inverse(wide) + lost)[..., sure], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("to", "source"), [("openpi", "lerobot"), ("lerobot", "openpi")])
def test_a_small_range_in_the_other_convention(to: Any, source: Any) -> None:
    """Where an epsilon is a hundredth of the range, or all of it."""
    field = FieldStats(np.zeros(2), np.ones(2), np.zeros(2), np.array([0.0, 1e-4]))
    stats = NormStats("quantile", field, field, 1e-6 if source == "openpi" else 1e-8, source)
    moved = stats.in_convention(to)
    y = np.linspace(-3, 3, 7)[:, None].repeat(2, axis=1)
    first, second = (Normalize(s.state, s.mode, s.epsilon, s.convention) for s in (stats, moved))
    assert_allclose(second.inverse(y), first.inverse(y), rtol=1e-5)


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
