"""The derivative of products of codes: float32's, but for the rounding of weights and tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from model_helpers import make_observation, random_model
from torch import Tensor
from torch.nn import functional as F

from pizero.engine import products
from pizero.engine.fast_sampler import FastSampler
from pizero.engine.products import Float8Product, Kernels, make_gated, make_product
from pizero.model.flow_matching import Velocity
from pizero.policy.real_time import Guidance

CODES = [pytest.param("int8", marks=pytest.mark.int8), "float8"]


@pytest.fixture(autouse=True)
def _float8(monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction]
    """The product of a GPU, computed from the same codes and scales, without a derivative as there."""

    def scaled(a: Tensor, b: Tensor, *, scale_a: Tensor, scale_b: Tensor, bias: Any, out_dtype: Any) -> Tensor:
        assert not a.requires_grad
        y = (a.float() * scale_a) @ (b.float() * scale_b)
        return (y if bias is None else y + bias).to(out_dtype)

    monkeypatch.setattr(torch, "_scaled_mm", scaled)
    monkeypatch.setattr("pizero.engine.fast_sampler.check_kernels", lambda *_: None)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def layers() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    gate, up = (torch.randn(48, 32, generator=generator) * 32**-0.5 for _ in range(2))
    return gate, up, torch.randn(48, generator=generator), torch.randn(2, 5, 32, generator=generator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kernels", CODES)
def test_the_jacobian_of_a_product(kernels: Kernels, dtype: torch.dtype) -> None:
    weight, up, bias, x = (tensor.to(dtype) for tensor in layers())
    plus = torch.ones(2, 5, 48, dtype=dtype)
    product, gated = make_product(weight, bias, 5, kernels), make_gated(weight, up, 5, kernels)
    pairs = [
        (product, lambda x: F.linear(x, weight, bias)),
        (lambda x: product(x, plus), lambda x: F.linear(x, weight, bias) + plus),
        (product.gelu, lambda x: F.gelu(F.linear(x, weight, bias), approximate="tanh")),
        (gated, lambda x: F.gelu(x @ weight.T, approximate="tanh") * (x @ up.T)),
    ]
    towards = torch.randn(2, 5, 48, generator=torch.Generator().manual_seed(2)).to(dtype)
    for coded, exact in pairs:
        ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        value = coded(ours)
        torch.testing.assert_close(value.detach(), coded(x), atol=0.02, rtol=0.02)  # the numbers of a call without
        value.backward(towards)
        exact(theirs).backward(towards)
        assert relative(ours.grad.float(), theirs.grad.float()) < (0.05 if kernels == "int8" else 0.08)


def test_the_weights_that_codes_stand_for() -> None:
    weight = layers()[0]
    assert relative(Float8Product(weight).dense(torch.float32), weight) < 0.03
    product = products.OneDnnProduct(weight) if torch.backends.mkldnn.is_available() else None
    if product is not None:
        assert torch.equal(product.dense(torch.float32), weight)


@pytest.mark.parametrize("variant", [{}, {"state_input": "prompt", "time_conditioning": "adarms"}], ids=["pi0", "pi05"])
@pytest.mark.parametrize("kernels", CODES)
def test_the_jacobian_of_a_velocity(kernels: Kernels, variant: dict[str, str]) -> None:
    """As guidance takes it: of the estimated actions, at every step of the integration."""
    model, pulls = random_model(**variant), dict[str, list[Tensor]](exact=[], coded=[])

    def noting(name: str) -> Any:
        def guide(velocity: Velocity) -> Velocity:
            def guided(x_t: Tensor, time: Tensor) -> Tensor:
                with torch.enable_grad():
                    x_t = x_t.detach().requires_grad_()
                    (pull,) = torch.autograd.grad(velocity(x_t, time), x_t, torch.ones_like(x_t))
                pulls[name].append(pull)
                return torch.ones_like(x_t)  # both follow one path

            return guided

        return guide

    observation = make_observation(model.config)
    noise = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(1))
    model.sample_actions(observation, noise=noise, num_steps=3, guide=noting("exact"))
    FastSampler(model, kernels=kernels).sample_actions(observation, noise=noise, num_steps=3, guide=noting("coded"))
    assert len(pulls["exact"]) == len(pulls["coded"]) == 3
    exact, coded = torch.stack(pulls["exact"]), torch.stack(pulls["coded"])
    assert 0 < relative(coded, exact) < (0.1 if kernels == "int8" else 0.3)


@pytest.mark.parametrize("kernels", CODES)
def test_guided_chunks_one_after_the_other(kernels: Kernels) -> None:
    """What is settled by the guidance comes out, every time, and a call without it afterwards is what it was."""
    model = random_model()
    sampler, observation = FastSampler(model, kernels=kernels), make_observation(model.config)
    noise = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(1))
    before = sampler.sample_actions(observation, noise=noise)
    guidance = Guidance(before + 0.1, (torch.arange(6) < 3).float().expand(2, -1))
    guided = [sampler.sample_actions(observation, noise=noise, guide=guidance) for _ in range(2)]
    exact = model.sample_actions(observation, noise=noise, guide=guidance)
    assert torch.equal(*guided)
    near = (guided[0] - guidance.actions)[:, :3].abs().mean()
    assert near < 0.6 * (before - guidance.actions)[:, :3].abs().mean()
    assert relative(guided[0], exact) < 0.3
    assert torch.equal(sampler.sample_actions(observation, noise=noise), before)
