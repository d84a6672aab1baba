"""Each optimization on its own changes no number; kernels, static shapes, given-up weights, graphs that never wait."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_helpers import VARIANTS, make_observation, random_model, variant_name

from pizero.engine.ablation import OPTIMIZATIONS, Ablated, Optimization
from pizero.engine.fast_sampler import FastSampler
from pizero.engine.needed_inputs import make_inputs
from pizero.model.pi0 import Pi0
from pizero.types import Observation, UserError


def seeded(model: Pi0, batch: int) -> dict[str, Any]:
    shape = (batch, model.config.action_horizon, model.config.action_dim)
    return {"noise": torch.randn(shape, generator=torch.Generator().manual_seed(1)), "num_steps": 3}


def partly_seen(model: Pi0, batch: int = 2) -> Observation:
    """One camera absent, another in the first sample alone, prompts of different lengths."""
    observation = make_observation(model.config, batch)
    masks = {name: mask.clone() for name, mask in observation.image_masks.items()}
    masks[model.config.cameras[0]][:] = False
    masks[model.config.cameras[1]][1:] = False
    prompt = observation.prompt_mask.clone()
    prompt[:, 5:] = False
    prompt[0, 2:] = False
    return dataclasses.replace(observation, image_masks=masks, prompt_mask=prompt)


@pytest.mark.parametrize("optimization", OPTIMIZATIONS)
@pytest.mark.parametrize("variant", VARIANTS, ids=variant_name)
def test_without_an_optimization(variant: dict[str, str], optimization: Optimization) -> None:
    model = random_model(**variant)
    observation = partly_seen(model)
    expected = model.sample_actions(observation, **seeded(model, 2))
    found = Ablated(model, (optimization,)).sample_actions(observation, **seeded(model, 2))
    torch.testing.assert_close(found, expected, atol=5e-6, rtol=0)


def test_an_unknown_optimization() -> None:
    with pytest.raises(UserError, match="unknown optimization 'speed'; expected one of drop_absent, "):
        Ablated(random_model(), ("speed",))  # type: ignore[arg-type]


@pytest.mark.parametrize("kernels", ["torch", pytest.param("onednn", marks=pytest.mark.onednn)])
@pytest.mark.parametrize("variant", VARIANTS[:4], ids=variant_name)
def test_kernels(variant: dict[str, str], kernels: Any) -> None:
    model = random_model(**variant)
    observation = partly_seen(model)
    found = FastSampler(model, kernels=kernels).sample_actions(observation, **seeded(model, 2))
    torch.testing.assert_close(found, model.sample_actions(observation, **seeded(model, 2)), atol=5e-6, rtol=0)


@settings(deadline=None, max_examples=40)
@given(
    pi05=st.booleans(), batch=st.integers(1, 3), horizon=st.integers(1, 9), static=st.booleans(),
    cameras=st.lists(st.integers(0, 7), min_size=3, max_size=3),
    prompts=st.lists(st.integers(0, 8), min_size=3, max_size=3),
)  # fmt: skip
def test_any_observation(
    pi05: bool, batch: int, horizon: int, static: bool, cameras: list[int], prompts: list[int]
) -> None:
    """cameras: by camera, which samples have it, as bits. prompts: by sample, the length."""
    changes: dict[str, Any] = {"state_input": "prompt", "time_conditioning": "adarms"} if pi05 else {}
    model = random_model(action_horizon=horizon, **changes)
    observation = make_observation(model.config, batch)
    masks = {
        name: torch.tensor([bool(bits >> row & 1) for row in range(batch)])
        for name, bits in zip(model.config.cameras, cameras, strict=True)
    }
    lengths = torch.tensor(prompts[:batch])[:, None]
    prompt = torch.arange(model.config.prompt_length) < lengths
    observation = dataclasses.replace(observation, image_masks=masks, prompt_mask=prompt)
    sampler = FastSampler(model, kernels="torch")
    sampler.static = static
    found = sampler.sample_actions(observation, **seeded(model, batch))
    torch.testing.assert_close(found, model.sample_actions(observation, **seeded(model, batch)), atol=1e-5, rtol=0)


def test_static_prompts_have_few_lengths() -> None:
    model = random_model(prompt_length=60)
    lengths: set[int] = set()
    for used in range(61):
        observation = make_observation(model.config, prompt_mask=(torch.arange(60) < used).expand(2, -1))
        inputs = make_inputs(observation, model.config, torch.device("cpu"), static=True)
        assert inputs.prompt.shape[1] >= used
        lengths.add(inputs.prompt.shape[1])
    assert lengths == {16, 48, 60}


def test_weights_are_given_up() -> None:
    model = random_model()
    observation = make_observation(model.config)
    expected = model.sample_actions(observation, **seeded(model, 2))
    sampler = FastSampler(model, consume=True)
    for steps in (3, 4):  # tables for other steps are still made
        found = sampler.sample_actions(observation, **{**seeded(model, 2), "num_steps": steps})
        if steps == 3:
            torch.testing.assert_close(found, expected, atol=5e-6, rtol=0)
    kept = [name for name, weight in model.named_parameters() if weight.device.type != "meta"]
    assert not any(part in name for name in kept for part in (".query", ".gate", ".mlp_in", ".down", ".output"))
    assert len(kept) > 5
    with pytest.raises((RuntimeError, NotImplementedError)):
        model.sample_actions(observation, **seeded(model, 2))
    with pytest.raises(UserError, match="cannot be packed again; load the checkpoint with load_model"):
        sampler.repack("prefix.0", "torch")
    torch.testing.assert_close(sampler.sample_actions(observation, **seeded(model, 2)), expected, atol=5e-6, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS, ids=variant_name)
def test_a_call_waits_for_no_value(variant: dict[str, str]) -> None:
    """On the meta device nothing has a value: what asks for one fails. So a call can be captured as a CUDA graph."""
    model = random_model(**variant).to("meta")
    sampler = FastSampler(model, kernels="torch", graphs=False)
    sampler.static = True
    seen = partly_seen(random_model(**variant))
    there = dataclasses.replace(
        seen, images={name: image.to("meta") for name, image in seen.images.items()},
        state=None if seen.state is None else seen.state.to("meta"), prompt_tokens=seen.prompt_tokens.to("meta"),
    )  # fmt: skip
    noise = torch.empty(2, model.config.action_horizon, model.config.action_dim, device="meta")
    assert sampler.sample_actions(there, noise=noise).shape == noise.shape


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS[:2], ids=variant_name)
def test_compiled(variant: dict[str, str]) -> None:
    model = random_model(**variant)
    observation = make_observation(model.config)
    sampler = FastSampler(model, compile=True)
    found = sampler.sample_actions(observation, **seeded(model, 2))
    torch.testing.assert_close(found, model.sample_actions(observation, **seeded(model, 2)), atol=1e-5, rtol=0)
