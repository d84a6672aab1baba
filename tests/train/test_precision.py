"""What is kept and computed in which precision, and the optimizers for little memory."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from train_helpers import losses, nano_baseline, nano_model, nano_preset

from pizero.baseline.policy import DiffusionPolicy
from pizero.checkpoints.native.checkpoint import load_checkpoint, verify_example
from pizero.model import attention
from pizero.model.config import Pi0Config
from pizero.model.layers import AdaptiveRMSNorm, Float32Linear, RMSNorm
from pizero.model.pi0 import Pi0
from pizero.train.config import PartsConfig, TrainConfig
from pizero.train.low_memory import RoundedAdamW, RowSteps, round_at_random
from pizero.train.optim import WeightAverage, make_optimizers, product_context
from pizero.train.parts import choose_parts, keep_in_precision
from pizero.train.saving import sampling
from pizero.types import Observation, UserError
from pizero.workflows.train import train_policy


def observation_of(config: Pi0Config, batch: int = 2) -> Observation:
    generator = torch.Generator().manual_seed(1)
    images = {n: torch.rand(batch, *config.image_shape, 3, generator=generator) * 2 - 1 for n in config.cameras}
    return Observation(
        images, {name: torch.ones(batch, dtype=torch.bool) for name in images},
        torch.randn(batch, config.state_dim, generator=generator) if config.has_state_token else None,
        torch.randint(0, config.vocab_size, (batch, 6), generator=generator), torch.ones(batch, 6, dtype=torch.bool),
    )  # fmt: skip


@pytest.mark.parametrize("pi05", [False, True])
def test_norms_softmax_heads_and_time_are_float32_in_mixed_precision(
    pi05: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Pi0(nano_model(pi05))
    seen: dict[str, set[torch.dtype]] = {"heads": set(), "norms": set(), "softmax": set(), "products": set()}
    for module in model.modules():
        if isinstance(module, Float32Linear):
            module.register_forward_hook(lambda m, inputs, output: seen["heads"].add(output.dtype))
        elif isinstance(module, RMSNorm | AdaptiveRMSNorm):
            module.register_forward_hook(lambda m, inputs, output: seen["norms"].add(output[0].dtype))
        elif isinstance(module, nn.LayerNorm):
            module.register_forward_hook(lambda m, inputs, output: seen["norms"].add(output.dtype))
        elif type(module) is nn.Linear:
            module.register_forward_hook(lambda m, inputs, output: seen["products"].add(output.dtype))
    original = Tensor.softmax

    def softmax(self: Tensor, *arguments: Any, **options: Any) -> Tensor:
        seen["softmax"].add(self.dtype)
        return original(self, *arguments, **options)

    monkeypatch.setattr(attention.Tensor, "softmax", softmax)
    actions = torch.zeros(2, model.config.action_horizon, model.config.action_dim)
    with product_context("mixed", torch.device("cpu")):
        loss = model.loss(observation_of(model.config), actions)
        suffix = model.embed_suffix(torch.zeros(2, 8) if not pi05 else None, actions, torch.full((2,), 0.3))
    assert seen == {
        "heads": {torch.float32}, "norms": {torch.float32}, "softmax": {torch.float32}, "products": {torch.bfloat16},
    }  # fmt: skip
    assert loss.dtype == torch.float32
    assert suffix[0].dtype == torch.float32


def test_frozen_weights_are_bfloat16_where_products_are() -> None:
    model = Pi0(nano_model())
    choose_parts(model, PartsConfig(freeze=("prefix",)))
    keep_in_precision(model, "auto", mixed=True)
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    assert dtypes["transformer.layers.0.prefix.query.weight"] == torch.bfloat16
    assert dtypes["token_embedding.weight"] == torch.bfloat16
    assert dtypes["transformer.layers.0.prefix.attention_norm.scale"] == torch.float32
    assert dtypes["transformer.layers.0.expert.query.weight"] == torch.float32
    model = Pi0(nano_model())
    choose_parts(model, PartsConfig(freeze=("prefix",)))
    keep_in_precision(model, "float32", mixed=False)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_rounding_at_random_is_right_in_the_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    exact = torch.full((200_000,), 1.0 + 2**-7 * 0.3)  # between 1 and its next neighbour
    rounded = round_at_random(exact, generator)
    assert set(rounded.tolist()) == {1.0, 1.0 + 2**-7}
    assert float(rounded.double().mean()) == pytest.approx(float(exact[0]), abs=5e-5)
    kept = torch.tensor([0.0, -0.5, 3.0, -(2.0**-130)])  # numbers of bfloat16 stay what they are
    assert torch.equal(round_at_random(kept, generator).float(), kept)


def quadratic_descent(weight: nn.Parameter, optimizer: torch.optim.Optimizer, steps: int) -> float:
    """Mean weight after steps towards 0 along the gradient of weight ** 2 / 2."""
    for _ in range(steps):
        weight.grad = weight.detach().clone()
        optimizer.step()
    return float(weight.detach().float().mean())


def test_steps_below_the_last_bit_add_up() -> None:
    """100 steps of 1e-4 from 1: AdamW in bfloat16 never moves, the rounded one goes where float32 goes."""
    exact, plain, rounded = (
        nn.Parameter(torch.ones(4096, dtype=dtype)) for dtype in (torch.float32, torch.bfloat16, torch.bfloat16)
    )
    options: dict[str, Any] = {"lr": 1e-4, "betas": (0.9, 0.95), "weight_decay": 0.0}
    expected = quadratic_descent(exact, torch.optim.AdamW([exact], **options), 100)
    assert expected == pytest.approx(0.99, abs=1e-3)
    assert quadratic_descent(plain, torch.optim.AdamW([plain], **options), 100) == 1.0
    assert quadratic_descent(rounded, RoundedAdamW([rounded], 1e-4, 0.0), 100) == pytest.approx(expected, abs=3e-4)


def test_rounded_adamw_is_adamw_and_resumes_to_the_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    start, gradients = torch.randn(40, 30, generator=generator).bfloat16(), torch.randn(6, 40, 30, generator=generator)
    exact = nn.Parameter(start.float())
    ours, parted = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    reference = torch.optim.AdamW([exact], lr=0.05, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    optimizer, first = RoundedAdamW([ours], 0.05, 0.1, seed=3), RoundedAdamW([parted], 0.05, 0.1, seed=3)
    for step, gradient in enumerate(gradients):
        if step == 3:
            second = RoundedAdamW([parted], 0.05, 0.1, seed=9)
            second.load_state_dict(first.state_dict())
            first = second
        for weight, one in ((exact, reference), (ours, optimizer), (parted, first)):
            weight.grad = gradient.to(weight.dtype)
            one.step()
    torch.testing.assert_close(ours.float(), exact, atol=0.03, rtol=0.01)
    assert torch.equal(ours, parted)
    assert {tensor.dtype for tensor in optimizer.state[ours].values()} == {torch.bfloat16}


def test_rows_without_a_gradient_stay_and_nothing_is_kept() -> None:
    table = nn.Parameter(torch.zeros(5, 8))
    optimizer = RowSteps([table], lr=0.1)
    table.grad = torch.zeros(5, 8)
    table.grad[2], table.grad[4, 0] = 3e-6, -7.0
    optimizer.step()
    moved = table.detach().square().mean(dim=1).sqrt()
    assert moved.tolist() == pytest.approx([0.0, 0.0, 0.1, 0.0, 0.1])
    assert table[4, 0] > 0
    assert not optimizer.state


def test_every_weight_has_one_optimizer() -> None:
    for precision in ("float32", "bfloat16"):
        model = Pi0(nano_model())
        keep_in_precision(model, precision, mixed=False)
        config = TrainConfig(precision=precision, parts=PartsConfig(embedding_steps="stateless"))
        found = make_optimizers(model, config)
        ids = [id(parameter) for one in found for group in one.param_groups for parameter in group["params"]]
        assert sorted(ids) == sorted(map(id, model.parameters()))
        kinds = {type(one).__name__ for one in found}
        assert kinds == {"AdamW", "RowSteps"} | ({"RoundedAdamW"} if precision == "bfloat16" else set())


def test_the_average_of_bfloat16_weights_moves() -> None:
    model = nn.Linear(1, 1, bias=False).bfloat16()
    model.weight.data.fill_(1.0)
    average = WeightAverage(model, decay=0.999)
    model.weight.data.fill_(1.0 + 2**-7)
    for step in range(1000):
        average.update(step)
    with average.applied():
        assert model.weight.item() == pytest.approx(1 + 2**-7 * (1 - 0.999**1000), abs=1e-5)
    assert model.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_a_bfloat16_training_resumes_to_the_same_losses(dataset: Path, tmp_path: Path, ema_decay: float) -> None:
    changes: dict[str, Any] = {"precision": "bfloat16", "ema_decay": ema_decay}
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    result = train_policy(dataset, whole, nano_preset(**changes))
    train_policy(dataset, parted, nano_preset(**changes))
    checkpoint = load_checkpoint(result.checkpoint)
    verify_example(checkpoint)
    dtype = checkpoint.model.state_dict()["transformer.layers.0.expert.query.weight"].dtype
    assert dtype == (torch.float32 if ema_decay else torch.bfloat16)
    shutil.rmtree(parted / "checkpoints" / "0000008")
    train_policy(dataset, parted, nano_preset(**changes), resume=True)
    assert losses(parted) == losses(whole)


def test_bfloat16_is_for_pi0() -> None:
    with pytest.raises(UserError, match="precision bfloat16 is for a π0, not for a DiffusionPolicy"):
        keep_in_precision(DiffusionPolicy(nano_baseline()), "bfloat16", mixed=True)
    with pytest.raises(UserError, match="muon needs float32 weights"):
        TrainConfig(optimizer="muon", precision="bfloat16")


def test_a_host_copy_with_frozen_bfloat16_weights_is_sampled_where_it_is() -> None:
    """With shards that is what is measured and saved, whatever device the training is on."""
    model = Pi0(nano_model())
    choose_parts(model, PartsConfig(freeze=("vision", "expert")))
    keep_in_precision(model, "mixed", mixed=True)
    observation = observation_of(model.config)
    with pytest.raises(RuntimeError, match=r"scalar type|dtype"):
        model.sample_actions(observation, num_steps=2)
    with sampling(model):
        assert bool(model.sample_actions(observation, num_steps=2).isfinite().all())
    with sampling(Pi0(nano_model()).to("meta")):  # one kind of weights, on a device without autocast
        assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize(
    ("part", "frozen", "trained"), [("prefix", "prefix", "expert"), ("expert", "expert", "prefix")]
)
def test_a_frozen_expert_leaves_the_others_residuals_in_float32(
    part: Any, frozen: str, trained: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Pi0(nano_model())
    choose_parts(model, PartsConfig(freeze=(part,)))
    keep_in_precision(model, "mixed", mixed=True)
    seen: dict[str, set[torch.dtype]] = {"prefix": set(), "expert": set()}
    for layer in model.transformer.layers:
        for name in seen:
            layer.get_submodule(f"{name}.attention_norm").register_forward_pre_hook(
                lambda _, inputs, name=name: seen[name].add(inputs[0].dtype)
            )
    actions = torch.zeros(2, model.config.action_horizon, model.config.action_dim)
    with product_context("mixed", torch.device("cpu")):
        loss = model.loss(observation_of(model.config), actions)
    assert seen == {frozen: {torch.bfloat16}, trained: {torch.float32}}
    assert bool(loss.isfinite().all())
