"""Schedule, weight average and precision."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from pizero.baseline.config import small_baseline
from pizero.baseline.policy import DiffusionPolicy
from pizero.model.config import small_config
from pizero.model.pi0 import Pi0
from pizero.train.config import GradientConfig, LoraConfig, PartsConfig, SelectionConfig, TrainConfig
from pizero.train.muon import Muon, orthogonalize
from pizero.train.optim import WeightAverage, has_bfloat16, learning_rate, make_optimizers, product_context
from pizero.types import UserError


def test_schedule_of_the_reference() -> None:
    config = TrainConfig()  # openpi's defaults: 2.5e-5 after 1,000 steps, 2.5e-6 at 30,000
    assert learning_rate(config, 0) == pytest.approx(2.5e-5 / 1001)
    assert learning_rate(config, 1_000) == pytest.approx(2.5e-5)
    assert learning_rate(config, 15_500) == pytest.approx((2.5e-5 + 2.5e-6) / 2)
    assert learning_rate(config, 30_000) == pytest.approx(2.5e-6)
    assert learning_rate(config, 40_000) == pytest.approx(2.5e-6)
    rates = [learning_rate(config, step) for step in range(30_001)]
    assert rates[:1_001] == sorted(rates[:1_001])
    assert rates[1_000:] == sorted(rates[1_000:], reverse=True)


def test_optimizer_has_the_reference_constants_and_leaves_frozen_weights_out() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    group = make_optimizers(model, TrainConfig())[0].param_groups[0]
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.9, 0.95), 1e-8, 1e-10)
    assert len(group["params"]) == 2


def test_muon_takes_the_matrices_inside_the_transformers() -> None:
    model = Pi0(small_config("nano", pi05=True))
    adamw, muon = make_optimizers(model, TrainConfig(optimizer="muon"))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    matrices = {names[id(parameter)] for parameter in muon.param_groups[0]["params"]}
    others = {names[id(parameter)] for parameter in adamw.param_groups[0]["params"]}
    assert matrices | others == set(names.values())
    assert not matrices & others
    assert {"transformer.layers.0.prefix.query.weight", "vision_tower.blocks.0.mlp_in.weight"} <= matrices
    assert {"token_embedding.weight", "action_out_proj.weight", "vision_tower.patch_embedding.weight"} <= others
    assert {"transformer.layers.0.expert.mlp_norm.modulation.weight", "vision_tower.blocks.0.query.bias"} <= others


def test_orthogonalize_keeps_the_singular_vectors() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((3, 8, 8), (2, 4, 12), (2, 12, 4)):
        matrices = torch.randn(shape, generator=generator)
        result = orthogonalize(matrices)
        values = torch.linalg.svdvals(result)
        assert 0.6 < values.min() <= values.max() < 1.3
        left, _, right = torch.linalg.svd(matrices, full_matrices=False)
        inner = left.mT @ result @ right.mT  # diagonal, if the singular vectors are the same
        torch.testing.assert_close(inner, torch.diag_embed(inner.diagonal(dim1=1, dim2=2)), atol=1e-4, rtol=0)


def test_muon_agrees_with_the_step_of_torch() -> None:
    one, other = (nn.Parameter(torch.eye(6, 4)) for _ in range(2))
    ours = Muon([one], lr=0.1)
    theirs = torch.optim.Muon([other], lr=0.1, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        gradient = torch.randn(6, 4, generator=generator)
        one.grad, other.grad = gradient.clone(), gradient.clone()
        ours.step()
        theirs.step()
    torch.testing.assert_close(one, other, atol=2e-2, rtol=0)  # theirs iterates in bfloat16
    assert (one - torch.eye(6, 4)).abs().max() > 0.05


def test_weight_average() -> None:
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(0.0)
    average = WeightAverage(model, decay=0.9)
    for value in (1.0, 2.0):
        model.weight.data.fill_(value)
        average.update(step=7)
    expected = 0.9 * (0.1 * 1.0) + 0.1 * 2.0
    with average.applied():
        assert model.weight.item() == pytest.approx(expected)
    assert model.weight.item() == 2.0
    with pytest.raises(RuntimeError, match="inside"), average.applied():
        raise RuntimeError("inside")
    assert model.weight.item() == 2.0


def test_the_decay_rises_with_a_power() -> None:
    """The reference's values: 0 at first, 0.999 after about 10,000 steps, never above the limit."""
    average = WeightAverage(nn.Linear(1, 1), decay=0.9995, power=0.75)
    assert average.decay(0) == 0.0
    assert average.decay(1) == pytest.approx(1 - 2**-0.75)
    assert average.decay(15) == pytest.approx(0.875)
    assert average.decay(9_999) == pytest.approx(0.999)
    assert average.decay(1_000_000) == 0.9995
    assert WeightAverage(nn.Linear(1, 1), decay=0.9).decay(0) == 0.9


def test_the_first_weights_leave_an_average_with_a_power() -> None:
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(100.0)
    average = WeightAverage(model, decay=0.99, power=0.75)
    for step, value in enumerate((1.0, 2.0)):
        model.weight.data.fill_(value)
        average.update(step)
    decay = 1 - 2**-0.75
    with average.applied():
        assert model.weight.item() == pytest.approx(decay * 1.0 + (1 - decay) * 2.0)


def test_muon_needs_transformers() -> None:
    model = DiffusionPolicy(small_baseline("nano"))
    with pytest.raises(UserError, match="DiffusionPolicy has none to train; use adamw") as error:
        make_optimizers(model, TrainConfig(optimizer="muon"))
    assert "\n" not in str(error.value)
    assert len(make_optimizers(model, TrainConfig())) == 1


def test_mixed_precision_keeps_the_weights_in_float32() -> None:
    layer, device = nn.Linear(4, 4), torch.device("cpu")
    with product_context("mixed", device):
        assert layer(torch.ones(1, 4)).dtype == torch.bfloat16
    with product_context("float32", device):
        assert layer(torch.ones(1, 4)).dtype == torch.float32
    with product_context("auto", device):
        assert (layer(torch.ones(1, 4)).dtype == torch.bfloat16) == has_bfloat16(device)
    assert layer.weight.dtype == torch.float32


def test_automatic_precision_where_onednn_has_no_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the processor's flags say: PyTorch's own products in bfloat16 are slower than float32."""
    monkeypatch.setattr("pizero.train.optim.has_onednn", lambda dtype: dtype != torch.bfloat16)
    monkeypatch.setattr(Path, "read_text", lambda path: "flags : avx512f avx512_bf16 amx_bf16")
    assert not has_bfloat16(torch.device("cpu"))
    monkeypatch.setattr("pizero.train.optim.has_onednn", lambda dtype: True)
    assert has_bfloat16(torch.device("cpu")) == Path("/proc/cpuinfo").is_file()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be positive, got 0"),
        ({"ema_decay": 1.0}, "ema_decay must be in"),
        ({"ema_power": -0.5}, "ema_power must be at least 0, got -0.5"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"threads": -1}, "threads must be at least 0, got -1"),
        ({"validation_fraction": 1.5}, "validation_fraction must be in"),
        ({"precision": "fp8"}, "precision is 'fp8'"),
    ],
)
def test_wrong_settings(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrainConfig(**changes)  # type: ignore[arg-type]


def test_config_round_trip_and_unknown_keys() -> None:
    config = TrainConfig(steps=7, draws=3)
    assert TrainConfig.from_json(config.to_json()) == config
    with pytest.raises(UserError, match="unknown keys in the training config: stpes"):
        TrainConfig.from_json({"stpes": 1})


def test_nested_settings_are_readable_json() -> None:
    config = TrainConfig(
        gradient=GradientConfig(accumulate=4), selection=SelectionConfig("success_rate", True, 3),
        parts=PartsConfig(("vision", "heads"), LoraConfig(expert_rank=0)),
    )  # fmt: skip
    text = json.dumps(config.to_json())
    assert TrainConfig.from_json(json.loads(text)) == config
    values = json.loads(text)
    values["parts"]["lora"]["rank"] = 3
    with pytest.raises(UserError, match=r"unknown keys in parts\.lora: rank"):
        TrainConfig.from_json(values)


def test_the_settings_of_older_runs_are_read() -> None:
    """As they were written before there were parts: flat, and without what came later."""
    old = {
        "steps": 1600, "batch_size": 32, "learning_rate": 0.003, "final_learning_rate": 2e-05, "warmup_steps": 50,
        "weight_decay": 1e-10, "clip_norm": 1.0, "ema_decay": 0.99, "ema_power": 0.0, "optimizer": "muon", "draws": 4,
        "augmentation": "none", "early_frames": 1.5, "precision": "auto", "validation_fraction": 0.02, "log_every": 20,
        "validate_every": 800, "save_every": 800, "keep": 2, "seed": 0, "threads": 0,
    }  # fmt: skip
    config = TrainConfig.from_json(old)
    assert (config.steps, config.parts, config.gradient) == (1600, PartsConfig(), GradientConfig())
