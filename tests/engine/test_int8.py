"""int8: close to the product it stands for, exact in its whole numbers, and never saturated without a word."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from model_helpers import make_observation, random_model
from torch.nn import functional as F

from pizero.engine import int8
from pizero.engine.fast_sampler import FastSampler
from pizero.engine.int8 import Int8Gated, Int8Product, int8_codes, largest_code, quantized_tokens, weight_bits
from pizero.engine.products import JoinedGated, TorchProduct

pytestmark = pytest.mark.int8


@pytest.fixture(params=["as here", "seven bits"])
def _bits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction]
    """Both ranges, so that a processor that multiplies 8 bits exactly tests the other one's codes too."""
    if request.param == "seven bits":
        monkeypatch.setattr(int8, "largest_code", lambda: int8.SEVEN_BITS)


@pytest.fixture
def probe() -> Iterator[None]:
    """The answer is kept for the process; a test that changes what is asked forgets it before and after."""
    largest_code.cache_clear()
    yield
    largest_code.cache_clear()


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.usefixtures("_bits")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_close_whatever_the_size_of_a_token(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = (torch.randn(48, 32, generator=generator) * 32**-0.5).to(dtype)
    x = torch.randn(2, 5, 32, generator=generator)
    x = (x * torch.tensor([1e-6, 1.0, 1e3, 1e6, 0.0])[None, :, None]).to(dtype)
    expected, product = F.linear(x.float(), weight.float()), Int8Product(weight)
    found = product(x).float()
    error = (found - expected).norm(dim=-1) / expected.norm(dim=-1).clamp(min=1e-12)
    assert float(error.max()) < 0.025
    plus = torch.ones_like(expected).to(dtype)
    torch.testing.assert_close(product(x, plus), (product(x) + plus).to(dtype))


@pytest.mark.usefixtures("_bits")
def test_the_error_is_that_of_rounding_to_so_many_bits() -> None:
    """A uniform quantizer's: the variance of what is rounded off is a step squared over 12, in weights and tokens."""
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(256, 192, generator=generator), torch.randn(128, 192, generator=generator)
    exact = x.double() @ weight.double().T
    of_weight, of_x = weight.abs().amax(1) / int8.largest_code(), x.abs().amax(1) / 126
    variance = of_weight.square()[None] / 12 * x.square().sum(1)[:, None]
    variance += of_x.square()[:, None] / 12 * weight.square().sum(1)[None]
    expected = float((variance.mean() / exact.square().mean()).sqrt())
    assert relative(Int8Product(weight)(x), exact) == pytest.approx(expected, rel=0.1)


@pytest.mark.usefixtures("_bits")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 7, 64])
def test_values_near_their_maximum(tokens: int, dtype: torch.dtype) -> None:
    """Every pair of products is as large as codes allow, of one sign: what adds them in 16 bits is 44 % off."""
    generator = torch.Generator().manual_seed(0)
    signs = torch.where(torch.arange(40) < 20, 1.0, -1.0)[:, None]
    weight = (signs * (1 - 0.05 * torch.rand(40, 96, generator=generator))).to(dtype)
    x = (1 - 0.05 * torch.rand(tokens, 96, generator=generator)).to(dtype)
    product = Int8Product(weight)
    assert relative(product(x), x.double() @ weight.double().T) < 0.01
    gated = Int8Gated(product, product)(x)
    exact = x.double() @ weight.double().T
    assert relative(gated, F.gelu(exact, approximate="tanh") * exact) < 0.015


@pytest.mark.parametrize("shape", [(1, 16, 8), (3, 33, 5), (20, 1152, 64), (256, 64, 300)], ids=str)
def test_whole_numbers_are_exact(shape: tuple[int, int, int]) -> None:
    """With codes up to their limit, whatever kernel a shape takes here. AMX's rounds sums beyond 2^24 to float32
    before it takes the zero of the codes off: then they are those numbers, to the bit.
    """
    tokens, width, outputs = shape
    largest = largest_code()
    assert largest is not None
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(2, 255, (tokens, width), generator=generator)
    codes[0], codes[-1, ::2] = 254, 254
    weight = torch.randint(-largest, largest + 1, (outputs, width), generator=generator)
    weight[0], weight[1], weight[2, ::2] = largest, -largest, largest
    weight[:, 0] = largest  # so that the codes are these numbers, and the scale is one
    found = Int8Product(weight.float()).coded(codes.to(torch.uint8), torch.float32)
    rounded = (codes @ weight.T).float() - (128 * weight.sum(dim=1)).float()
    assert torch.equal(found.long(), (codes - 128) @ weight.T) or torch.equal(found, rounded)


@pytest.mark.parametrize("largest", [127, 63])
def test_codes_of_weights(largest: int) -> None:
    weight = torch.randn(600, 16, generator=torch.Generator().manual_seed(0))
    weight[3] = 0
    codes, scale = int8_codes(weight, largest)
    assert int(codes.abs().amax()) == largest
    assert float((codes * scale[:, None] - weight).abs().amax()) <= float(scale.amax()) / 2 + 1e-6
    assert int(codes[3].abs().amax()) == 0


def test_codes_of_tokens_never_wrap() -> None:
    """In bfloat16 the factor is rounded: the greatest value of a token must still fit into a code."""
    x = torch.randn(4096, 16, generator=torch.Generator().manual_seed(5)).bfloat16()
    codes, scale = quantized_tokens(x)
    error = ((codes.float() - 128) * scale.float() - x.float()).abs() / x.float().abs().amax(dim=-1, keepdim=True)
    assert float(error.max()) < 0.01


@pytest.mark.usefixtures("probe")
@pytest.mark.parametrize(("limit", "expected", "bits"), [(None, 127, 8), (32767, 63, 7), (20000, None, 7)])
def test_the_range_is_what_the_product_can_hold(
    monkeypatch: pytest.MonkeyPatch, limit: int | None, expected: int | None, bits: int
) -> None:
    """limit: at which the sum of two products saturates; an exact one, one with 16 bits, one that is no use."""

    def product(codes: torch.Tensor, weight: torch.Tensor, *_: object) -> torch.Tensor:
        each = codes.long()[:, None] * weight.long()
        pairs = each.unflatten(-1, (-1, 2)).sum(-1)
        pairs = pairs if limit is None else pairs.clamp(-limit - 1, limit)
        return (pairs.sum(-1) - 128 * weight.long().sum(-1)).float()

    monkeypatch.setattr(int8, "_qlinear", product)
    monkeypatch.setattr(torch.ops, "onednn", type("Ops", (), {"qlinear_prepack": staticmethod(lambda w, _: w)}))
    assert largest_code() == expected
    if expected is not None:
        assert weight_bits() == bits
    else:
        with pytest.raises(RuntimeError, match="no exact int8 product"):
            Int8Product(torch.ones(4, 4))


class Rounded:
    """What an int8 product stands for, in floating point: each output's weights and each token rounded to a grid."""

    def __init__(self, product: TorchProduct) -> None:
        weight = product.weight.double()
        step = weight.abs().amax(1, keepdim=True) / int8.largest_code()
        self.weight, self.bias = ((weight / step).round() * step).float(), product.bias

    def __call__(self, x: torch.Tensor, plus: torch.Tensor | None = None) -> torch.Tensor:
        step = x.double().abs().amax(-1, keepdim=True) / 126
        y = F.linear(((x / step).round() * step).float(), self.weight, self.bias)
        return y if plus is None else plus + y

    def gelu(self, x: torch.Tensor) -> torch.Tensor:
        return F.gelu(self(x), approximate="tanh")


def rounded(block: Any) -> Any:
    changes: dict[str, Any] = {
        name: Rounded(value) for name, value in vars(block).items() if isinstance(value, TorchProduct)
    }
    if isinstance(getattr(block, "gated", None), JoinedGated):
        changes["gated"] = JoinedGated(Rounded(block.gated.gate_up))
    return dataclasses.replace(block, **changes)


@pytest.mark.usefixtures("_bits")
@pytest.mark.parametrize("keep", [(), ("vision.*", "prefix.*"), ("*",)], ids=str)
def test_the_error_of_a_whole_call(keep: tuple[str, ...]) -> None:
    """Within 10 % that of the same call with rounded numbers in the layers that are not kept."""
    model = random_model()
    observation, noise = (
        make_observation(model.config),
        torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(1)),
    )

    def run(sampler: FastSampler) -> torch.Tensor:
        return sampler.sample_actions(observation, noise=noise, num_steps=3)

    reference = FastSampler(model, kernels="torch")
    exact = run(reference)
    if "*" not in keep:
        reference.expert_blocks = [rounded(block) for block in reference.expert_blocks]
    if not keep:
        reference.vision_blocks = [rounded(block) for block in reference.vision_blocks]
        reference.prefix_blocks = [rounded(block) for block in reference.prefix_blocks]
    expected = relative(run(reference), exact)
    found = relative(run(FastSampler(model, kernels="int8", keep=keep)), exact)
    assert found == pytest.approx(expected, rel=0.1, abs=5e-6)
    assert expected > 1e-3 or "*" in keep
