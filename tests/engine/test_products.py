"""Every kernel gives the product; which one is taken is measured once and kept."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from model_helpers import make_observation, random_model
from torch.nn import functional as F

from pizero.engine import tuning
from pizero.engine.fast_sampler import FastSampler
from pizero.engine.int8 import largest_code
from pizero.engine.products import (
    Float8Product,
    Kernels,
    OneDnnProduct,
    TorchProduct,
    _packs,
    check_kernels,
    make_gated,
    make_product,
)
from pizero.types import UserError

EXACT = {"torch": TorchProduct, "onednn": OneDnnProduct}
EITHER = ["torch", pytest.param("onednn", marks=pytest.mark.onednn)]


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
@pytest.mark.parametrize("name", EITHER)
def test_product_gelu_sum(name: str, bias: bool) -> None:
    weight, offset, x = layer(bias=bias)
    product, expected = EXACT[name](weight, offset), F.linear(x, weight, offset)
    plus = torch.randn_like(expected)
    torch.testing.assert_close(product(x), expected, atol=2e-6, rtol=0)
    torch.testing.assert_close(product(x, plus), expected + plus, atol=2e-6, rtol=0)
    torch.testing.assert_close(product.gelu(x), F.gelu(expected, approximate="tanh"), atol=2e-6, rtol=0)


@pytest.mark.parametrize("name", EITHER)
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


@pytest.mark.parametrize("kernels", [*EITHER, pytest.param("int8", marks=pytest.mark.int8)])
def test_the_gated_half_of_an_mlp(kernels: Kernels) -> None:
    gate, _, x = layer()
    up = torch.randn(gate.shape, generator=torch.Generator().manual_seed(3)) * 32**-0.5
    expected = F.gelu(x @ gate.T, approximate="tanh") * (x @ up.T)
    found = make_gated(gate, up, 5, kernels)(x)
    assert float((found - expected).norm() / expected.norm()) < (0.025 if kernels == "int8" else 1e-6)


def test_float8_weights_and_scales() -> None:
    """The product itself needs a GPU; what is kept of the weights is checked here."""
    weight, offset, _ = layer()
    product = Float8Product(weight, offset)
    error = (product.codes.float() * product.scale - weight).norm() / weight.norm()
    assert float(error) < 0.03


@pytest.mark.onednn
def test_the_fastest_is_kept(tmp_path: Path) -> None:
    weight, offset, x = layer()
    make_product(weight, offset, 5, "auto")
    ((key, kept),) = json.loads((tmp_path / "kernels.json").read_text()).items()
    assert set(kept["median_us"]) == set(EXACT)
    assert key.endswith(f"{torch.get_num_threads()} threads · 5 x 32 x 48 float32")
    other = next(iter(EXACT.keys() - {kept["way"]}))
    (tmp_path / "kernels.json").write_text(json.dumps({key: {**kept, "way": other}}))
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
            check_kernels(kernels, torch.device("meta"), torch.float32)
    with pytest.raises(UserError, match="float8 kernels need an NVIDIA card"):
        check_kernels("float8", torch.device("cpu"), torch.float32)


def test_dtypes_that_onednn_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where bfloat16 products need AVX-512, or a Neoverse V1: said at once, and the choice does without."""

    def refuse(weight: torch.Tensor, tokens: int | None) -> None:
        raise RuntimeError(f"{weight.dtype} path needs the cpu support avx_ne_convert")

    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace(_reorder_linear_weight=refuse))
    _packs.cache_clear()
    with pytest.raises(UserError, match="oneDNN's kernels have no bfloat16 on this processor; choose auto, or float32"):
        check_kernels("onednn", torch.device("cpu"), torch.bfloat16)
    with pytest.raises(UserError, match="oneDNN's kernels have no float16"):
        check_kernels("onednn", torch.device("cpu"), torch.float16)
    weight, offset, x = layer(torch.bfloat16)
    assert type(make_product(weight, offset, 5, "auto")) is TorchProduct
    assert torch.equal(make_product(weight, offset, 5, "auto")(x), F.linear(x, weight, offset))
    _packs.cache_clear()


def test_a_torch_without_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a Mac: no such operators. The choice does without, and what is asked for by name is one clear line."""
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    for name in ("mkldnn", "onednn"):
        monkeypatch.setattr(torch.ops, name, SimpleNamespace())
    largest_code.cache_clear()
    assert largest_code() is None
    largest_code.cache_clear()
    for kernels in ("int8", "onednn"):
        with pytest.raises(UserError, match=f"built without oneDNN, which has the {kernels} kernels; choose auto"):
            check_kernels(kernels, torch.device("cpu"), torch.float32)
    for dtype in (torch.float32, torch.bfloat16):
        weight, offset, x = layer(dtype)
        assert torch.equal(make_product(weight, offset, 5, "auto")(x), F.linear(x, weight, offset))
        gated = make_gated(weight, weight, 5, "auto")(x)
        half = F.linear(x, weight)
        torch.testing.assert_close(gated, F.gelu(half, approximate="tanh") * half)
    model = random_model()
    observation = make_observation(model.config)
    noise = torch.randn(2, model.config.action_horizon, model.config.action_dim)
    found = FastSampler(model).sample_actions(observation, noise=noise)
    torch.testing.assert_close(found, model.sample_actions(observation, noise=noise), atol=5e-6, rtol=0)
    with pytest.raises(UserError, match="built without oneDNN"):
        FastSampler(model, kernels="int8")
