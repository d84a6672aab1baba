"""Every kernel gives the product; which one is taken is measured once and kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from pizero.engine import tuning
from pizero.engine.products import (
    Float8Product,
    Int8Product,
    Kernels,
    OneDnnProduct,
    TorchProduct,
    check_kernels,
    make_gated,
    make_product,
    quantized_tokens,
)
from pizero.types import UserError

EXACT = {"torch": TorchProduct, "onednn": OneDnnProduct}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction]
    monkeypatch.setenv("PIZERO_CACHE", str(tmp_path))
    monkeypatch.setattr(tuning, "_known", None)


def layer(
    dtype: torch.dtype = torch.float32, bias: bool = True
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(48, 32, generator=generator) * 32**-0.5
    x = torch.randn(2, 5, 32, generator=generator)
    return weight.to(dtype), torch.randn(48, generator=generator).to(dtype) if bias else None, x.to(dtype)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", EXACT)
def test_product_gelu_sum(name: str, bias: bool) -> None:
    weight, offset, x = layer(bias=bias)
    product, expected = EXACT[name](weight, offset), F.linear(x, weight, offset)
    plus = torch.randn_like(expected)
    torch.testing.assert_close(product(x), expected, atol=2e-6, rtol=0)
    torch.testing.assert_close(product(x, plus), expected + plus, atol=2e-6, rtol=0)
    torch.testing.assert_close(product.gelu(x), F.gelu(expected, approximate="tanh"), atol=2e-6, rtol=0)


@pytest.mark.parametrize("name", EXACT)
def test_the_derivative_in_x(name: str) -> None:
    weight, offset, x = layer()
    plus = torch.randn(2, 5, 48)
    for call, plain in (
        (EXACT[name](weight, offset), lambda x: F.linear(x, weight, offset)),
        (lambda x: EXACT[name](weight, offset)(x, plus), lambda x: F.linear(x, weight, offset) + plus),
        (EXACT[name](weight, offset).gelu, lambda x: F.gelu(F.linear(x, weight, offset), approximate="tanh")),
    ):
        ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        call(ours).square().sum().backward()
        plain(theirs).square().sum().backward()
        torch.testing.assert_close(ours.grad, theirs.grad, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("kernels", ["torch", "onednn", "int8"])
def test_the_gated_half_of_an_mlp(kernels: Kernels) -> None:
    gate, _, x = layer()
    up = torch.randn(gate.shape, generator=torch.Generator().manual_seed(3)) * 32**-0.5
    expected = F.gelu(x @ gate.T, approximate="tanh") * (x @ up.T)
    found = make_gated(gate, up, 5, kernels)(x)
    assert float((found - expected).norm() / expected.norm()) < (0.02 if kernels == "int8" else 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_is_close_whatever_the_size_of_a_token(dtype: torch.dtype) -> None:
    weight, offset, x = layer(dtype, bias=False)
    x = x * torch.tensor([1e-6, 1.0, 1e3, 1e6, 0.0])[None, :, None].to(dtype)
    expected, product = F.linear(x.float(), weight.float()), Int8Product(weight, offset)
    found = product(x).float()
    error = (found - expected).norm(dim=-1) / expected.norm(dim=-1).clamp(min=1e-12)
    assert float(error.max()) < 0.02
    plus = torch.ones_like(expected).to(dtype)
    torch.testing.assert_close(product(x, plus), (product(x) + plus).to(dtype))


def test_codes_of_tokens_never_wrap() -> None:
    """In bfloat16 the factor is rounded: the greatest value of a token must still fit into a code."""
    x = torch.randn(4096, 16, generator=torch.Generator().manual_seed(5)).bfloat16()
    codes, scale = quantized_tokens(x)
    error = ((codes.float() - 128) * scale.float() - x.float()).abs() / x.float().abs().amax(dim=-1, keepdim=True)
    assert float(error.max()) < 0.01


def test_float8_weights_and_scales() -> None:
    """The product itself needs a GPU; what is kept of the weights is checked here."""
    weight, offset, _ = layer()
    product = Float8Product(weight, offset)
    error = (product.codes.float() * product.scale - weight).norm() / weight.norm()
    assert float(error) < 0.03


def test_the_fastest_is_kept(tmp_path: Path) -> None:
    weight, offset, x = layer()
    make_product(weight, offset, 5, "auto")
    kept = json.loads((tmp_path / "kernels.json").read_text())
    ((key, way),) = kept.items()
    assert way in EXACT
    assert key.endswith("2 threads · 5 x 32 x 48 float32")
    other = next(iter(EXACT.keys() - {way}))
    (tmp_path / "kernels.json").write_text(json.dumps({key: other}))
    tuning._known = None
    assert type(make_product(weight, offset, 5, "auto")) is EXACT[other]
    (tmp_path / "kernels.json").write_text("damaged")
    tuning._known = None
    torch.testing.assert_close(make_product(weight, offset, 5, "auto")(x), F.linear(x, weight, offset))
    assert json.loads((tmp_path / "kernels.json").read_text()).keys() == {key}


def test_a_cache_folder_that_cannot_be_written_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PIZERO_CACHE", str(tmp_path / "file"))
    weight, offset, x = layer()
    torch.testing.assert_close(make_product(weight, offset, 5, "auto")(x), F.linear(x, weight, offset))


def test_kernels_that_the_device_lacks() -> None:
    for kernels in ("int8", "onednn"):
        with pytest.raises(UserError, match=f"{kernels} kernels run on a CPU, and the model is on meta"):
            check_kernels(kernels, torch.device("meta"))
    with pytest.raises(UserError, match="float8 kernels need an NVIDIA card"):
        check_kernels("float8", torch.device("cpu"))
