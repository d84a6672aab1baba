"""What a training will need: counted memory beside real tensors and a measured peak."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from train_helpers import nano_fast, nano_fast_preset, nano_model

from pizero.checkpoints.models import make_model
from pizero.data.loader import Batch
from pizero.model.config import LanguageConfig, small_config
from pizero.train.config import GradientConfig, LoraConfig, PartsConfig, TrainConfig
from pizero.train.plan import Layout, StepPlan, plan_step
from pizero.train.saving import RunOutput
from pizero.train.trainer import Trainer
from pizero.types import Observation

ROOT = Path(__file__).parents[2]


def one_step(config: TrainConfig, folder: Path) -> Trainer:
    """Of the real trainer, on random inputs."""
    network = nano_model()
    size = network.image_size
    observation = Observation(
        {name: torch.rand(config.batch_size, size, size, 3) for name in network.cameras},
        {name: torch.ones(config.batch_size, dtype=torch.bool) for name in network.cameras},
        torch.randn(config.batch_size, network.state_dim),
        torch.randint(0, network.vocab_size, (config.batch_size, network.prompt_length)),
        torch.ones(config.batch_size, network.prompt_length, dtype=torch.bool),
    )
    actions = torch.randn(config.batch_size, network.action_horizon, network.action_dim)
    loader = cast(Any, SimpleNamespace(batch_size=config.batch_size))
    pipeline = cast(Any, SimpleNamespace(observation=lambda inputs, device: observation))
    trainer = Trainer(make_model(network), config, loader, None, RunOutput(folder, pipeline))
    prompts = {"prompt_tokens": observation.prompt_tokens.numpy(), "prompt_mask": observation.prompt_mask.numpy()}
    trainer.train_step(Batch(cast(Any, prompts), actions.numpy()))
    return trainer


def size(tensors: Any) -> int:
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "float32"},
        {"precision": "mixed", "ema_decay": 0.0},
        {"precision": "bfloat16"},
        {"precision": "mixed", "parts": PartsConfig(lora=LoraConfig()), "ema_decay": 0.0},
        {"precision": "mixed", "parts": PartsConfig(freeze=("vision", "prefix"))},
        {"precision": "float32", "parts": PartsConfig(embedding_steps="stateless")},
        {"precision": "float32", "optimizer": "muon"},
    ],
)
def test_the_state_is_counted_exactly(changes: dict[str, Any], tmp_path: Path) -> None:
    config = TrainConfig(batch_size=2, **changes)
    plan = plan_step(nano_model(), config, Layout())
    trainer = one_step(config, tmp_path)
    parameters = list(trainer.model.parameters())
    assert plan.weights == size(parameters)
    assert plan.gradients == size(parameter.grad for parameter in parameters)
    state = [value for optimizer in trainer.optimizers for kept in optimizer.state.values() for value in kept.values()]
    assert plan.optimizer == size(value for value in state if isinstance(value, torch.Tensor))
    assert plan.average == size(trainer.average.tensors().values())


def test_activations_follow_batch_and_parts() -> None:
    def planned(parts: int = 1, batch: int = 16) -> StepPlan:
        config = TrainConfig(batch_size=batch, gradient=GradientConfig(accumulate=parts))
        return plan_step(nano_model(), config, Layout())

    whole, quarter = planned(), planned(batch=4)
    assert 1.8 < whole.activations / planned(batch=8).activations < 2.2
    # the gradients of the parts before have no room that activations could use
    assert quarter.activations < planned(parts=4).activations <= quarter.activations + quarter.gradients


def test_recomputed_blocks_keep_their_inputs_alone() -> None:
    network, config = small_config("small"), TrainConfig(batch_size=8)
    whole, recomputed = (plan_step(network, config, Layout(recompute=recompute)) for recompute in (False, True))
    assert recomputed.activations < 0.4 * whole.activations
    assert recomputed.flops > 1.2 * whole.flops


def test_a_gpu_keeps_no_logits() -> None:
    """Its attention is planned for it, and nothing else changes."""
    config = TrainConfig(batch_size=8, precision="float32")
    host, gpu = (plan_step(nano_model(), config, Layout(), device) for device in ("cpu", "cuda"))
    assert gpu.activations < 0.95 * host.activations
    assert (gpu.weights, gpu.gradients, gpu.optimizer) == (host.weights, host.gradients, host.optimizer)
    assert plan_step(nano_model(), config, Layout(), "cpu") == host


def test_operations_do_not_depend_on_how_a_batch_is_divided() -> None:
    config = TrainConfig(batch_size=8)
    whole = plan_step(nano_model(), config, Layout()).flops
    assert plan_step(nano_model(), config, Layout(ranks=4)).flops * 4 == whole
    parts = TrainConfig(batch_size=8, gradient=GradientConfig(accumulate=4))
    assert plan_step(nano_model(), parts, Layout()).flops == whole


def test_shards_divide_the_state() -> None:
    config = TrainConfig(batch_size=8, precision="float32")
    alone, shared = (plan_step(nano_model(), config, layout) for layout in (Layout(4, 1), Layout(4, 4)))
    for kind in ("weights", "gradients", "optimizer", "average"):
        assert getattr(shared, kind) == getattr(alone, kind) // 4


@pytest.mark.parametrize(
    "case", ["", *(pytest.param(kind, marks=pytest.mark.slow) for kind in (", text and FAST", ", π0-FAST"))]
)
def test_a_measured_peak_is_planned_within_15_percent(case: str) -> None:
    size = "tiny" if case else "small"
    command = [sys.executable, str(ROOT / "benchmarks/training/memory.py"), f"{size}, batch 64, float32{case}"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    found = json.loads(result.stdout)
    assert 0.85 < found["planned"] / found["measured"] < 1.15, found


def test_text_and_fast_tokens_beside_the_actions_are_planned() -> None:
    """Under insulation they alone send gradients into the prefix; a robot of more dimensions has longer chunks."""
    network, config = nano_model(pi05=True), TrainConfig(batch_size=8)
    plans = list[StepPlan]()
    for language in (None, LanguageConfig(fast_weight=0), LanguageConfig()):
        plans.append(plan_step(dataclasses.replace(network, language=language), config, Layout()))
    assert plans[0].activations < plans[1].activations < plans[2].activations
    assert plans[1].weights == plans[0].weights
    alone = dataclasses.replace(network, language=LanguageConfig())
    assert plan_step(alone, config, Layout(), robot_actions=40).activations > plans[2].activations


def test_a_model_that_writes_tokens_is_planned() -> None:
    """State as of any model; its logits exist for a few hundred targets at a time."""
    preset = nano_fast_preset()
    plan = plan_step(nano_fast(prompt_length=64), preset.train, Layout())
    assert plan.weights == plan.gradients == plan.average > 0
    more = plan_step(nano_fast(prompt_length=128), preset.train, Layout())
    assert more.weights == plan.weights
    assert plan.activations < more.activations
    assert plan.flops < more.flops
