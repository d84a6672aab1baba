"""Conversions, relative actions, normalisation and padding: each is undone by its inverse, alone and in a row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from pizero.data.conversions import Conversion, to_model, to_robot
from pizero.data.embodiments import Embodiment
from pizero.data.norm_stats import FieldStats, NormStats, field_stats
from pizero.data.pipeline import Pipeline
from pizero.data.relative_actions import RelativeActions
from pizero.data.tokenizer import PaligemmaTokenizer
from pizero.data.transforms import Normalize, pad_to

ACTION_DIM, STATE_DIM, HORIZON = 5, 6, 4


def ends() -> st.SearchStrategy[tuple[float, float]]:
    number = st.floats(-200, 200)
    return st.tuples(number, number).filter(lambda pair: abs(pair[0] - pair[1]) > 0.1)


CONVERSIONS = st.lists(
    st.builds(
        Conversion,
        st.lists(st.integers(0, ACTION_DIM - 1), min_size=1, max_size=ACTION_DIM, unique=True).map(tuple),
        st.sampled_from(["both", "state", "action"]), ends(), ends(),
    ),
    max_size=4,
)  # fmt: skip
"""Several may convert the same dimension, one after the other."""
RELATIVE = st.integers(0, ACTION_DIM).flatmap(
    lambda size: st.builds(
        RelativeActions,
        st.lists(st.booleans(), min_size=size, max_size=size).map(tuple),
        st.lists(st.integers(0, STATE_DIM - 1), min_size=size, max_size=size).map(tuple),
    )
)
NUMBERS = st.integers(0, 2**32 - 1).map(np.random.default_rng)
"""A source of actions and states."""


def same(back: Any, first: Any) -> None:
    """Within float64 rounding of the largest number in between."""
    assert_allclose(back, first, rtol=0, atol=1e-9 * max(1.0, float(np.abs(first).max())))


@settings(deadline=None)
@given(conversions=CONVERSIONS, rng=NUMBERS)
def test_conversions(conversions: list[Conversion], rng: np.random.Generator) -> None:
    robot = rng.normal(0, 50, (3, HORIZON, ACTION_DIM))
    model = to_model(robot, conversions)
    same(to_robot(model, conversions), robot)
    touched = sorted({dim for conversion in conversions for dim in conversion.dims})
    others = [dim for dim in range(ACTION_DIM) if dim not in touched]
    assert_array_equal(model[..., others], robot[..., others])


@settings(deadline=None)
@given(conversion=CONVERSIONS.filter(bool).map(lambda several: several[0]))
def test_a_conversion_goes_through_its_points(conversion: Conversion) -> None:
    for robot, model in zip(conversion.robot, conversion.model, strict=True):
        at = conversion(np.full(ACTION_DIM, robot))
        assert_allclose(at[list(conversion.dims)], model, rtol=1e-9, atol=1e-9)


@settings(deadline=None)
@given(position=st.lists(st.floats(0, 1), min_size=1), robot=ends(), model=ends())
def test_the_gripper_of_aloha(position: list[float], robot: tuple[float, float], model: tuple[float, float]) -> None:
    conversion = Conversion((0,), curve="aloha_gripper", robot=robot, model=model)
    x = np.array(position)[:, None]
    # At 1, the end of its reach, the angle no longer tells small moves of the fingers.
    assert_allclose(conversion.inverse(conversion(x)), x, atol=1e-6)
    steps = np.diff(conversion(np.linspace(0, 1, 50)[:, None]), axis=0)
    assert (steps > 0).all() or (steps < 0).all()


def test_a_gripper_far_off_is_a_number() -> None:
    conversion = Conversion((0,), curve="aloha_gripper")
    positions = np.array([-1e6, -1.0, -0.01844 / (0.058 - 0.01844), 2.0, 1e6])[:, None]
    assert np.isfinite(conversion(positions)).all()


@settings(deadline=None)
@given(relative=RELATIVE, rng=NUMBERS)
def test_relative_actions(relative: RelativeActions, rng: np.random.Generator) -> None:
    actions, state = rng.normal(0, 50, (3, HORIZON, ACTION_DIM)), rng.normal(0, 50, (3, STATE_DIM))
    same(relative.inverse(relative(actions, state), state), actions)


def stats_of(rng: np.random.Generator, dim: int) -> FieldStats:
    return field_stats(rng.normal(rng.normal(0, 50, dim), rng.uniform(0.01, 50, dim), (30, dim)))


@settings(deadline=None)
@given(mode=st.sampled_from(["zscore", "quantile"]), extra=st.integers(0, 3), rng=NUMBERS)
def test_normalise_and_pad(mode: Any, extra: int, rng: np.random.Generator) -> None:
    normalize = Normalize(stats_of(rng, ACTION_DIM), mode)
    x = rng.normal(0, 50, (3, ACTION_DIM))
    padded = pad_to(normalize(x), ACTION_DIM + extra)
    assert_array_equal(padded[:, ACTION_DIM:], 0)
    same(normalize.inverse(padded[:, :ACTION_DIM]), x)


@settings(deadline=None, max_examples=50)
@given(
    conversions=CONVERSIONS, relative=RELATIVE, mode=st.sampled_from(["zscore", "quantile"]),
    history=st.sampled_from([1, 3]), rng=NUMBERS,
)  # fmt: skip
def test_all_of_them_in_a_pipeline(
    conversions: list[Conversion], relative: RelativeActions, mode: Any, history: int, rng: np.random.Generator
) -> None:
    robot = Embodiment(
        "arm", {"base_0_rgb": "front"}, STATE_DIM, ACTION_DIM, relative.mask, relative.state_indices,
        conversions=tuple(conversions),
    )  # fmt: skip
    actions = rng.normal(0, 50, (3, HORIZON, ACTION_DIM))
    state = rng.normal(0, 50, (3, history, STATE_DIM) if history > 1 else (3, STATE_DIM))
    newest = robot.model_state(state[:, -1] if history > 1 else state)
    learned = relative(robot.model_actions(actions), newest)
    norm_stats = NormStats(
        mode,
        field_stats(rng.normal(0, 50, (30, STATE_DIM))),
        field_stats(learned.reshape(-1, ACTION_DIM)),
    )
    pipeline = Pipeline(
        robot, norm_stats, PaligemmaTokenizer.bytes(), ("base_0_rgb",), "pi0", 16, (14, 14), state_dim=8, action_dim=7,
        num_history=history,
    )  # fmt: skip
    target = pipeline.model_actions(actions, state)
    assert_array_equal(target[..., ACTION_DIM:], 0)
    expected = Normalize(norm_stats.actions, mode)(learned)
    assert_allclose(target[..., :ACTION_DIM], expected, rtol=1e-5, atol=1e-5)
    # Targets are float32, so what comes back is that exact in the model's numbers, and no more in the robot's.
    back = robot.model_actions(pipeline.robot_actions(target, state))
    scale = 1 + np.abs(learned).max() + np.abs(newest).max() + np.abs(robot.model_actions(actions)).max()
    assert_allclose(back, robot.model_actions(actions), rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.float32, np.float64])
def test_whole_numbers_are_converted_too(dtype: Any) -> None:
    assert_allclose(Conversion((0,), robot=(0, 100))(np.array([[50]], dtype=dtype)), [[0.5]])
