"""Every model takes what the protocols say, and refuses in one line what it does not have."""

from __future__ import annotations

import inspect

import pytest
import torch
from baseline_helpers import make_actions, make_model, make_observation

from pizero.baseline.policy import DiffusionPolicy
from pizero.engine.fast_sampler import FastSampler
from pizero.model.action_model import ActionModel, ActionSampler
from pizero.model.flow_matching import ActionPrefix
from pizero.model.pi0 import Pi0
from pizero.types import UserError


@pytest.mark.parametrize(
    ("kind", "protocol", "names"),
    [
        (Pi0, ActionModel, ("loss", "sample_actions", "expect_delays")),
        (DiffusionPolicy, ActionModel, ("loss", "sample_actions", "expect_delays")),
        (FastSampler, ActionSampler, ("sample_actions",)),
    ],
)
def test_signatures(kind: type, protocol: type, names: tuple[str, ...]) -> None:
    methods = {name for name in dir(protocol) if not name.startswith("_")} - {"config"}
    assert methods == set(names)
    for name in names:
        assert inspect.signature(getattr(kind, name)) == inspect.signature(getattr(protocol, name)), name


@pytest.mark.parametrize("objective", ["diffusion", "flow"])
def test_what_a_diffusion_policy_refuses(objective: str) -> None:
    """And then it answers as before."""
    model = make_model(objective=objective)
    observation, (actions, noise, time) = make_observation(model.config), make_actions(model.config)
    before = model.loss(observation, actions, noise=noise, time=time)
    with pytest.raises(ValueError, match=r"^delay: a diffusion policy is not trained with delays$"):
        model.loss(observation, actions, noise=noise, time=time, delay=torch.tensor([1, 0]))
    for options in ({"settled": ActionPrefix(actions, torch.tensor([1, 0]))}, {"guide": lambda velocity: velocity}):
        with pytest.raises(ValueError, match=r"^settled and guide: a diffusion policy cannot continue a chunk$"):
            model.sample_actions(observation, noise=noise, **options)
    with pytest.raises(UserError, match=r"max_delay is for π0 and π0\.5, not for a diffusion policy; got 3"):
        model.expect_delays(3)
    model.expect_delays(0)
    assert torch.equal(model.loss(observation, actions, noise=noise, time=time), before)


@pytest.mark.parametrize("objective", ["diffusion", "flow"])
def test_a_diffusion_policy_without_padded_dimensions(objective: str) -> None:
    """As for π0: the dimensions that do not count change nothing but the mean."""
    model = make_model(objective=objective)
    observation, (actions, noise, time) = make_observation(model.config), make_actions(model.config)
    whole = model.loss(observation, actions, noise=noise, time=time)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    counted = model.loss(observation, actions, noise=noise, time=time, action_mask=mask)
    torch.testing.assert_close(counted[1], whole[1])
    only = [
        model.loss(observation, actions, noise=noise, time=time, action_mask=torch.eye(3)[[d, d]].bool())[0]
        for d in range(3)
    ]
    torch.testing.assert_close(counted[0], (only[0] + only[1]) / 2)
    torch.testing.assert_close(whole[0], sum(only) / 3)
