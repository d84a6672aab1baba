"""Every recorded array of the reference against ours, on the reference's weights.

Tolerances hold for values of order 5 and grow with larger ones. Most of them is the flow-time embedding, which the
reference computes in float32 (up to 2e-4 away) and the port and we in float64.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pizero.checkpoints.load import load_model
from pizero.checkpoints.openpi.torch import key_table
from pizero.model.attention import block_mask, token_positions
from pizero.model.flow_matching import interpolate, velocity_target
from pizero.model.precision import cast_weights

EXACT, ROUNDING, PREFIX, FLOW, BFLOAT16 = 0.0, 1e-6, 2e-5, 2e-4, 0.05
BASE = "base_0_rgb"


def prefix_mask(golden) -> Tensor:
    return block_mask(golden.prefix[1], golden["out/prefix_ar_mask"])


def own_prefix_mask(golden) -> Tensor:
    return golden.model.transformer._prefix_stream(golden.prefix[1]).mask


def joint_positions(golden) -> Tensor:
    tokens, mask = golden.suffix[0], golden.prefix[1]
    return token_positions(torch.cat([mask, mask.new_ones(tokens.shape[:2])], dim=1))


def cached_velocity(golden) -> Tensor:
    cache = golden.model.prefill(golden.observation)
    return golden.model.decode(cache, golden.observation.state, golden.x_t, golden["in/time"])


CHECKS: dict[str, tuple[Callable[..., Tensor], float]] = {
    "in/x_t": (lambda g: interpolate(g["in/actions"], g["in/noise"], g["in/time"]), ROUNDING),
    "in/u_t": (lambda g: velocity_target(g["in/actions"], g["in/noise"]), ROUNDING),
    "out/siglip_with_posemb_b0": (lambda g: g.model.vision_tower.embed_patches(g.image(BASE)[:1]), PREFIX),
    "out/siglip_encoded_b0": (
        lambda g: g.model.vision_tower.encode(g.model.vision_tower.embed_patches(g.image(BASE)[:1])),
        PREFIX,
    ),
    "out/prompt_embs": (lambda g: g.prefix[0][:, -g["in/tokenized_prompt"].shape[1] :], PREFIX),
    "out/prefix_pad_mask": (lambda g: g.prefix[1], EXACT),
    "out/prefix_hidden": (lambda g: g.prefilled[0], PREFIX),
    "out/kv_cache_first_k": (lambda g: g.prefilled[1].keys[0], FLOW),
    "out/kv_cache_first_v": (lambda g: g.prefilled[1].values[0], PREFIX),
    "out/kv_cache_last_k": (lambda g: g.prefilled[1].keys[-1], FLOW),
    "out/kv_cache_last_v": (lambda g: g.prefilled[1].values[-1], PREFIX),
    "out/suffix_embs": (lambda g: g.suffix[0], FLOW),
    "out/suffix_ar_mask": (lambda g: g.suffix[1], EXACT),
    "out/suffix_pad_mask": (lambda g: torch.ones(g.suffix[0].shape[:2], dtype=torch.bool), EXACT),
    "out/adarms_cond": (lambda g: g.suffix[2], FLOW),
    "out/positions_joint": (joint_positions, EXACT),
    "out/suffix_hidden": (lambda g: g.suffix_hidden, FLOW),
    "out/v_t_joint": (lambda g: g.model.velocity(g.observation, g.x_t, g["in/time"]), FLOW),
    "out/v_t_cached": (cached_velocity, FLOW),
    "out/loss": (lambda g: g.loss, FLOW),
    "out/loss_mean": (lambda g: g.loss.mean(), FLOW),
}
VALID_ROWS_ONLY = re.compile(r"out/(prefix_hidden|kv_cache_.*)")
"""Masked rows are defined by a uniform attention in the reference, and nothing reads them."""


def assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    assert actual.shape == expected.shape
    if tolerance == EXACT:
        assert torch.equal(actual.long(), expected.long())
        return
    assert bool(torch.isfinite(actual).all())
    scale = max(1.0, float(expected.abs().max()) / 5)
    assert float((actual.double() - expected.double()).abs().max()) <= tolerance * scale


def test_weights_load(golden) -> None:
    """Strictly, so every parameter of the model came from the file."""
    names = {entry.ours for entry in key_table(golden.config)}
    assert names == set(dict(golden.model.named_parameters()))


def test_both_formats_give_the_same_tensors(golden) -> None:
    """To the bit, so that every recorded array holds for the JAX checkpoint of the set as well."""
    if not (golden.folder / "jax").is_dir():
        pytest.skip("this set has no JAX checkpoint")
    other = load_model(golden.folder / "jax", arch=golden.config).state_dict()
    for name, tensor in golden.model.state_dict().items():
        assert torch.equal(other[name], tensor), name
    assert other.keys() == golden.model.state_dict().keys()


@torch.no_grad()
def test_recorded(golden, name: str) -> None:
    if name == "grad_norms":
        check_gradients(golden)
    elif steps := re.fullmatch(r"out/actions_steps_(\d+)(_bf16)?", name):
        check_actions(golden, name, int(steps[1]), bfloat16=bool(steps[2]))
    elif camera := re.fullmatch(r"out/image_tokens/(.*)", name):
        assert_close(golden.model.vision_tower(golden.image(camera[1])), golden[name], PREFIX)
    elif name == "out/prefix_ar_mask":
        assert torch.equal(own_prefix_mask(golden), prefix_mask(golden))
    elif name in CHECKS:
        compute, tolerance = CHECKS[name]
        actual, expected = compute(golden), golden[name]
        if VALID_ROWS_ONLY.fullmatch(name):
            assert bool(torch.isfinite(actual).all())
            assert actual.shape == expected.shape
            actual, expected = actual[golden.prefix[1]], expected[golden.prefix[1]]
        assert_close(actual, expected, tolerance)
    else:
        pytest.fail(f"{golden.folder.name} recorded {name}, which nothing compares")


def check_actions(golden, name: str, num_steps: int, *, bfloat16: bool) -> None:
    model = cast_weights(copy.deepcopy(golden.model), torch.bfloat16) if bfloat16 else golden.model
    actions = model.sample_actions(golden.observation, num_steps=num_steps, noise=golden["in/noise"])
    assert actions.dtype == torch.float32
    assert_close(actions, golden[name], BFLOAT16 if bfloat16 else FLOW)
    exact = name.removesuffix("_bf16")
    if bfloat16 and exact in golden.arrays:
        assert_close(actions, golden[exact], BFLOAT16)


def check_gradients(golden) -> None:
    """Norms to 1e-3; no gradient at all counts as zero, and rounding alone (the vision keys' biases) as well."""
    recorded = json.loads((golden.folder / "grad_norms.json").read_text())
    expected: dict[str, float | None] = recorded["torch"]
    names = {entry.theirs: entry.ours for entry in key_table(golden.config)}
    prefix = "paligemma_with_expert.paligemma."
    names[prefix + "model.language_model.embed_tokens.weight"] = names[prefix + "lm_head.weight"]  # one tied table
    parameters = dict(golden.model.named_parameters())
    with torch.enable_grad():
        gradients = torch.autograd.grad(golden.loss.mean(), list(parameters.values()), allow_unused=True)
    norms = {name: 0.0 if g is None else float(g.norm()) for name, g in zip(parameters, gradients, strict=True)}
    if "loss_mean" in recorded:
        assert float(golden.loss.mean()) == pytest.approx(recorded["loss_mean"], abs=FLOW)
    wrong = {}
    for theirs, norm in expected.items():
        ours = norms[names[theirs]] if theirs in names else 0.0  # an unused head must have none
        if ours != pytest.approx(norm or 0.0, rel=1e-3, abs=1e-6):
            wrong[theirs] = (ours, norm)
    assert not wrong
    last = f"transformer.layers.{golden.config.prefix.depth - 1}.prefix."
    dead = [f"{last}{part}.weight" for part in ("query", "output", "mlp.gate", "mlp.up", "mlp.down")]
    dead += [f"{last}mlp_norm.scale", "transformer.prefix_norm.scale"]
    assert [norms[name] for name in dead] == [0.0] * len(dead)
