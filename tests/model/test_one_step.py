"""A model that is told where a step ends, and learns to take a single one."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from model_helpers import gradients, make_actions, make_observation, random_model
from torch import Tensor

from pizero.model.config import LanguageConfig, Pi0Config, small_config
from pizero.model.flow_matching import ActionPrefix, Solver
from pizero.model.pi0 import Pi0
from pizero.types import UserError


@pytest.fixture(scope="module", params=[False, True], ids=["pi0", "pi05"])
def model(request: pytest.FixtureRequest) -> Pi0:
    return random_model(pi05=request.param, one_step=True)


def zeros(like: Tensor) -> Tensor:
    return torch.zeros_like(like)


@pytest.mark.parametrize("pi05", [False, True], ids=["pi0", "pi05"])
def test_the_new_input_changes_no_bit(pi05: bool) -> None:
    """At any step from any time to any other, for a time per sample and one per action."""
    base = random_model(pi05=pi05)
    model = Pi0(dataclasses.replace(base.config, one_step=True))
    found = model.load_state_dict(base.state_dict(), strict=False)
    assert not found.unexpected_keys
    assert {name.split(".")[0] for name in found.missing_keys} == {"target_time"}
    assert model.get_parameter("target_time.mlp_in.weight").any()  # it learns from the first step on
    observation = make_observation(base.config)
    _, noise, time = make_actions(base.config)
    cache = base.prefill(observation)
    for at in (time, time[:, None].expand(-1, base.config.action_horizon)):
        expected = base.decode(cache, observation.state, noise, at)
        for target in (None, zeros(at), at / 2):
            assert torch.equal(model.decode(cache, observation.state, noise, at, target), expected)
    for steps in (1, 3):
        expected = base.sample_actions(observation, noise=noise, num_steps=steps)
        assert torch.equal(model.sample_actions(observation, noise=noise, num_steps=steps), expected)


@pytest.mark.parametrize("language", [None, LanguageConfig(text_length=8, tied_head=False)], ids=["", "text"])
def test_a_model_that_gets_the_input_is_one_that_has_it(language: LanguageConfig | None) -> None:
    """Parameters in the same order: an optimizer's state goes by it when a training is resumed."""
    made = Pi0(small_config("nano", one_step=True, language=language))
    model = Pi0(small_config("nano", language=language))
    model.expect_one_step()
    assert model.config == made.config
    shapes = [[(name, value.shape) for name, value in one.named_parameters()] for one in (model, made)]
    assert shapes[0] == shapes[1]


def test_it_takes_one_step_unless_asked_for_more(model: Pi0) -> None:
    observation = make_observation(model.config)
    _, noise, time = make_actions(model.config)
    cache, start = model.prefill(observation), torch.ones_like(time)
    whole = noise - model.decode(cache, observation.state, noise, start, zeros(time))
    assert torch.equal(model.sample_actions(observation, noise=noise), whole)
    assert torch.equal(model.sample_actions(observation, noise=noise, num_steps=1), whole)
    half = noise - model.decode(cache, observation.state, noise, start) / 2
    two = half - model.decode(cache, observation.state, half, start / 2) / 2
    assert torch.allclose(model.sample_actions(observation, noise=noise, num_steps=2), two, atol=1e-6)
    assert not torch.allclose(two, whole, atol=1e-2)


@pytest.mark.parametrize("solver", ["heun", "midpoint"])
def test_solvers_of_two_velocities_take_them_as_they_are(model: Pi0, solver: Solver) -> None:
    observation = make_observation(model.config)
    _, noise, time = make_actions(model.config)
    cache, start = model.prefill(observation), torch.ones_like(time)
    first = model.decode(cache, observation.state, noise, start)
    share = 1.0 if solver == "heun" else 0.5
    second = model.decode(cache, observation.state, noise - share * first, start - share)
    expected = noise - (0.5 * (first + second) if solver == "heun" else second)
    found = model.sample_actions(observation, noise=noise, num_steps=1, solver=solver)
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("draws", [1, 2])
def test_the_loss_written_out(model: Pi0, draws: int) -> None:
    """0.5 of the flow's error and 0.05 of the shortcut's, for each draw, averaged."""
    observation = make_observation(model.config)
    actions, _, _ = make_actions(model.config)
    generator = torch.Generator().manual_seed(3)
    noise, time = torch.randn(draws, *actions.shape, generator=generator), torch.rand(draws, 2, generator=generator)
    cache, start, expected = model.prefill(observation), torch.ones(2), torch.zeros(actions.shape[:2])
    for e, t in zip(noise, time, strict=True):
        x_t = t[:, None, None] * e + (1 - t[:, None, None]) * actions
        flow = (model.decode(cache, observation.state, x_t, t) - (e - actions)).square()
        v1 = model.decode(cache, observation.state, e, start, start)
        v2 = model.decode(cache, observation.state, e - v1 / 2, start / 2, start / 2)
        shortcut = (model.decode(cache, observation.state, e, start, zeros(start)) - (v1 + v2) / 2).square()
        expected += (0.5 * flow + 0.05 * shortcut).mean(dim=-1) / draws
    found = model.loss(observation, actions, noise=noise, time=time, draws=draws)
    assert torch.allclose(found, expected, rtol=1e-4)


def test_the_half_steps_and_the_prefix_get_no_gradient(model: Pi0) -> None:
    observation = make_observation(model.config)
    actions, noise, time = make_actions(model.config)
    found = gradients(model, model.loss(observation, actions, noise=noise, time=time).mean())
    reached = {name for name, gradient in found.items() if gradient is not None}
    trained = {name for name in found if ".expert." in name or ".expert_norm." in name}
    heads = ("state_proj", "action_in_proj", "time_mlp", "target_time", "action_out_proj")
    trained |= {name for name in found if name.startswith(heads)}
    assert reached == trained
    cache = model.prefill(observation)
    with torch.no_grad():
        x_t = time[:, None, None] * noise + (1 - time[:, None, None]) * actions
        two = model.sample_actions(observation, noise=noise, num_steps=2)
    flow = (model.decode(cache, observation.state, x_t, time) - (noise - actions)).square()
    shortcut = noise - model.decode(cache, observation.state, noise, torch.ones(2), torch.zeros(2)) - two
    expected = gradients(model, (0.5 * flow + 0.05 * shortcut.square()).mean())
    for name in trained:
        one, other = found[name], expected[name]
        assert one is not None
        assert other is not None
        assert float((one - other).norm()) <= 1e-3 * float(other.norm()) + 1e-6, name


def test_settled_actions_are_no_part_of_the_shortcut(model: Pi0) -> None:
    observation = make_observation(model.config)
    actions, noise, time = make_actions(model.config)
    delay = torch.tensor([2, 0])
    loss = model.loss(observation, actions, noise=noise, time=time, delay=delay)
    assert not loss[0, :2].any()
    assert loss[0, 2:].all()
    settled = ActionPrefix(actions, delay)
    chunk = model.sample_actions(observation, noise=noise, settled=settled)
    assert torch.equal(chunk[0, :2], actions[0, :2])
    ends, start = torch.zeros(2, 6), settled.start(noise)
    times = torch.ones(2, 6).masked_fill(settled.settled, 0.0)
    whole = start - model.decode(model.prefill(observation), observation.state, start, times, ends)
    assert torch.allclose(chunk[0, 2:], whole[0, 2:], atol=1e-6)


@pytest.mark.parametrize("pi05", [False, True], ids=["pi0", "pi05"])
def test_one_step_learns_to_end_where_two_do(pi05: bool) -> None:
    """On the noise that it learns from, where an ordinary Euler step of the same model ends far off."""
    model = random_model(one_step=True, pi05=pi05)
    observation = make_observation(model.config, batch=4)
    actions, noise, time = make_actions(model.config, batch=4)
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=3e-3), list[float]()
    for _ in range(80):
        loss = model.loss(observation, actions, noise=noise, time=time).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    with torch.no_grad():
        euler = noise - model.decode(model.prefill(observation), observation.state, noise, torch.ones(4))
    leap, two = (model.sample_actions(observation, noise=noise, num_steps=steps) for steps in (1, 2))
    assert float((leap - two).square().mean()) < 0.7 * float((euler - two).square().mean())


def test_the_config_says_so_only_where_it_is_so() -> None:
    plain, one = small_config("nano"), small_config("nano", one_step=True)
    assert "one_step" not in plain.to_json()
    assert plain.default_num_steps == 10
    assert one.to_json()["one_step"] is True
    assert one.default_num_steps == 1
    assert Pi0Config.from_json(one.to_json()) == one
    with pytest.raises(UserError, match="one_step must be true or false, got 1"):
        Pi0Config.from_json({**one.to_json(), "one_step": 1})
