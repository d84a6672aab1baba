"""What is done to a finished model without changing it: activation checkpointing, precision, autocast."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from model_helpers import gradients, make_actions, make_observation, random_model
from torch.utils.checkpoint import checkpoint

from pizero.model.layers import Float32Linear
from pizero.model.precision import cast_weights


@pytest.mark.parametrize("pi05", [False, True])
def test_activation_checkpointing_of_a_layer(pi05: bool) -> None:
    """The same gradients, each layer computed twice."""
    model = random_model(pi05=pi05)
    observation = make_observation(model.config)
    actions, noise, time = make_actions(model.config)
    before = model.loss(observation, actions, noise=noise, time=time)
    expected = gradients(model, before.mean())
    calls = 0

    def counted(forward, *args, **kwargs):
        nonlocal calls
        calls += 1
        return forward(*args, **kwargs)

    for layer in model.transformer.layers:
        layer.forward = partial(checkpoint, partial(counted, layer.forward), use_reentrant=False)
    after = model.loss(observation, actions, noise=noise, time=time)
    assert calls == 2
    found = gradients(model, after.mean())
    assert calls == 4
    assert torch.equal(before, after)
    for name, gradient in expected.items():
        other = found[name]
        assert (gradient is None) == (other is None)
        assert gradient is None or torch.allclose(gradient, other, rtol=1e-5, atol=1e-7)


def float32_names(model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.dtype == torch.float32}


@pytest.mark.parametrize("pi05", [False, True])
def test_cast_weights_keeps_what_the_reference_keeps(pi05: bool) -> None:
    model = cast_weights(random_model(pi05=pi05), torch.bfloat16)
    kept = {"vision_tower.position_embedding"}
    heads = ["action_in_proj", "action_out_proj", "time_mlp_in", "time_mlp_out", "vision_tower.patch_embedding"]
    for head in heads if pi05 else [*heads, "state_proj"]:
        kept |= {f"{head}.weight", f"{head}.bias"}
    norms = [f"transformer.layers.{i}.{expert}.{norm}" for i in range(2) for expert in ("prefix", "expert")
             for norm in ("attention_norm", "mlp_norm")]  # fmt: skip
    for norm in [*norms, "transformer.prefix_norm", "transformer.expert_norm"]:
        adaptive = pi05 and "expert" in norm
        kept |= {f"{norm}.modulation.weight", f"{norm}.modulation.bias"} if adaptive else {f"{norm}.scale"}
    assert float32_names(model) == kept
    assert {p.dtype for name, p in model.named_parameters() if name not in kept} == {torch.bfloat16}
    assert {p.dtype for p in cast_weights(model, torch.float32).parameters()} == {torch.float32}


@pytest.mark.parametrize("pi05", [False, True])
def test_kept_weights_are_not_rounded(pi05: bool) -> None:
    model = random_model(pi05=pi05)
    before = copy.deepcopy(model.state_dict())
    for name, parameter in cast_weights(model, torch.bfloat16).named_parameters():
        assert torch.equal(parameter, before[name].to(parameter.dtype))


@pytest.mark.parametrize("pi05", [False, True])
def test_bfloat16_stays_close(pi05: bool) -> None:
    """Actions are float32 and near; loss and gradients are finite."""
    model = random_model(pi05=pi05)
    observation = make_observation(model.config)
    actions, noise, time = make_actions(model.config)
    exact = model.sample_actions(observation, num_steps=5, noise=noise)
    cast_weights(model, torch.bfloat16)
    rounded = model.sample_actions(observation, num_steps=5, noise=noise)
    assert rounded.dtype == torch.float32
    assert 0 < float((rounded - exact).abs().max()) < 0.1 * float(exact.abs().max())
    loss = model.loss(observation, actions, noise=noise, time=time)
    assert loss.dtype == torch.float32
    found = gradients(model, loss.mean())
    assert all(bool(torch.isfinite(gradient).all()) for gradient in found.values() if gradient is not None)


def test_autocast_leaves_the_small_projections_in_float32() -> None:
    layer = Float32Linear(8, 4)
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        inside = layer(x)
        assert torch.nn.functional.linear(x, layer.weight).dtype == torch.bfloat16
    assert inside.dtype == torch.float32
    assert torch.equal(inside, layer(x))


def test_a_loss_under_autocast() -> None:
    model = random_model(pi05=True)
    observation = make_observation(model.config)
    actions, noise, time = make_actions(model.config)
    exact = model.loss(observation, actions, noise=noise, time=time)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model.loss(observation, actions, noise=noise, time=time)
    assert rounded.dtype == torch.float32
    assert torch.allclose(rounded, exact, rtol=0.2, atol=0.2)
    found = gradients(model, rounded.mean())
    assert all(bool(torch.isfinite(gradient).all()) for gradient in found.values() if gradient is not None)
