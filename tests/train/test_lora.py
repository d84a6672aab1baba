"""LoRA: the same model at the start, merged afterwards, saved alone, and only the adapters moved."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from openpi_adapters import with_openpi_adapters
from test_precision import observation_of
from torch import Tensor
from train_helpers import losses, nano_model, nano_preset

from pizero.checkpoints.convert import convert
from pizero.checkpoints.files.safetensors_file import SafetensorsWeights
from pizero.checkpoints.load import load_model, read_checkpoint
from pizero.checkpoints.native import adapters
from pizero.checkpoints.native.adapters import PlainState
from pizero.checkpoints.native.checkpoint import load_checkpoint, save_checkpoint, verify_example
from pizero.checkpoints.openpi import jax as openpi_jax
from pizero.configs.presets import Preset
from pizero.engine.fast_sampler import FastSampler
from pizero.model.pi0 import Pi0
from pizero.train.config import LoraConfig, PartsConfig, TrainConfig
from pizero.train.lora import LoraLinear, add_lora, is_adapter, load_adapters
from pizero.train.parts import choose_parts, part_of
from pizero.types import UserError
from pizero.workflows.start import Initialization
from pizero.workflows.train import train_policy

LORA = LoraConfig(prefix_rank=4, prefix_alpha=8.0, expert_rank=2, expert_alpha=2.0)


def velocity(model: Pi0) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    x_t = torch.randn(2, model.config.action_horizon, model.config.action_dim, generator=generator)
    return model.velocity(observation_of(model.config), x_t, torch.tensor([0.2, 0.9])).detach()


def stirred(model: Pi0) -> Pi0:
    """With factors that are not zero."""
    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        if is_adapter(name):
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return model


@pytest.mark.parametrize("pi05", [False, True])
def test_adapters_change_nothing_at_first_and_merge_exactly(pi05: bool) -> None:
    torch.manual_seed(0)
    model = Pi0(nano_model(pi05))
    for name, parameter in model.named_parameters():
        if "modulation.weight" in name:  # fresh ones close the gates
            torch.nn.init.normal_(parameter, std=0.2)
    before = velocity(model)
    add_lora(model, LORA)
    assert torch.equal(velocity(model), before)
    after = velocity(stirred(model))
    assert (after - before).abs().max() > 0.05
    merged = Pi0(model.config)
    merged.load_state_dict(dict(PlainState(model)))
    torch.testing.assert_close(velocity(merged), after, atol=2e-5, rtol=1e-4)


def test_shapes_ranks_and_scales_of_the_reference() -> None:
    """gemma_2b_lora and gemma_300m_lora: rank 16 and 32, alpha equal to the rank, a pair of factors for every head."""
    model = add_lora(Pi0(nano_model()), LoraConfig())
    prefix, expert = (model.get_submodule(f"transformer.layers.1.{name}") for name in ("prefix", "expert"))
    shapes = {name: tuple(p.shape) for name, p in prefix.named_parameters() if is_adapter(name)}
    assert shapes == {  # width 24, 4 heads of 8, 1 key head, MLP 32
        "query.lora_a": (4, 16, 24), "query.lora_b": (4, 8, 16), "key.lora_a": (1, 16, 24), "key.lora_b": (1, 8, 16),
        "value.lora_a": (1, 16, 24), "value.lora_b": (1, 8, 16), "output.lora_a": (1, 16, 32),
        "output.lora_b": (4, 24, 16), "mlp.gate.lora_a": (1, 16, 24), "mlp.gate.lora_b": (1, 32, 16),
        "mlp.up.lora_a": (1, 16, 24), "mlp.up.lora_b": (1, 32, 16), "mlp.down.lora_a": (1, 16, 32),
        "mlp.down.lora_b": (1, 24, 16),
    }  # fmt: skip
    assert {m.scale for m in model.modules() if isinstance(m, LoraLinear)} == {1.0}
    assert expert.get_parameter("query.lora_a").shape[1] == 32
    scaled = add_lora(Pi0(nano_model()), LORA)
    assert scaled.get_submodule("transformer.layers.0.prefix.mlp.up").scale == 2.0
    one = add_lora(Pi0(nano_model()), dataclasses.replace(LORA, expert_rank=0))
    assert not any(is_adapter(name) for name, _ in one.named_parameters() if ".expert." in name)


def test_what_the_reference_trains_beside_the_adapters() -> None:
    model = Pi0(nano_model(pi05=True))
    choose_parts(model, PartsConfig(lora=LORA))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    own = {name for name in trained if not is_adapter(name)}
    assert {part_of(name) for name in own} == {"vision", "heads"}
    names = [name for name, _ in model.named_parameters()]
    assert own == {name for name in names if part_of(name) in ("vision", "heads")}
    assert len(trained) - len(own) == 2 * 2 * 7 * 2  # layers, experts, matrices, factors
    model = Pi0(nano_model())
    choose_parts(model, PartsConfig(freeze=("vision", "heads"), lora=dataclasses.replace(LORA, prefix_rank=0)))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {part_of(name) for name in trained if not is_adapter(name)} == {"prefix", "embedding"}


def lora_preset(**changes: object) -> Preset:
    return nano_preset(parts=PartsConfig(lora=LORA), learning_rate=0.01, **changes)


@pytest.fixture(scope="module")
def base(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    preset = nano_preset(steps=2, save_every=2, validate_every=2)
    return train_policy(dataset, tmp_path_factory.mktemp("base"), preset).checkpoint


@pytest.mark.parametrize("precision", ["float32", "mixed"])
def test_a_lora_training(dataset: Path, base: Path, tmp_path: Path, precision: str) -> None:
    """Resumes to the same losses; its checkpoint is a plain one; base and adapters alone give that checkpoint too."""
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    result = train_policy(dataset, whole, lora_preset(precision=precision), initial=Initialization(base))
    shutil.copytree(whole, parted)
    shutil.rmtree(parted / "checkpoints" / "0000008")
    train_policy(dataset, parted, lora_preset(precision=precision), initial=Initialization(base), resume=True)
    assert losses(parted) == losses(whole)
    verify_example(load_checkpoint(result.checkpoint))
    trained, started = (load_model(path).state_dict() for path in (result.checkpoint, base))
    same = {name for name in trained if torch.equal(trained[name], started[name].bfloat16().float())}
    if precision == "float32":
        same = {name for name in trained if torch.equal(trained[name], started[name])}
    assert "token_embedding.weight" in same
    assert not any(name.endswith(("layers.0.prefix.query.weight", "expert.mlp.up.weight")) for name in same)

    folder = result.checkpoint / "adapters"
    adapter_bytes = (folder / adapters.WEIGHTS).stat().st_size
    assert adapter_bytes < 0.75 * (result.checkpoint / "model.safetensors").stat().st_size
    made = convert(base, tmp_path / "merged", "native", merge_lora=folder)
    assert any("adapters" in note for note in made.notes)
    merged = load_checkpoint(tmp_path / "merged")
    assert merged.pipeline is not None
    assert merged.pipeline.embodiment.name == "tabletop"
    tolerance = 1e-6 if precision == "float32" else 4e-3  # the run kept what was frozen in bfloat16
    for name, tensor in merged.model.state_dict().items():
        torch.testing.assert_close(tensor.float(), trained[name], atol=tolerance, rtol=tolerance)


def test_the_adapters_of_openpi_are_trained_further(dataset: Path, base: Path, tmp_path: Path) -> None:
    start = with_openpi_adapters(tmp_path / "openpi", base)
    initial = Initialization(start, base / "tokenizer.model")
    preset = nano_preset(steps=1, save_every=1, parts=PartsConfig(lora=LoraConfig()), precision="float32")
    still = dataclasses.replace(preset, train=dataclasses.replace(preset.train, learning_rate=1e-12, ema_decay=0.0))
    result = train_policy(dataset, tmp_path / "run", still, initial=initial)
    trained, merged = load_model(result.checkpoint).state_dict(), load_model(start).state_dict()
    for name, tensor in merged.items():
        torch.testing.assert_close(trained[name], tensor, atol=2e-5, rtol=1e-5)
    found = SafetensorsWeights(result.checkpoint / "adapters", adapters.WEIGHTS)
    for name, tensor in openpi_jax.read_unmerged(start)[1].items():
        torch.testing.assert_close(found[name], tensor, atol=1e-8, rtol=0)
    for lora, message in (
        (LoraConfig(prefix_alpha=8.0), "alphas must equal the ranks"),
        (LoraConfig(prefix_rank=8, prefix_alpha=8.0), "of other layers or ranks"),
    ):
        other = dataclasses.replace(preset.train, parts=PartsConfig(lora=lora))
        with pytest.raises(UserError, match=message):
            train_policy(dataset, tmp_path / "other", dataclasses.replace(preset, train=other), initial=initial)


def test_adapters_and_a_checkpoint_that_do_not_belong_together(dataset: Path, base: Path, tmp_path: Path) -> None:
    preset = lora_preset(steps=2, save_every=2)
    run = train_policy(dataset, tmp_path / "run", preset, initial=Initialization(base)).checkpoint
    other = load_model(base)
    with torch.no_grad():
        other.get_parameter("transformer.layers.1.expert.query.weight").mul_(1.05)
    save_checkpoint(tmp_path / "other", other)
    with pytest.raises(UserError, match=r"another checkpoint: its transformer.layers.1.expert.query.weight differs"):
        convert(tmp_path / "other", tmp_path / "no", "native", merge_lora=run / "adapters")
    assert not (tmp_path / "no").exists()
    with pytest.raises(UserError, match=r"holds no adapters.json, so no adapters"):
        convert(base, tmp_path / "no", "native", merge_lora=base)
    values = json.loads((run / "adapters" / "adapters.json").read_text())
    del values["scales"]["transformer.layers.0.prefix.mlp.up"]
    (run / "adapters" / "adapters.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="do not fit: 2 left over"):
        dict(adapters.merge_adapters(read_checkpoint(base), run / "adapters").tensors())


def test_adapters_of_other_ranks_change_nothing() -> None:
    """Each is refused whole, even where the first factors fit; those of the same ranks are then taken."""
    torch.manual_seed(0)
    given, model = stirred(add_lora(Pi0(nano_model()), LORA)), add_lora(Pi0(nano_model()), LORA)
    factors = {name: parameter.detach() for name, parameter in given.named_parameters() if is_adapter(name)}
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    last = sorted(factors)[-1]
    larger = add_lora(Pi0(nano_model()), LoraConfig(prefix_rank=LORA.prefix_rank, expert_rank=LORA.expert_rank + 1))
    for wrong in (
        {name: parameter.detach() for name, parameter in larger.named_parameters() if is_adapter(name)},
        {name: factor for name, factor in factors.items() if name != last},
        factors | {last: factors[last][..., :-1]},
    ):
        with pytest.raises(UserError, match="of other layers or ranks"):
            load_adapters(model, wrong)
        assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    load_adapters(model, factors)
    assert all(torch.equal(model.get_parameter(name), factor) for name, factor in factors.items())


def test_what_lora_cannot_do(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="LoRA adapts trained weights; give them with --checkpoint"):
        train_policy(dataset, tmp_path / "run", lora_preset())
    with pytest.raises(UserError, match="not for LoRA's factors"):
        TrainConfig(optimizer="muon", parts=PartsConfig(lora=LORA))
    with pytest.raises(UserError, match="LoRA ranks must be positive"):
        LoraConfig(prefix_rank=0, expert_rank=0)
    model = add_lora(Pi0(nano_model()), LORA)
    with pytest.raises(ValueError, match="merge the LoRA adapters first"):
        FastSampler(model)
    with pytest.raises(UserError, match="of other layers or ranks"):
        load_adapters(model, {name: torch.zeros(1) for name, _ in model.named_parameters() if is_adapter(name)})
