"""Properties of the whole network that hold for any weights: the cached pass, padding, batching, absent cameras."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_helpers import (
    VARIANTS,
    dead_parameters,
    gradients,
    make_actions,
    make_observation,
    random_model,
    variant_name,
)
from torch import Tensor

from pizero.model.config import CAMERAS
from pizero.model.pi0 import Pi0
from pizero.types import Observation

BASE, LEFT, RIGHT = CAMERAS


def close(actual: Tensor, expected: Tensor, tolerance: float = 2e-5) -> bool:
    return actual.shape == expected.shape and float((actual - expected).detach().abs().max()) <= tolerance


def velocity(model: Pi0, observation: Observation) -> Tensor:
    """The joint pass on fixed x_t and flow time for the batch."""
    actions, _, time = make_actions(model.config, observation.batch_size)
    return model.velocity(observation, actions, time)


def cached_velocity(model: Pi0, observation: Observation) -> Tensor:
    actions, _, time = make_actions(model.config, observation.batch_size)
    return model.decode(model.prefill(observation), observation.state, actions, time)


@pytest.fixture(scope="module", params=[False, True], ids=["pi0", "pi05"])
def model(request: pytest.FixtureRequest) -> Pi0:
    return random_model(pi05=request.param)


@pytest.mark.parametrize("variant", VARIANTS, ids=variant_name)
def test_every_variant_learns_and_samples(variant: dict[str, str]) -> None:
    """Cached equals joint; the loss reaches every parameter but those that only serve the unused prefix output."""
    model = random_model(**variant)
    observation = make_observation(model.config)
    assert close(cached_velocity(model, observation), velocity(model, observation))
    actions, noise, time = make_actions(model.config)
    loss = model.loss(observation, actions, noise=noise, time=time)
    assert loss.shape == actions.shape[:2]
    found = gradients(model, loss.mean())
    assert {name for name, gradient in found.items() if gradient is None} == dead_parameters(model.config)
    assert all(bool(torch.isfinite(g).all()) and bool(g.any()) for g in found.values() if g is not None)
    sampled = model.sample_actions(observation, num_steps=3, noise=noise)
    assert sampled.shape == actions.shape
    assert bool(torch.isfinite(sampled).all())


def test_velocity_depends_on_every_input(model: Pi0) -> None:
    """Otherwise the properties below would hold of a model that ignores its inputs."""
    observation = make_observation(model.config)
    before = velocity(model, observation)
    for name in CAMERAS:
        darker = {**observation.images, name: observation.images[name] * 0.5}
        assert not close(velocity(model, replace(observation, images=darker)), before, 1e-3)
    others = (observation.prompt_tokens + 1) % model.config.vocab_size
    assert not close(velocity(model, replace(observation, prompt_tokens=others)), before, 1e-3)
    if observation.state is not None:
        assert not close(velocity(model, replace(observation, state=observation.state + 1)), before, 1e-3)
    actions, _, time = make_actions(model.config)
    assert not close(model.velocity(observation, actions, time * 0.5), before, 1e-3)
    assert not close(model.velocity(observation, actions * 0.5, time), before, 1e-3)


@settings(deadline=None, max_examples=15)
@given(places=st.lists(st.integers(0, 8), min_size=1, max_size=6), token=st.integers(0, 63))
def test_padding_changes_nothing(model: Pi0, places: list[int], token: int) -> None:
    """Neither how much of it there is, nor where it stands, nor what its tokens are."""
    observation = make_observation(model.config)
    tokens, mask = observation.prompt_tokens, observation.prompt_mask
    for place in places:
        tokens = torch.cat([tokens[:, :place], torch.full((2, 1), token), tokens[:, place:]], dim=1)
        mask = torch.cat([mask[:, :place], torch.zeros(2, 1, dtype=torch.bool), mask[:, place:]], dim=1)
    padded = replace(observation, prompt_tokens=tokens, prompt_mask=mask)
    assert close(velocity(model, padded), velocity(model, observation))
    assert close(cached_velocity(model, padded), velocity(model, observation))


@settings(deadline=None, max_examples=10)
@given(order=st.permutations(range(4)), seed=st.integers(0, 1000))
def test_samples_of_a_batch_are_independent(model: Pi0, order: list[int], seed: int) -> None:
    observation = make_observation(model.config, 4, seed)
    actions, noise, time = make_actions(model.config, 4, seed)
    together = model.sample_actions(observation, num_steps=2, noise=noise)
    index = torch.tensor(order)
    assert close(model.sample_actions(observation[index], num_steps=2, noise=noise[index]), together[index])
    alone = [model.sample_actions(observation[i : i + 1], num_steps=2, noise=noise[i : i + 1]) for i in range(4)]
    assert close(torch.cat(alone), together)
    joint = model.velocity(observation, actions, time)
    assert close(model.velocity(observation[index], actions[index], time[index]), joint[index])


def without(observation: Observation, camera: str, samples: Tensor | None = None) -> Observation:
    """The camera's mask is false for `samples` (all by default), and their images are NaN: nothing may read them."""
    image, mask = observation.images[camera].clone(), observation.image_masks[camera].clone()
    samples = torch.ones_like(mask) if samples is None else samples
    image[samples], mask[samples] = torch.nan, False
    return replace(
        observation,
        images={**observation.images, camera: image},
        image_masks={**observation.image_masks, camera: mask},
    )


def drop(observation: Observation, camera: str) -> Observation:
    """The camera's image is left out."""
    masked = without(observation, camera)
    return replace(masked, images={name: x for name, x in masked.images.items() if name != camera})


@pytest.mark.parametrize("camera", CAMERAS)
def test_an_absent_camera_is_one_that_never_was(model: Pi0, camera: str) -> None:
    """Masked, left out of the images, or unknown to the model: the same actions."""
    observation = make_observation(model.config)
    masked, dropped = without(observation, camera), drop(observation, camera)
    expected = velocity(model, dropped)
    assert close(velocity(model, masked), expected)
    assert close(cached_velocity(model, masked), expected)
    assert not close(velocity(model, observation), expected, 1e-3)
    smaller = Pi0(replace(model.config, cameras=tuple(name for name in CAMERAS if name != camera)))
    smaller.load_state_dict(model.state_dict(), strict=True)
    masks = {name: mask for name, mask in dropped.image_masks.items() if name != camera}
    assert close(velocity(smaller, replace(dropped, image_masks=masks)), expected)


def test_a_camera_that_some_samples_lack(model: Pi0) -> None:
    observation = make_observation(model.config, 3)
    lacking = torch.tensor([False, True, False])
    mixed = without(without(observation, LEFT, lacking), RIGHT, ~lacking)
    _, noise, _ = make_actions(model.config, 3)
    together = model.sample_actions(mixed, num_steps=2, noise=noise)
    for i in range(3):
        alone = drop(observation[i : i + 1], LEFT if lacking[i] else RIGHT)
        assert close(model.sample_actions(alone, num_steps=2, noise=noise[i : i + 1]), together[i : i + 1])


@pytest.mark.parametrize("images_given", [True, False])
def test_nothing_to_see_and_nothing_to_read(model: Pi0, images_given: bool) -> None:
    """An empty prompt and no camera: finite actions and gradients, and padding still changes nothing."""
    observation = make_observation(model.config)
    for camera in CAMERAS:
        observation = without(observation, camera) if images_given else drop(observation, camera)
    blind = replace(observation, prompt_mask=torch.zeros_like(observation.prompt_mask))
    tokens, mask = model.embed_prefix(blind)
    assert tokens.shape[:2] == (2, 8 + (3 * 4 if images_given else 0))
    assert not mask.any()
    actions, noise, time = make_actions(model.config)
    loss = model.loss(blind, actions, noise=noise, time=time)
    assert bool(torch.isfinite(loss).all())
    found = gradients(model, loss.mean())
    assert all(bool(torch.isfinite(gradient).all()) for gradient in found.values() if gradient is not None)
    shorter = replace(blind, prompt_tokens=blind.prompt_tokens[:, :3], prompt_mask=blind.prompt_mask[:, :3])
    assert close(velocity(model, shorter), velocity(model, blind))
    assert close(cached_velocity(model, shorter), velocity(model, blind))


def test_one_blind_sample_does_not_spoil_the_others(model: Pi0) -> None:
    observation = make_observation(model.config)
    first = torch.tensor([True, False])
    blind = replace(observation, prompt_mask=observation.prompt_mask & ~first[:, None])
    for camera in CAMERAS:
        blind = without(blind, camera, first)
    result = velocity(model, blind)
    assert bool(torch.isfinite(result).all())
    assert close(result[1], velocity(model, observation)[1])


def test_the_cameras_stand_in_the_order_of_the_config(model: Pi0) -> None:
    observation = make_observation(model.config)
    tokens, _ = model.embed_prefix(observation)
    images = [model.vision_tower(observation.images[name]) for name in CAMERAS]
    prompt = model.token_embedding(observation.prompt_tokens) * 24**0.5
    assert close(tokens, torch.cat([*images, prompt], dim=1))
    backwards = replace(observation, images=dict(reversed(observation.images.items())))
    assert torch.equal(model.embed_prefix(backwards)[0], tokens)


def test_fresh_gates_are_closed() -> None:
    """Before training, adaptive norms have zero gates, so the expert passes its tokens through."""
    torch.manual_seed(0)
    model = Pi0(random_model(pi05=True).config)
    one, other = make_observation(model.config, seed=1), make_observation(model.config, seed=2)
    assert torch.equal(velocity(model, one), velocity(model, other))
    assert bool(velocity(model, one).any())
