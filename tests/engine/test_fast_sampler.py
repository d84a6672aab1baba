"""The fast path gives the numbers of the plain path, for every switch of the model and every kind of observation."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from model_helpers import VARIANTS, make_observation, random_model, variant_name
from torch import Tensor

from pizero import load_model, save_model
from pizero.engine.fast_sampler import FastSampler
from pizero.engine.products import Kernels
from pizero.model.config import SiglipConfig
from pizero.model.flow_matching import ActionPrefix, Solver
from pizero.model.pi0 import Pi0
from pizero.model.precision import cast_weights
from pizero.types import Observation


def noise_for(model: Pi0, batch: int) -> Tensor:
    shape = (batch, model.config.action_horizon, model.config.action_dim)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def assert_same(model: Pi0, observation: Observation, **settings: Any) -> None:
    noise = noise_for(model, observation.batch_size)
    expected = model.sample_actions(observation, noise=noise, **settings)
    found = FastSampler(model).sample_actions(observation, noise=noise, **settings)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=5e-6, rtol=0)


@pytest.mark.parametrize("solver", ["euler", "heun", "midpoint"])
@pytest.mark.parametrize("variant", VARIANTS, ids=variant_name)
def test_every_model_and_every_solver(variant: dict[str, str], solver: Solver) -> None:
    model = random_model(**variant)
    assert_same(model, make_observation(model.config, batch=3), num_steps=3, solver=solver)


@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize("variant", VARIANTS[:8:2], ids=variant_name)
def test_a_single_step(variant: dict[str, str], solver: Solver) -> None:
    """Of a one-step model alone does it go another way than a first step does; with settled actions too."""
    model = random_model(one_step=True, **variant)
    observation = make_observation(model.config, batch=2)
    actions = torch.randn(2, model.config.action_horizon, model.config.action_dim)
    for settled in (None, ActionPrefix(actions, torch.tensor([2, 0]))):
        for steps in (None, 1, 2):
            assert_same(model, observation, num_steps=steps, solver=solver, settled=settled)


@pytest.mark.parametrize("variant", VARIANTS[:4], ids=variant_name)
@pytest.mark.parametrize(
    "absent", [{0: [0, 1]}, {0: [0, 1], 2: [0, 1]}, {1: [1]}, {0: [0, 1], 1: [0], 2: [1]}], ids=str
)
def test_absent_cameras(variant: dict[str, str], absent: dict[int, list[int]]) -> None:
    """By camera, the samples that do not have it: with all of them black, or left out."""
    model = random_model(**variant)
    observation = make_observation(model.config)
    masks = {name: mask.clone() for name, mask in observation.image_masks.items()}
    for camera, samples in absent.items():
        masks[model.config.cameras[camera]][samples] = False
    assert_same(model, dataclasses.replace(observation, image_masks=masks), num_steps=2)
    images = {name: image for name, image in observation.images.items() if masks[name].any()}
    assert_same(model, dataclasses.replace(observation, images=images, image_masks=masks), num_steps=2)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("used", [0, 1, 8])
def test_prompts_of_any_length(batch: int, used: int) -> None:
    model = random_model()
    mask = torch.zeros(batch, model.config.prompt_length, dtype=torch.bool)
    mask[:, :used] = True
    assert_same(model, make_observation(model.config, batch, prompt_mask=mask), num_steps=2)


def test_images_of_different_sizes() -> None:
    model = random_model()
    first, second, third = model.config.cameras
    images = make_observation(model.config).images
    images = {first: images[first], second: torch.rand(2, 42, 28, 3) * 2 - 1, third: images[third]}
    assert_same(model, make_observation(model.config, images=images), num_steps=2)


def test_a_convolutional_stem() -> None:
    vision = SiglipConfig(width=16, depth=1, mlp_dim=32, num_heads=2, patch_size=4, stem_width=8)
    model = random_model(vision=vision)
    assert_same(model, make_observation(model.config))


def test_more_key_heads() -> None:
    model = random_model()
    heads = {"num_kv_heads": 2}
    prefix, expert = (dataclasses.replace(part, **heads) for part in (model.config.prefix, model.config.expert))
    assert_same(random_model(prefix=prefix, expert=expert), make_observation(model.config), num_steps=2)


@pytest.mark.parametrize("kernels", ["torch", pytest.param("onednn", marks=pytest.mark.onednn_bfloat16)])
@pytest.mark.parametrize("variant", VARIANTS[:4:2], ids=variant_name)
def test_bfloat16_is_as_near_to_float32_as_the_plain_path(variant: dict[str, str], kernels: Kernels) -> None:
    """Over twenty observations of several models, with the dtypes that a checkpoint is loaded with: so small a model's
    own rounding says little, so the squared distances of all of them are added up.
    """
    fast = plain = 0.0
    for seed in range(8):
        model = random_model(seed, **variant)
        observation, noise = make_observation(model.config, 20, seed), noise_for(model, 20)
        exact = model.sample_actions(observation, noise=noise)
        cast_weights(model, torch.bfloat16)
        plain += float((model.sample_actions(observation, noise=noise) - exact).square().sum())
        sampler = FastSampler(model, kernels=kernels)
        fast += float((sampler.sample_actions(observation, noise=noise) - exact).square().sum())
    assert fast**0.5 < 1.1 * plain**0.5


def test_float16_on_a_cpu_with_padding() -> None:
    model = random_model()
    observation, noise = make_observation(model.config), noise_for(model, 2)
    exact = model.sample_actions(observation, noise=noise)
    cast_weights(model, torch.float16)
    for half in (model, FastSampler(model)):
        found = half.sample_actions(observation, noise=noise)
        assert float((found - exact).norm() / exact.norm()) < 0.02


def test_noise_steps_and_repeated_calls() -> None:
    model = random_model()
    sampler, observation = FastSampler(model), make_observation(model.config)
    calls = [sampler.sample_actions(observation, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1, 0)]
    assert torch.equal(calls[0], calls[2])
    assert not torch.equal(calls[0], calls[1])
    plain = model.sample_actions(observation, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(calls[0], plain, atol=5e-6, rtol=0)
    for steps in (1, 7):
        assert_same(model, observation, num_steps=steps)
    with pytest.raises(ValueError, match="num_steps must be at least 1"):
        sampler.sample_actions(observation, num_steps=0)
    with pytest.raises(
        ValueError, match=r"noise: got shape \(1, 6, 4\), expected \(2, 6, 4\) \(batch, horizon, action_dim\)"
    ):
        sampler.sample_actions(observation, noise=noise_for(model, 1))


def test_the_model_stays_what_it_is(tmp_path: Path) -> None:
    """Joined parameters are views: the same numbers, saved and trained as before."""
    model = random_model()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    observation, noise = make_observation(model.config), noise_for(model, 2)
    expected = model.sample_actions(observation, noise=noise)
    size = sum(weight.untyped_storage().nbytes() for weight in before.values())
    sampler = FastSampler(model)
    assert torch.equal(model.sample_actions(observation, noise=noise), expected)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name]), name
    storages = {weight.untyped_storage().data_ptr(): weight.untyped_storage() for weight in model.state_dict().values()}
    assert sum(storage.nbytes() for storage in storages.values()) == size
    save_model(model, tmp_path / "saved")
    loaded = load_model(tmp_path / "saved")
    assert torch.equal(loaded.sample_actions(observation, noise=noise), expected)
    model.loss(observation, noise).mean().backward()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.grad is not None and weight.ndim == 2:
                weight -= 0.1 * weight.grad
    changed = model.sample_actions(observation, noise=noise)
    assert not torch.allclose(changed, expected, atol=1e-3)
    torch.testing.assert_close(FastSampler(model).sample_actions(observation, noise=noise), changed, atol=5e-6, rtol=0)
    assert sampler.config is model.config
