"""What int8 costs, as a whole and layer by layer."""

from __future__ import annotations

import pytest
import torch
from model_helpers import make_observation, random_model

from pizero.engine.quantize import sensitivity


@pytest.mark.int8
def test_each_layer_alone_and_all_together() -> None:
    model = random_model()
    shape = (2, model.config.action_horizon, model.config.action_dim)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    done: list[str] = []
    found = sensitivity(model, make_observation(model.config), noise, 3, on_layer=done.append)
    depth, vision = model.config.prefix.depth, model.config.vision.depth
    assert len(found.layers) == vision + 2 * depth
    assert done == list(found.layers)
    assert done[:vision] == [f"vision.{index}" for index in range(vision)]
    assert 1e-4 < found.whole.actions < 0.05
    assert 1e-4 < found.whole.velocity < 0.05
    alone = torch.tensor([[errors.velocity, errors.actions] for errors in found.layers.values()])
    assert (alone[:-2] > 0).all()
    # errors of unrelated layers add up like the sides of a right angle
    assert 0.3 < float(alone[:, 1].square().sum().sqrt()) / found.whole.actions < 3
    worst = found.worst(2)
    assert found.layers[worst[0]].actions >= found.layers[worst[1]].actions == sorted(alone[:, 1].tolist())[-2]
    assert torch.equal(
        model.transformer.layers[0].prefix.query.weight, random_model().transformer.layers[0].prefix.query.weight
    )
