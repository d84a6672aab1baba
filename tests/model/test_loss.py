"""The loss: draws that share a prefix pass, given and drawn noise, and sampling with a generator."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_helpers import gradients, make_actions, make_observation, random_model

from pizero.model.flow_matching import Solver, integrate
from pizero.model.pi0 import Pi0


@pytest.fixture(scope="module", params=[False, True], ids=["pi0", "pi05"])
def model(request: pytest.FixtureRequest) -> Pi0:
    return random_model(pi05=request.param)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_loss_is_the_squared_error_of_the_velocity(model: Pi0) -> None:
    observation = make_observation(model.config)
    actions, noise, time = make_actions(model.config)
    x_t = time[:, None, None] * noise + (1 - time[:, None, None]) * actions
    error = model.velocity(observation, x_t, time) - (noise - actions)
    loss = model.loss(observation, actions, noise=noise, time=time)
    assert loss.shape == (2, 6)
    assert torch.allclose(loss, error.square().mean(dim=-1), atol=1e-6)


@pytest.mark.parametrize("draws", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_draws_are_separate_passes_averaged(model: Pi0, draws: int, batch: int) -> None:
    """Value and gradients, with noise [N, B, H, D] and time [N, B]."""
    observation = make_observation(model.config, batch)
    actions, _, _ = make_actions(model.config, batch)
    noise = torch.randn(draws, *actions.shape, generator=seeded(3))
    time = torch.rand(draws, batch, generator=seeded(4))
    together = model.loss(observation, actions, noise=noise, time=time, draws=draws)
    apart = [model.loss(observation, actions, noise=noise[i], time=time[i]) for i in range(draws)]
    average = torch.stack(apart).mean(dim=0)
    assert torch.allclose(together, average, rtol=1e-4, atol=1e-5)
    expected = gradients(model, average.mean())
    for name, gradient in gradients(model, together.mean()).items():
        other = expected[name]
        assert (gradient is None) == (other is None)
        if gradient is not None and other is not None:
            assert float((gradient - other).norm()) <= 1e-4 * float(other.norm()) + 1e-6, name


def test_without_a_delay_the_loss_is_the_ordinary_one(model: Pi0) -> None:
    """Value and gradients."""
    observation = make_observation(model.config)
    actions, noise, time = make_actions(model.config)
    ordinary = model.loss(observation, actions, noise=noise, time=time)
    delayed = model.loss(observation, actions, noise=noise, time=time, delay=torch.tensor([0, 0]))
    assert torch.allclose(ordinary, delayed, atol=1e-5)
    expected = gradients(model, ordinary.mean())
    for name, gradient in gradients(model, delayed.mean()).items():
        if gradient is not None:
            assert float((gradient - expected[name]).norm()) <= 1e-4 * float(expected[name].norm()) + 1e-6, name


@pytest.mark.parametrize("time_conditioning", ["concat_mlp", "adarms"])
def test_settled_actions_are_given_clean_and_not_learnt(time_conditioning: str) -> None:
    """Two draws with delays of their own, against passes with the times written out; a mean is over the rest."""
    model = random_model(time_conditioning=time_conditioning)
    observation, actions = make_observation(model.config), make_actions(model.config)[0]
    noise, time = torch.randn(2, *actions.shape, generator=seeded(3)), torch.rand(2, 2, generator=seeded(4))
    delay = torch.tensor([[2, 0], [5, 1]])
    loss = model.loss(observation, actions, noise=noise, time=time, draws=2, delay=delay)
    learnt = torch.arange(6) >= delay[..., None]
    times = time[..., None] * learnt
    errors = []
    for draw in range(2):
        x_t = times[draw, :, :, None] * noise[draw] + (1 - times[draw, :, :, None]) * actions
        assert torch.equal(x_t[0, : delay[draw, 0]], actions[0, : delay[draw, 0]])
        error = model.velocity(observation, x_t, times[draw]) - (noise[draw] - actions)
        errors.append(error.square().mean(dim=-1))
    left = learnt.float()
    expected = ((torch.stack(errors) * left).sum(dim=-1) / left.sum(dim=-1)).mean()
    assert torch.allclose(loss.mean(), expected, rtol=1e-5)
    assert not loss[0, :2].any()  # sample 0 has delays of 2 and 5
    assert loss[0, 2:].all()


def test_a_velocity_of_several_draws(model: Pi0) -> None:
    """The draws are on the outer axis of x_t and of the result."""
    observation = make_observation(model.config)
    first, second, time = make_actions(model.config)
    both = model.velocity(observation, torch.cat([first, second]), torch.cat([time, time * 0.5]))
    assert torch.allclose(both[:2], model.velocity(observation, first, time), atol=1e-5)
    assert torch.allclose(both[2:], model.velocity(observation, second, time * 0.5), atol=1e-5)


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 2**31), draws=st.integers(1, 3))
def test_the_loss_follows_its_generator(model: Pi0, seed: int, draws: int) -> None:
    """It is the generator's state alone that decides, not the seed behind it and not PyTorch's global numbers, which
    the loss leaves as they are.
    """
    observation = make_observation(model.config)
    actions, _, _ = make_actions(model.config)

    def loss(generator: torch.Generator) -> torch.Tensor:
        return model.loss(observation, actions, draws=draws, generator=generator)

    used = seeded(seed)
    first, second = loss(used), loss(used)
    later = used.get_state()
    third = loss(used)
    torch.manual_seed(seed + 2)
    before = torch.get_rng_state()
    assert torch.equal(loss(seeded(seed)), first)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(second, first)
    assert not torch.equal(loss(seeded(seed + 1)), first)
    restored = seeded(seed + 1)
    restored.set_state(later)
    assert torch.equal(loss(restored), third)


def test_drawn_noise_differs_between_samples_and_draws() -> None:
    """Two equal samples get different losses, so neither noise nor time is shared."""
    model = random_model()
    observation = make_observation(model.config)[torch.tensor([0, 0])]
    actions = make_actions(model.config)[0][torch.tensor([0, 0])]
    loss = model.loss(observation, actions, generator=seeded(0))
    assert not torch.allclose(loss[0], loss[1], rtol=1e-2)
    one, two = (model.loss(observation, actions, draws=n, generator=seeded(0)) for n in (1, 2))
    assert not torch.allclose(one, two, rtol=1e-2)


def test_sampling_follows_its_generator(model: Pi0) -> None:
    observation = make_observation(model.config)
    first, again, other = (model.sample_actions(observation, num_steps=2, generator=seeded(s)) for s in (5, 5, 6))
    assert first.shape == (2, 6, 4)
    assert first.dtype == torch.float32
    assert not first.requires_grad
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-2)
    noise = torch.randn(2, 6, 4, generator=seeded(5))
    assert torch.equal(model.sample_actions(observation, num_steps=2, noise=noise), first)


@pytest.mark.parametrize("solver", ["euler", "heun", "midpoint"])
def test_sampling_integrates_the_velocity(model: Pi0, solver: Solver) -> None:
    """Through the cache, against the joint pass at every step."""
    observation = make_observation(model.config)
    _, noise, _ = make_actions(model.config)
    with torch.no_grad():
        expected = integrate(lambda x, t: model.velocity(observation, x, t), noise, 3, solver)
    assert torch.allclose(
        model.sample_actions(observation, num_steps=3, noise=noise, solver=solver), expected, atol=1e-4
    )


def test_shapes_that_do_not_fit(model: Pi0) -> None:
    observation = make_observation(model.config)
    actions, noise, time = make_actions(model.config)
    expected = r"expected \(2, 6, 4\)"
    with pytest.raises(ValueError, match=rf"^actions: got shape \(2, 5, 4\), {expected}"):
        model.loss(observation, actions[:, :5])
    with pytest.raises(ValueError, match=rf"^actions: got shape \(1, 6, 4\), {expected}"):
        model.loss(observation, actions[:1])
    with pytest.raises(ValueError, match=rf"^noise: got shape \(2, 6, 3\), {expected}"):
        model.sample_actions(observation, noise=noise[..., :3])
    with pytest.raises(ValueError, match=r"^noise: got shape \(2, 6, 4\), expected \(3, 2, 6, 4\)"):
        model.loss(observation, actions, noise=noise, draws=3)
    with pytest.raises(ValueError, match=r"^time: got shape \(2, 3\), expected \(3, 2\)"):
        model.loss(observation, actions, time=time[:, None].expand(2, 3), draws=3)
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        model.sample_actions(observation, num_steps=0)
