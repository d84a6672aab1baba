"""Parts of a batch, padded dimensions, frozen parts, and losses or gradients that are not finite."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from train_helpers import losses, nano_baseline, nano_model, nano_preset

from pizero.baseline.policy import DiffusionPolicy
from pizero.checkpoints.native.checkpoint import load_checkpoint, verify_example
from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.loader import Batch, Loader, Place
from pizero.model.pi0 import Pi0
from pizero.train.config import GradientConfig, LoraConfig, Part, PartsConfig
from pizero.train.failure import places_text
from pizero.train.metrics import read_metrics
from pizero.train.parts import choose_parts, part_of
from pizero.train.run_folder import list_checkpoints
from pizero.train.trainer import Trainer
from pizero.types import UserError
from pizero.workflows.measures import MeasureConfig
from pizero.workflows.train import train_policy


def test_a_batch_in_parts_gives_the_same_losses(dataset: Path, tmp_path: Path) -> None:
    train_policy(dataset, tmp_path / "whole", nano_preset(steps=4, precision="float32"))
    parts = nano_preset(steps=4, precision="float32", gradient=GradientConfig(accumulate=4))
    train_policy(dataset, tmp_path / "parts", parts)
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)
    with pytest.raises(UserError, match="a batch of 8 cannot be divided into 3 equal parts"):
        train_policy(dataset, tmp_path / "no", nano_preset(gradient=GradientConfig(accumulate=3)))


def test_padded_dimensions_count_or_not() -> None:
    model = Pi0(nano_model(action_dim=8))
    from test_precision import observation_of

    observation, generator = observation_of(model.config), torch.Generator().manual_seed(0)
    actions = torch.randn(2, 6, 8, generator=generator)
    noise, time = torch.randn(3, 2, 6, 8, generator=generator), torch.rand(3, 2, generator=generator)
    mask = torch.tensor([[True] * 5 + [False] * 3, [True] * 8])

    def loss(mask: torch.Tensor | None) -> torch.Tensor:
        return model.loss(observation, actions, noise=noise, time=time, draws=3, action_mask=mask)

    x_t = time[..., None, None] * noise + (1 - time[..., None, None]) * actions
    velocity = model.velocity(observation, x_t.flatten(0, 1), time.flatten()).view_as(noise)
    error = (velocity - (noise - actions)).square()
    torch.testing.assert_close(loss(mask)[0], error[:, 0, :, :5].mean(dim=(0, 2)))
    torch.testing.assert_close(loss(mask)[1], loss(None)[1])


def test_the_trainer_leaves_padded_dimensions_out(dataset: Path, tmp_path: Path) -> None:
    """The head of a dimension that the robot does not have gets no gradient, and keeps its weights."""
    preset = dataclasses.replace(nano_preset(steps=2, save_every=2, validate_every=2), model=nano_model(action_dim=7))
    once = dataclasses.replace(preset.train, gradient=GradientConfig(padded_actions=False), ema_decay=0.0)
    result = train_policy(dataset, tmp_path / "run", dataclasses.replace(preset, train=once))
    torch.manual_seed(preset.train.seed)
    fresh, trained = Pi0(preset.model), load_checkpoint(result.checkpoint).model
    assert isinstance(trained, Pi0)
    torch.testing.assert_close(trained.action_out_proj.weight[5:], fresh.action_out_proj.weight[5:], rtol=0, atol=1e-9)
    assert (trained.action_out_proj.weight[:5] - fresh.action_out_proj.weight[:5]).abs().max() > 1e-5


def spoiled(kind: str, at: int) -> Any:
    """A Trainer._backward that makes something of step `at` infinite: one sample's loss, or one gradient."""
    original = Trainer._backward

    def backward(self: Trainer, *arguments: Any) -> torch.Tensor:
        found = original(self, *arguments)
        if self.step == at and kind == "loss":
            found[2, 0] = torch.inf
        if self.step == at and kind == "gradient":
            self.model.get_parameter("transformer.layers.1.expert.key.weight").grad[0, 0] = torch.nan  # type: ignore[index]
        return found

    return backward


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_what_is_not_finite_stops_and_is_named(
    dataset: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []
    original = Loader.read

    def read(self: Loader, samples: Any) -> Batch:
        seen.append(samples.tolist())
        return original(self, samples)

    monkeypatch.setattr(Loader, "read", read)
    monkeypatch.setattr(Trainer, "_backward", spoiled(kind, at=5))
    run = tmp_path / "run"
    with pytest.raises(UserError) as error:
        train_policy(dataset, run, nano_preset(validation_fraction=0.0))
    data, batch = LeRobotDataset(dataset), seen[5]
    rows = batch[2:3] if kind == "loss" else batch
    expected = [Place(dataset, int(data.episode_index[i]), int(data.frame_index[i])) for i in rows]
    assert places_text(expected) in str(error.value)
    name = "the gradient of transformer.layers.1.expert.key.weight is not finite"
    assert (name in str(error.value)) == (kind == "gradient")
    assert "at step 5" in str(error.value)
    assert "\n" not in str(error.value)
    line = read_metrics(run / "metrics.jsonl")[-1]
    assert sorted(line["samples"]) == sorted([str(p.dataset), p.episode, p.frame] for p in expected)
    assert [path.name for path in list_checkpoints(run)] == ["0000004"]
    monkeypatch.undo()
    train_policy(dataset, run, nano_preset(validation_fraction=0.0), resume=True)
    train_policy(dataset, tmp_path / "whole", nano_preset(validation_fraction=0.0))
    assert losses(run) == losses(tmp_path / "whole")


def test_steps_are_skipped_and_counted(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preset = nano_preset(gradient=GradientConfig(non_finite="skip"), log_every=2)
    monkeypatch.setattr(Trainer, "_backward", spoiled("gradient", at=1))
    train_policy(dataset, tmp_path / "run", preset)
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line["skipped_steps"] for line in lines if "loss" in line] == [1, 1, 1, 1]
    shutil.rmtree(list_checkpoints(tmp_path / "run")[-1])
    train_policy(dataset, tmp_path / "run", preset, resume=True)
    assert read_metrics(tmp_path / "run" / "metrics.jsonl") != lines  # other speeds
    assert losses(tmp_path / "run") == {line["step"]: line["loss"] for line in lines if "loss" in line}
    every = dataclasses.replace(preset, train=dataclasses.replace(preset.train, log_every=1))
    with pytest.raises(UserError, match="every step up to 2 was skipped, 1 in all"):
        train_policy(dataset, tmp_path / "other", every)


def test_places_are_short_and_tell_datasets_apart() -> None:
    one, other = Path("a"), Path("b")
    assert places_text([Place(one, 3, 9), Place(one, 4, 0), Place(one, 3, 5)]) == (
        "episode 3: frames 5, 9; episode 4: frame 0"
    )
    assert places_text([Place(other, 0, 1), Place(one, 0, 1)]) == "a, episode 0: frame 1; b, episode 0: frame 1"
    assert places_text([Place(one, 0, i) for i in range(30)]).endswith("22, 23 and 6 more")


PARTS: list[tuple[Part, str, str]] = [
    ("vision", "vision_tower.", "transformer."),
    ("prefix", "transformer.layers.0.prefix.", "transformer.layers.0.expert."),
    ("expert", "transformer.layers.0.expert.", "transformer.layers.0.prefix."),
    ("embedding", "token_embedding.", "transformer."),
    ("heads", "action_out_proj.", "transformer."),
]


@pytest.mark.parametrize(("part", "frozen", "trained"), PARTS, ids=[part for part, _, _ in PARTS])
def test_a_frozen_part_keeps_its_weights(part: Part, frozen: str, trained: str) -> None:
    model = Pi0(nano_model())
    choose_parts(model, PartsConfig(freeze=(part,)))
    grads = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert not any(grads[name] for name in grads if name.startswith(frozen))
    assert all(grads[name] for name in grads if name.startswith(trained))


def test_every_weight_belongs_to_a_part() -> None:
    names = [name for name, _ in Pi0(nano_model(pi05=True)).named_parameters()]
    by_part = {part: [name for name in names if part_of(name) == part] for part, _, _ in PARTS}
    assert sum(map(len, by_part.values())) == len(names)
    assert {name.split(".")[0] for name in by_part["heads"]} == {
        "action_in_proj", "action_out_proj", "time_mlp_in", "time_mlp_out",
    }  # fmt: skip
    assert "transformer.expert_norm.modulation.weight" in by_part["expert"]
    assert "transformer.prefix_norm.scale" in by_part["prefix"]


def test_frozen_weights_stay_to_the_bit(dataset: Path, tmp_path: Path) -> None:
    preset = nano_preset(steps=3, parts=PartsConfig(freeze=("vision", "prefix")), precision="float32")
    trained = load_checkpoint(train_policy(dataset, tmp_path / "run", preset).checkpoint).model.state_dict()
    torch.manual_seed(preset.train.seed)
    fresh = Pi0(nano_model()).state_dict()
    same = {name for name in fresh if torch.equal(fresh[name], trained[name])}
    frozen = {name for name in fresh if part_of(name) in ("vision", "prefix", "embedding")}
    assert frozen <= same
    assert "transformer.layers.0.expert.mlp.up.weight" not in same


@pytest.mark.parametrize("part", ["vision", "prefix", "expert"])
def test_a_run_with_frozen_bfloat16_weights_leaves_float32_ones(dataset: Path, tmp_path: Path, part: Part) -> None:
    """Two dtypes train, sample and resume; the checkpoint has one, and its example holds in float32."""
    preset = nano_preset(steps=2, save_every=1, precision="mixed", parts=PartsConfig(freeze=(part,)))
    measure = MeasureConfig(open_loop_chunks=2)
    result = train_policy(dataset, tmp_path / "run", preset, measure=measure)
    found = load_checkpoint(result.checkpoint)
    assert {parameter.dtype for parameter in found.model.parameters()} == {torch.float32}
    assert found.example is not None
    assert found.example.low_precision
    assert 1e-5 < verify_example(found) < 0.1
    before = losses(tmp_path / "run")
    shutil.rmtree(result.checkpoint)
    train_policy(dataset, tmp_path / "run", preset, resume=True, measure=measure)
    assert losses(tmp_path / "run") == before


def test_choices_that_leave_nothing_or_fit_no_model() -> None:
    everything = PartsConfig(freeze=("vision", "prefix", "expert", "heads"))
    with pytest.raises(UserError, match="every part is frozen"):
        choose_parts(Pi0(nano_model()), everything)
    with pytest.raises(UserError, match="in a π0, not in a DiffusionPolicy"):
        choose_parts(DiffusionPolicy(nano_baseline()), PartsConfig(freeze=("vision",)))
    with pytest.raises(UserError, match="embedding table is frozen"):
        choose_parts(Pi0(nano_model()), PartsConfig(lora=LoraConfig(), embedding_steps="stateless"))
    with pytest.raises(UserError, match="freeze is 'wheels'; expected one of vision"):
        PartsConfig(freeze=("wheels",))  # type: ignore[arg-type]


def test_action_dims_of_a_batch(dataset: Path, tmp_path: Path) -> None:
    seen: list[Batch] = []
    original = Trainer.train_step

    def step(self: Trainer, batch: Batch) -> torch.Tensor:
        seen.append(batch)
        return original(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", step)
        train_policy(dataset, tmp_path / "run", nano_preset(steps=1))
    np.testing.assert_array_equal(seen[0].action_dims, np.full(8, 5))
