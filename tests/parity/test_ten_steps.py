"""Ten steps of the trainer from the golden weights, against a float64 computation that shares no code with it."""

from __future__ import annotations

import dataclasses
import math
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import reference_float64 as reference
import torch

from pizero.model.pi0 import Pi0
from pizero.train import trainer as training
from pizero.train.config import TrainConfig
from pizero.train.saving import RunOutput
from pizero.train.trainer import Trainer
from pizero.types import Observation

STEPS, WARMUP, PEAK, FINAL = 10, 3, 1e-3, 1e-4


def rate(step: int) -> float:
    """openpi's: linear from peak / (warmup + 1), then a cosine."""
    if step < WARMUP:
        return PEAK / (WARMUP + 1) + (PEAK - PEAK / (WARMUP + 1)) * step / WARMUP
    return FINAL + (PEAK - FINAL) * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP))) / 2


def smaller(golden: Any) -> tuple[Pi0, Observation]:
    """The golden weights, and 56 x 56 pixels of the golden images: 16 patches with the first 16 positions."""
    model = Pi0(dataclasses.replace(golden.config, image_size=56))
    weights = dict(golden.model.state_dict())
    weights["vision_tower.position_embedding"] = weights["vision_tower.position_embedding"][:16]
    model.load_state_dict(weights)
    seen, used = golden.observation, int(golden.observation.prompt_mask.sum(1).max())
    there = {name: torch.ones(len(seen.prompt_tokens), dtype=torch.bool) for name in golden.config.cameras}
    images = {name: image[:, 80:136, 80:136] for name, image in seen.images.items()}
    return model, Observation(images, there, seen.state, seen.prompt_tokens[:, :used], seen.prompt_mask[:, :used])


def test_ten_adamw_steps(golden: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses to 2e-5, weights and their average to 1e-3 of what they moved, tensor by tensor.

    AdamW makes a step of full size of any gradient, rounding included, so two kinds of weights are compared apart:
    those that the loss does not depend on (the last prefix layer behind its keys and values) stay as they are, and the
    keys' biases of the vision tower, which a softmax does not see, get a gradient of rounding alone.
    """
    model, seen = smaller(golden)
    actions, noise, time = golden["in/actions"], golden["in/noise"], golden["in/time"]
    monkeypatch.setattr(Trainer, "tensors_of", lambda self, batch, generator: (seen, actions))
    drawn = {"noise": noise[None], "time": time[None]}
    monkeypatch.setattr(training, "draw", lambda config, actions, generator, part: drawn)
    monkeypatch.setattr(Trainer, "_action_mask", lambda self, batch: None)
    config = TrainConfig(
        steps=STEPS, warmup_steps=WARMUP, learning_rate=PEAK, final_learning_rate=FINAL, weight_decay=0.1,
        clip_norm=0.5, ema_decay=0.9, batch_size=len(actions), precision="float32",
    )  # fmt: skip
    start = {name: tensor.detach().double().numpy().copy() for name, tensor in model.named_parameters()}
    loader: Any = SimpleNamespace(batch_size=len(actions))
    trainer = Trainer(model, config, loader, None, RunOutput(tmp_path, None))  # type: ignore[arg-type]
    exact = reference.AdamW(dict(start), config.weight_decay, config.clip_norm, config.ema_decay)
    for step in range(STEPS):
        weights = {name: torch.from_numpy(weight).requires_grad_() for name, weight in exact.weights.items()}
        expected = reference.loss(weights, model.config, seen, actions, noise, time)
        expected.backward()
        found = trainer.train_step(None)  # type: ignore[arg-type]
        assert float(found) == pytest.approx(float(expected.detach()), rel=2e-5), step
        exact.step({name: w.grad.numpy() for name, w in weights.items() if w.grad is not None}, rate(step))

    dead = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    last = f"transformer.layers.{model.config.prefix.depth - 1}.prefix."
    assert all(name.startswith((last, "transformer.prefix_norm.")) for name in dead)
    unseen = {name for name in start if name.startswith("vision_tower.blocks.") and name.endswith(".key.bias")}
    assert len(dead) == 7
    errors: dict[str, float] = {}
    for average in (False, True):
        with trainer.average.applied() if average else nullcontext():
            for name, parameter in model.named_parameters():
                ours, wanted = parameter.detach().double().numpy(), (exact.average if average else exact.weights)[name]
                if name in dead:
                    assert np.array_equal(ours, start[name])
                elif name not in unseen:
                    moved = np.linalg.norm(wanted - start[name])
                    errors[f"{name} {average}"] = float(np.linalg.norm(ours - wanted) / moved)
    assert {name: error for name, error in errors.items() if not error < 1e-3} == {}
    assert float(expected.detach()) < 0.9 * first_loss(golden, model, seen, start)


def first_loss(golden: Any, model: Pi0, seen: Observation, start: dict[str, np.ndarray]) -> float:
    weights = {name: torch.from_numpy(weight) for name, weight in start.items()}
    found = reference.loss(weights, model.config, seen, golden["in/actions"], golden["in/noise"], golden["in/time"])
    return float(found)
