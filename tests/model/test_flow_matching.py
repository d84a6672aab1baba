"""The direction of time, the training times and the solvers, against closed forms."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pizero.model.flow_matching import Solver, integrate, interpolate, sample_time, velocity_target

SOLVERS: tuple[Solver, ...] = ("euler", "heun", "midpoint")
NOISE, ACTIONS = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)), torch.full((2, 3, 4), 0.5)


def identity(x: Tensor, time: Tensor) -> Tensor:
    return x


def test_both_ends_of_the_path() -> None:
    """t = 1 is noise, t = 0 is the action."""
    assert torch.equal(interpolate(ACTIONS, NOISE, torch.ones(2)), NOISE)
    assert torch.equal(interpolate(ACTIONS, NOISE, torch.zeros(2)), ACTIONS)


def test_each_sample_has_its_own_time() -> None:
    x_t = interpolate(ACTIONS, NOISE, torch.tensor([1.0, 0.25]))
    assert torch.equal(x_t[0], NOISE[0])
    assert torch.allclose(x_t[1], 0.25 * NOISE[1] + 0.75 * ACTIONS[1])


@given(st.floats(0.05, 0.95))
def test_the_target_is_the_slope_of_the_path(time: float) -> None:
    step = 0.05
    slope = interpolate(ACTIONS, NOISE, torch.full((2,), time + step)) - interpolate(
        ACTIONS, NOISE, torch.full((2,), time)
    )
    assert torch.allclose(slope / step, velocity_target(ACTIONS, NOISE), atol=1e-4)


@settings(deadline=None)
@given(st.sampled_from(SOLVERS), st.integers(1, 40))
def test_a_constant_velocity_is_followed_exactly(solver: Solver, num_steps: int) -> None:
    """With the true velocity of a straight path, noise becomes the action whatever the number of steps."""
    target = velocity_target(ACTIONS, NOISE)
    result = integrate(lambda x, t: target, NOISE, num_steps, solver)
    assert torch.allclose(result, ACTIONS, atol=2e-6)


@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_closed_forms_on_a_linear_field(num_steps: int) -> None:
    h = 1 / num_steps
    factors = {"euler": 1 - h, "heun": 1 - h + h * h / 2, "midpoint": 1 - h + h * h / 2}
    for solver in SOLVERS:
        result = integrate(identity, NOISE, num_steps, solver)
        assert torch.allclose(result, NOISE * factors[solver] ** num_steps, atol=1e-6)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("midpoint", 2)])
def test_order_of_convergence(solver: Solver, order: int) -> None:
    start = torch.ones(1, 1, 1)
    errors = [abs(float(integrate(identity, start, n, solver)) - math.exp(-1)) for n in (5, 10, 20)]
    for coarse, fine in itertools.pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("num_steps", [1, 3, 10])
def test_times_at_which_the_velocity_is_asked(num_steps: int) -> None:
    """Exactly num_steps steps from t = 1; Euler's last call is at 1 / num_steps, never at 0."""
    starts = [1 - k / num_steps for k in range(num_steps)]
    expected = {
        "euler": starts,
        "midpoint": [t for s in starts for t in (s, s - 0.5 / num_steps)],
        "heun": [t for s in starts for t in (s, s - 1 / num_steps)],
    }
    for solver in SOLVERS:
        asked: list[float] = []

        def velocity(x: Tensor, time: Tensor, asked: list[float] = asked) -> Tensor:
            assert time.shape == (2,)
            assert time.dtype == torch.float32
            assert float(time.min()) == float(time.max()) >= 0
            asked.append(float(time[0]))
            return torch.zeros_like(x)

        integrate(velocity, NOISE, num_steps, solver)
        assert asked == pytest.approx(expected[solver], abs=1e-6)


def test_integration_is_in_float32_and_leaves_the_noise_alone() -> None:
    noise = NOISE.clone().bfloat16()
    before = noise.clone()
    assert integrate(identity, noise, 2).dtype == torch.float32
    assert torch.equal(noise, before)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        integrate(identity, NOISE, 0)
    with pytest.raises(ValueError, match="unknown solver 'rk4'; expected euler, heun or midpoint"):
        integrate(identity, NOISE, 1, "rk4")  # type: ignore[arg-type]


def test_distribution_of_training_times() -> None:
    """Beta(1.5, 1) * 0.999 + 0.001 has the distribution function ((t - 0.001) / 0.999) ** 1.5."""
    times = sample_time((40_000,), torch.Generator().manual_seed(0)).double()
    assert float(times.min()) >= 0.001
    assert 0.999 < float(times.max()) <= 1.0
    assert float(times.mean()) == pytest.approx(0.6 * 0.999 + 0.001, abs=0.004)
    ranks = (torch.arange(40_000) + 0.5) / 40_000
    distribution = ((times.sort().values - 0.001) / 0.999) ** 1.5
    assert float((distribution - ranks).abs().max()) < 1.63 / 200  # Kolmogorov-Smirnov at 1 %


def test_training_times_follow_the_generator() -> None:
    draws = [sample_time((3, 4), torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)]
    assert draws[0].shape == (3, 4)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
