"""On a GPU: every device of several, captures beside other work, float8. Left out where there is none."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from model_helpers import VARIANTS, make_observation, random_model, variant_name
from torch import Tensor

from pizero.engine.fast_sampler import FastSampler
from pizero.model.config import GemmaConfig, SiglipConfig
from pizero.model.flow_matching import ActionPrefix
from pizero.model.precision import cast_weights
from pizero.policy.real_time import Guidance
from pizero.types import Observation

pytestmark = pytest.mark.gpu
DEVICES = ["cuda:0", pytest.param("cuda:1", marks=pytest.mark.two_gpus)]
SIZES: dict[str, Any] = {  # float8 kernels take multiples of 16
    "vision": SiglipConfig(width=32, depth=1, mlp_dim=64, num_heads=2, patch_size=14),
    "prefix": GemmaConfig(width=64, depth=2, mlp_dim=96, num_heads=4, num_kv_heads=1, head_dim=16),
    "expert": GemmaConfig(width=32, depth=2, mlp_dim=64, num_heads=4, num_kv_heads=1, head_dim=16),
}


@pytest.fixture(autouse=True)
def _first_is_current() -> Iterator[None]:  # pyright: ignore[reportUnusedFunction]
    """Nobody has to choose a current device, and nothing chooses another."""
    torch.cuda.set_device(0)
    yield
    assert torch.cuda.current_device() == 0


def asked(horizon: int = 6, batch: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(batch, horizon, 4, generator=torch.Generator().manual_seed(seed))


def on(device: str, observation: Observation) -> Observation:
    return observation.to(device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("variant", VARIANTS[::2], ids=variant_name)
def test_the_numbers_of_the_host(variant: dict[str, str], device: str) -> None:
    """Captured as a whole, guided and settled ones not; batches and prompts of several shapes, again and again."""
    model = random_model(**variant, max_delay=3)
    calls: list[tuple[Observation, dict[str, Any], Tensor]] = []
    for batch in (1, 2):
        observation = make_observation(model.config, batch, seed=batch)
        extra: list[dict[str, Any]] = [{}, {"solver": "heun"}]
        extra.append({"settled": ActionPrefix(asked(batch=batch), torch.arange(batch) + 1)})
        extra.append({"guide": Guidance(asked(batch=batch, seed=2), torch.ones(batch, 6))})
        for options in extra:
            noise = asked(batch=batch)
            calls.append((observation, options, model.sample_actions(observation, noise=noise, num_steps=3, **options)))
    there = model.to(device)
    sampler = FastSampler(there, compile=False)
    assert sampler.device == torch.device(device)
    for observation, options, expected in calls * 2:
        if "settled" in options:
            prefix = options["settled"]
            options = {"settled": ActionPrefix(prefix.actions.to(device), prefix.length.to(device))}
        if "guide" in options:
            guide = options["guide"]
            options = {
                "guide": dataclasses.replace(guide, actions=guide.actions.to(device), weights=guide.weights.to(device))
            }
        noise = asked(batch=observation.batch_size).to(device)
        for found in (
            sampler.sample_actions(on(device, observation), noise=noise, num_steps=3, **options),
            there.sample_actions(on(device, observation), noise=noise, num_steps=3, **options),
        ):
            assert found.device == torch.device(device)
            torch.testing.assert_close(found.cpu(), expected, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("device", DEVICES)
def test_compiled_layers(device: str) -> None:
    model = random_model()
    observation, noise = make_observation(model.config), asked()
    expected = model.sample_actions(observation, noise=noise, num_steps=3)
    found = FastSampler(model.to(device)).sample_actions(on(device, observation), noise=noise.to(device), num_steps=3)
    torch.testing.assert_close(found.cpu(), expected, atol=2e-3, rtol=1e-3)


def test_a_sampler_answers_while_another_is_captured() -> None:
    """As a server does that loads a checkpoint anew: captures here, calls and allocations in another thread."""
    device = "cuda:0"
    old, new = (random_model(seed) for seed in (0, 1))
    observation, noise = make_observation(old.config), asked()
    expected = [model.sample_actions(observation, noise=noise, num_steps=2) for model in (old, new)]
    serving = FastSampler(old.to(device), compile=False)
    there, start = on(device, observation), noise.to(device)
    errors: list[BaseException] = []
    answered, ended = 0, threading.Event()

    def serve() -> None:
        nonlocal answered
        try:
            while not ended.is_set() or answered < 20:
                found = serving.sample_actions(there, noise=start, num_steps=2 + answered % 3)
                torch.empty(1 << 20 + answered % 5, device=device).fill_(1.0)
                if answered % 3 == 0:
                    torch.testing.assert_close(found.cpu(), expected[0], atol=2e-3, rtol=1e-3)
                answered += 1
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    loaded = FastSampler(new.to(device), compile=False)
    try:
        for steps in range(1, 9):  # a capture each
            loaded.sample_actions(there, noise=start, num_steps=steps)
    finally:
        ended.set()
        thread.join()
    assert not errors
    found = loaded.sample_actions(there, noise=start, num_steps=2)
    torch.testing.assert_close(found.cpu(), expected[1], atol=2e-3, rtol=1e-3)


@pytest.mark.float8
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("variant", VARIANTS[:4:2], ids=variant_name)
def test_float8_with_and_without_a_guide(variant: dict[str, str], device: str) -> None:
    model = random_model(**variant, **SIZES)
    observation, noise = make_observation(model.config), asked()
    guide = Guidance(asked(seed=2), (torch.arange(6) < 3).float().expand(2, -1))
    exact = [model.sample_actions(observation, noise=noise, num_steps=3, guide=each) for each in (None, guide)]
    sampler = FastSampler(cast_weights(model, torch.bfloat16).to(device), kernels="float8", compile=False)
    there = dataclasses.replace(guide, actions=guide.actions.to(device), weights=guide.weights.to(device))
    for _ in range(2):
        for each, expected in zip((None, there), exact, strict=True):
            found = sampler.sample_actions(on(device, observation), noise=noise.to(device), num_steps=3, guide=each)
            assert 0 < float((found.cpu() - expected).norm() / expected.norm()) < 0.3
