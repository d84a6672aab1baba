"""The pure functions of the reference: masks, rotary embedding, norms, gated MLP, flow-time embedding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pizero.model.attention import block_mask
from pizero.model.layers import (
    AdaptiveRMSNorm,
    GatedMLP,
    RMSNorm,
    apply_rotary,
    embed_time,
    gated_residual,
    rotary_table,
)

with np.load(Path(__file__).parents[1] / "golden" / "openpi" / "functions" / "layers.npz") as _file:
    LAYERS = {name: torch.from_numpy(_file[name]) for name in _file.files}

MASK_CASES = sorted({name.split("/")[1] for name in LAYERS if name.startswith("mask/")})


def largest(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape
    return float((actual.double() - expected.double()).detach().abs().max())


def assert_bfloat16_close(actual: Tensor, expected: Tensor) -> None:
    """Equal but for the last of bfloat16's 8 bits, where float32 sums that round differently may fall apart."""
    assert actual.dtype == torch.bfloat16
    assert actual.shape == expected.shape
    assert bool(((actual.float() - expected).abs() <= 2**-7 * expected.abs() + 1e-6).all())
    assert float((actual.float() == expected).float().mean()) > 0.95


def test_the_mask_cases_are_there() -> None:
    assert {"causal", "prefix_lm", "blocks", "bidirectional", "batched_ar", "pi0_layout"} <= set(MASK_CASES)


@pytest.mark.parametrize("case", MASK_CASES)
def test_block_mask(case: str) -> None:
    actual = block_mask(LAYERS[f"mask/{case}/input_mask"], LAYERS[f"mask/{case}/ar_mask"])
    assert torch.equal(actual, LAYERS[f"mask/{case}/out"].bool())


@pytest.mark.parametrize(("name", "head_dim"), [("rope", 16), ("rope256", 256)])
def test_rotary(name: str, head_dim: int) -> None:
    """At position 1,000 an angle in float32 is only good to 6e-5, so there the last bits of a power function show."""
    positions = LAYERS[f"{name}/positions"]
    actual = apply_rotary(LAYERS[f"{name}/x"], rotary_table(positions, head_dim))
    expected = LAYERS[f"{name}/out"]
    near = positions < 20
    assert near.any()
    assert largest(actual[near], expected[near]) <= 1e-6
    assert largest(actual, expected) <= 2e-4


def test_rotary_of_a_bfloat16_input() -> None:
    actual = apply_rotary(LAYERS["rope/x"].bfloat16(), rotary_table(LAYERS["rope/positions"], 16))
    assert_bfloat16_close(actual, LAYERS["rope/out_bf16_input"])


def rms_norm() -> RMSNorm:
    norm = RMSNorm(24)
    norm.scale.data = LAYERS["rmsnorm/scale"].clone()
    return norm


def test_rms_norm() -> None:
    actual, gate = rms_norm()(LAYERS["rmsnorm/x"])
    assert gate is None
    assert largest(actual, LAYERS["rmsnorm/out"]) <= 1e-6


def test_rms_norm_of_a_bfloat16_input() -> None:
    assert_bfloat16_close(rms_norm()(LAYERS["rmsnorm/x"].bfloat16())[0], LAYERS["rmsnorm/out_bf16_input"])


def adaptive_norm() -> AdaptiveRMSNorm:
    norm = AdaptiveRMSNorm(24)
    norm.modulation.weight.data = LAYERS["adarms/kernel"].T.clone()
    norm.modulation.bias.data = LAYERS["adarms/bias"].clone()
    return norm


def test_adaptive_rms_norm() -> None:
    actual, gate = adaptive_norm()(LAYERS["adarms/x"], LAYERS["adarms/cond"])
    assert gate is not None
    assert largest(actual, LAYERS["adarms/out"]) <= 2e-6
    assert largest(gate, LAYERS["adarms/gate"]) <= 1e-6


def test_adaptive_rms_norm_of_a_bfloat16_input() -> None:
    """The modulation in bfloat16 too, as the reference does: its product alone is off by one bit here and there."""
    actual, gate = adaptive_norm().bfloat16()(LAYERS["adarms/x"].bfloat16(), LAYERS["adarms/cond"])
    assert gate is not None
    assert actual.dtype == gate.dtype == torch.bfloat16
    assert largest(actual, LAYERS["adarms/out_bf16_x_f32_cond"]) <= 0.07
    assert largest(gate, LAYERS["adarms/gate_bf16_x_f32_cond"]) <= 0.02


def test_adaptive_rms_norm_asks_for_its_conditioning() -> None:
    with pytest.raises(ValueError, match="conditioning"):
        adaptive_norm()(LAYERS["adarms/x"])


def test_gated_residual() -> None:
    x, y, gate = (LAYERS[f"gated_residual/{name}"] for name in ("x", "y", "gate"))
    assert largest(gated_residual(x, y, gate), LAYERS["gated_residual/out"]) <= 1e-6
    assert torch.equal(gated_residual(x, y, None), x + y)


def test_gated_mlp() -> None:
    mlp = GatedMLP(24, 40)
    gate, up = LAYERS["ffw/gating_einsum"]
    mlp.gate.weight.data, mlp.up.weight.data = gate.T.clone(), up.T.clone()
    mlp.down.weight.data = LAYERS["ffw/linear"].T.clone()
    assert largest(mlp(LAYERS["ffw/x"]), LAYERS["ffw/out"]) <= 1e-6


def test_time_embedding() -> None:
    """Against the float64 yardstick; the reference's own float32 is up to 2e-4 away from it."""
    times = LAYERS["posemb/t"]
    assert largest(embed_time(times, 1024), LAYERS["posemb/out_1024_float64"]) <= 1e-6
    for width in (32, 1024):
        assert largest(embed_time(times, width), LAYERS[f"posemb/out_{width}"]) <= 2e-4


def test_time_embedding_needs_an_even_width() -> None:
    with pytest.raises(ValueError, match="even, got 7"):
        embed_time(torch.zeros(1), 7)
