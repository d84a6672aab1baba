"""Whatever a guide asks for, and however often, the fast path gives the numbers of the plain path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from model_helpers import VARIANTS, make_observation, random_model, variant_name
from torch import Tensor

from pizero.engine.ablation import Ablated
from pizero.engine.fast_sampler import FastSampler
from pizero.engine.products import Kernels
from pizero.model.flow_matching import ActionPrefix, Solver, Velocity
from pizero.model.pi0 import Pi0
from pizero.policy.real_time import Guidance

Guide = Callable[[Velocity], Velocity]


def reused(velocity: Velocity) -> Velocity:
    """Asks at every second step alone."""
    kept: list[Tensor] = []

    def guided(x_t: Tensor, time: Tensor) -> Tensor:
        if len(kept) % 2 == 0:
            kept.append(velocity(x_t, time))
        else:
            kept.append(kept[-1])
        return kept[-1]

    return guided


def late(velocity: Velocity) -> Velocity:
    """Does not ask at the first step."""
    return lambda x_t, time: velocity(x_t, time) if float(time[0]) < 1 else torch.zeros_like(x_t)


def twice(velocity: Velocity) -> Velocity:
    return lambda x_t, time: 0.3 * velocity(x_t, time) + 0.7 * velocity(x_t + 0.1, time)


def between(velocity: Velocity) -> Velocity:
    """At a time of the integration and at two that are none, before and after."""
    return lambda x_t, time: (
        velocity(x_t, time * 0.9) + 2 * velocity(x_t, time) - velocity(x_t, torch.full_like(time, 0.77))
    )


def never(velocity: Velocity) -> Velocity:
    return lambda x_t, time: 0.5 * x_t


def of_each_sample(velocity: Velocity) -> Velocity:
    """Samples at times of their own, and with the next call actions too."""

    def guided(x_t: Tensor, time: Tensor) -> Tensor:
        apart = time * torch.linspace(0.5, 1.0, len(time))
        each = time[:, None] * torch.linspace(0.2, 1.0, x_t.shape[1])
        return velocity(x_t, apart) + velocity(x_t, each) + velocity(x_t, time)

    return guided


def pulled(velocity: Velocity) -> Velocity:
    """A gradient at one of the integration's times and one beside it."""
    guidance = Guidance(torch.ones(2, 6, 4), torch.linspace(1, 0, 6).expand(2, -1))
    return lambda x_t, time: guidance(velocity)(x_t, time) + guidance(velocity)(x_t, 0.8 * time)


def crossed(guides: list[Guide | None]) -> list[Any]:
    """Every variant with every guide. A third of the pairs is tested each time: in it each guide meets every value of
    every setting, and each variant some of the guides. The rest are slow.
    """
    return [
        pytest.param(
            variant, guide, id=f"{variant_name(variant)}-{getattr(guide, '__name__', guide)}",
            marks=() if (row + column) % 3 == 0 else pytest.mark.slow,
        )
        for column, guide in enumerate(guides)
        for row, variant in enumerate(VARIANTS)
    ]  # fmt: skip


def assert_same(model: Pi0, sampler: FastSampler | None = None, **settings: Any) -> None:
    observation = make_observation(model.config)
    noise = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(1))
    expected = model.sample_actions(observation, noise=noise, **settings)
    found = (sampler or FastSampler(model)).sample_actions(observation, noise=noise, **settings)
    # a pull makes actions of up to a hundred, and what is added to them is rounded as they are
    torch.testing.assert_close(found, expected, atol=1e-5 * max(1.0, float(expected.abs().max())), rtol=0)


@pytest.mark.parametrize(("variant", "guide"), crossed([reused, late, twice, between, never, of_each_sample, pulled]))
def test_any_guide(variant: dict[str, str], guide: Guide) -> None:
    model = random_model(**variant)
    sampler = FastSampler(model)
    for solver, steps in (("euler", 3), ("heun", 2), ("midpoint", 1), ("euler", 1)):
        assert_same(model, sampler, guide=guide, num_steps=steps, solver=solver)
    assert_same(model, sampler, num_steps=3)  # what a guide left behind is not seen


@pytest.mark.parametrize("guide", [twice, between, of_each_sample, pulled])
@pytest.mark.parametrize("variant", VARIANTS[:8:2], ids=variant_name)
def test_any_guide_of_a_single_step(variant: dict[str, str], guide: Guide) -> None:
    """Of a one-step model the velocity leads to the actions at whatever time it is asked for."""
    model = random_model(one_step=True, **variant)
    assert_same(model, guide=guide)
    assert_same(model, guide=guide, num_steps=2)


@pytest.mark.parametrize(("variant", "guide"), crossed([None, reused, late, twice, between]))
def test_settled_actions_with_and_without_a_guide(variant: dict[str, str], guide: Guide | None) -> None:
    model = random_model(**variant, max_delay=3)
    settled = ActionPrefix(torch.randn(2, 6, 4), torch.tensor([2, 0]))
    solvers: list[Solver] = ["euler", "heun"]
    for steps in (1, 3):
        for solver in solvers:
            assert_same(model, guide=guide, num_steps=steps, solver=solver, settled=settled)


@pytest.mark.parametrize("without", [(), ("cached_state",), ("time_tables",)], ids=str)
def test_a_guide_without_an_optimization(without: Any) -> None:
    for variant in VARIANTS[:4]:
        model = random_model(**variant, max_delay=3)
        sampler = Ablated(model, without)
        assert_same(model, sampler, guide=between, num_steps=3)
        assert_same(model, sampler, settled=ActionPrefix(torch.randn(2, 6, 4), torch.tensor([2, 1])), num_steps=1)


@pytest.mark.parametrize("kernels", ["torch", pytest.param("onednn", marks=pytest.mark.onednn)])
def test_kernels_with_a_guide(kernels: Kernels) -> None:
    model = random_model()
    assert_same(model, FastSampler(model, kernels=kernels), guide=pulled, num_steps=3)


def test_a_guide_after_a_call_without_one() -> None:
    """The first call keeps tables, and nothing of it that autograd refuses; its actions are a tensor like any other."""
    model = random_model()
    observation = make_observation(model.config)
    noise = torch.randn(2, model.config.action_horizon, model.config.action_dim)
    sampler = FastSampler(model)
    free = sampler.sample_actions(observation, noise=noise, num_steps=3)
    assert not free.is_inference()
    pull = Guidance(torch.ones_like(noise), torch.ones(noise.shape[:2]))
    expected = FastSampler(model).sample_actions(observation, noise=noise, num_steps=3, guide=pull)
    torch.testing.assert_close(sampler.sample_actions(observation, noise=noise, num_steps=3, guide=pull), expected)
    assert not torch.allclose(free, expected)
