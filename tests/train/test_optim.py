"""Schedule, weight average and precision."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pizero.train.config import TrainConfig
from pizero.train.optim import WeightAverage, has_bfloat16, learning_rate, make_optimizer, product_context
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
    group = make_optimizer(model, TrainConfig()).param_groups[0]
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.9, 0.95), 1e-8, 1e-10)
    assert len(group["params"]) == 2


def test_weight_average() -> None:
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(0.0)
    average = WeightAverage(model, decay=0.9)
    for value in (1.0, 2.0):
        model.weight.data.fill_(value)
        average.update()
    expected = 0.9 * (0.1 * 1.0) + 0.1 * 2.0
    with average.applied():
        assert model.weight.item() == pytest.approx(expected)
    assert model.weight.item() == 2.0
    with pytest.raises(RuntimeError, match="inside"), average.applied():
        raise RuntimeError("inside")
    assert model.weight.item() == 2.0


def test_mixed_precision_keeps_the_weights_in_float32() -> None:
    layer, device = nn.Linear(4, 4), torch.device("cpu")
    with product_context("mixed", device):
        assert layer(torch.ones(1, 4)).dtype == torch.bfloat16
    with product_context("float32", device):
        assert layer(torch.ones(1, 4)).dtype == torch.float32
    with product_context("auto", device):
        assert (layer(torch.ones(1, 4)).dtype == torch.bfloat16) == has_bfloat16(device)
    assert layer.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be positive, got 0"),
        ({"ema_decay": 1.0}, "ema_decay must be in"),
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
