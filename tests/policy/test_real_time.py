"""Real-time chunking: the mask, the guidance against its formula, and both kinds on the plain and the fast path."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_helpers import VARIANTS, make_actions, make_observation, random_model, variant_name
from torch import Tensor

from pizero.engine.fast_sampler import FastSampler
from pizero.model.flow_matching import ActionPrefix, Solver
from pizero.model.pi0 import Pi0
from pizero.policy.real_time import Guidance, Jacobian, soft_mask


@settings(deadline=None)
@given(horizon=st.integers(1, 20), data=st.data())
def test_the_mask_is_the_papers(horizon: int, data: st.DataObject) -> None:
    """Equation 5 of arXiv 2506.07339, written out, with H - s actions of the old chunk left."""
    left = data.draw(st.integers(0, horizon))
    delay = data.draw(st.integers(0, left))
    expected = []
    for i in range(horizon):
        c = (left - i) / (left - delay + 1)
        expected.append(1.0 if i < delay else c * (torch.e**c - 1) / (torch.e - 1) if i < left else 0.0)
    found = soft_mask(torch.tensor([delay]), torch.tensor([left]), horizon)
    torch.testing.assert_close(found, torch.tensor([expected]), atol=1e-6, rtol=0)
    beyond = soft_mask(torch.tensor([horizon + 3]), torch.tensor([left]), horizon)
    assert beyond[0].tolist() == [1.0] * left + [0.0] * (horizon - left)


def linear_velocity(seed: int = 0) -> tuple[Tensor, Callable[[Tensor, Tensor], Tensor]]:
    """v(x, t) = t * A x per sample, in float64; its Jacobian is t * A."""
    matrix = torch.randn(12, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def velocity(x: Tensor, time: Tensor) -> Tensor:
        return (time[:, None] * (x.flatten(1) @ matrix.T)).view_as(x)

    return matrix, velocity


@pytest.mark.parametrize("time", [1.0, 0.9, 0.5, 0.1])
def test_the_guided_velocity_is_the_papers(time: float) -> None:
    """Equations 2 to 4 with tau = 1 - t, with the Jacobian of a known function, in the paper's direction of time."""
    matrix, velocity = linear_velocity()
    generator = torch.Generator().manual_seed(1)
    x, wanted = torch.randn(2, 1, 4, 3, generator=generator, dtype=torch.float64)
    weights = torch.tensor([[1.0, 1.0, 0.4, 0.0]], dtype=torch.float64)
    at = torch.full((1,), time, dtype=torch.float64)
    found = Guidance(wanted, weights, max_weight=5.0)(velocity)(x, at)

    tau = 1 - time
    v = -velocity(x, at).flatten()  # towards the action
    estimate = x.flatten() + (1 - tau) * v
    jacobian = torch.eye(12, dtype=torch.float64) - (1 - tau) * time * matrix
    error = (wanted.flatten() - estimate) * weights.flatten().repeat_interleave(3)
    r_squared = (1 - tau) ** 2 / (tau**2 + (1 - tau) ** 2)
    beta = min(5.0, (1 - tau) / (tau * r_squared)) if tau > 0 else 5.0
    expected = -(v + beta * (error @ jacobian))
    torch.testing.assert_close(found.flatten(), expected, atol=1e-12, rtol=1e-12)
    plain = Guidance(wanted, weights, max_weight=5.0, jacobian="identity")(velocity)(x, at)
    torch.testing.assert_close(plain.flatten(), -(v + beta * error), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("jacobian", ["paper", "identity"])
@pytest.mark.parametrize("variant", VARIANTS, ids=variant_name)
def test_both_paths_are_guided_alike(variant: dict[str, str], jacobian: Jacobian) -> None:
    model = random_model(**variant)
    observation, (old, noise, _) = make_observation(model.config), make_actions(model.config)
    delay, left = torch.tensor([2, 0]), torch.tensor([5, 0])
    guide = Guidance(old, soft_mask(delay, left, 6), jacobian=jacobian)
    plain = model.sample_actions(observation, num_steps=5, noise=noise)
    guided = model.sample_actions(observation, num_steps=5, noise=noise, guide=guide)
    fast = FastSampler(model)
    found = fast.sample_actions(observation, num_steps=5, noise=noise, guide=guide)
    torch.testing.assert_close(found, guided, atol=2e-5, rtol=1e-5)
    assert not found.requires_grad
    torch.testing.assert_close(guided[1], plain[1], atol=1e-6, rtol=0)  # nothing left of its old chunk
    assert (guided[0, :2] - old[0, :2]).abs().max() < (plain[0, :2] - old[0, :2]).abs().max()
    again = fast.sample_actions(observation, num_steps=5, noise=noise)
    torch.testing.assert_close(again, plain, atol=5e-6, rtol=0)


def test_the_papers_jacobian_reaches_actions_that_have_no_weight() -> None:
    """The others follow because of the network; with the identity the pull itself stays where the weights are."""
    model = random_model()
    observation, (old, noise, time) = make_observation(model.config), make_actions(model.config)
    weights = soft_mask(torch.tensor([2, 2]), torch.tensor([2, 2]), 6)
    cache = model.prefill(observation)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return model.decode(cache, observation.state, x, t)

    free = velocity(noise, time).detach()
    moved = {
        kind: Guidance(old, weights, jacobian=kind)(velocity)(noise, time) - free for kind in ("paper", "identity")
    }
    assert moved["paper"][:, 2:].abs().max() > 1e-2
    assert not moved["identity"][:, 2:].abs().max() > 0
    assert moved["identity"][:, :2].abs().min() > 0


@pytest.mark.parametrize("solver", ["euler", "heun", "midpoint"])
@pytest.mark.parametrize("variant", VARIANTS, ids=variant_name)
def test_settled_actions_stay_and_both_paths_agree(variant: dict[str, str], solver: Solver) -> None:
    model = random_model(**variant)
    observation, (old, noise, _) = make_observation(model.config, 3), make_actions(model.config, 3)
    settled = ActionPrefix(old, torch.tensor([3, 0, 5]))
    found = model.sample_actions(observation, num_steps=3, noise=noise, solver=solver, settled=settled)
    free = model.sample_actions(observation, num_steps=3, noise=noise, solver=solver)
    assert torch.equal(found[0, :3], old[0, :3])
    assert torch.equal(found[2, :5], old[2, :5])
    torch.testing.assert_close(found[1], free[1], atol=1e-5, rtol=0)
    assert (found[0, 3:] - free[0, 3:]).abs().max() > 1e-3  # what is settled is seen by the rest
    fast = FastSampler(model).sample_actions(observation, num_steps=3, noise=noise, solver=solver, settled=settled)
    torch.testing.assert_close(fast, found, atol=1e-5, rtol=0)


def test_settled_actions_are_read_at_the_time_of_clean_actions() -> None:
    """Against one joint pass per step, with the times written out."""
    for time_conditioning in ("concat_mlp", "adarms"):
        model: Pi0 = random_model(time_conditioning=time_conditioning)
        observation, (old, noise, _) = make_observation(model.config), make_actions(model.config)
        x = torch.cat([old[:, :2], noise[:, 2:]], dim=1)
        with torch.no_grad():
            for step in range(4):
                time = torch.tensor([[0.0, 0.0, *[1 - step / 4] * 4]] * 2)
                v = model.velocity(observation, x, time)
                x = torch.cat([x[:, :2], x[:, 2:] - 0.25 * v[:, 2:]], dim=1)
        settled = ActionPrefix(old, torch.tensor([2, 2]))
        found = model.sample_actions(observation, num_steps=4, noise=noise, settled=settled)
        torch.testing.assert_close(found, x, atol=1e-5, rtol=0)
