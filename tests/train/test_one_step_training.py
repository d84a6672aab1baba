"""`pizero train --one-step`: what it trains, what its checkpoint says, and what it refuses."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from train_helpers import losses, nano_baseline, nano_fast_preset, nano_model, nano_preset

from pizero import load_model, load_policy
from pizero.checkpoints.convert import convert
from pizero.checkpoints.load import read_checkpoint
from pizero.checkpoints.native.checkpoint import load_checkpoint, verify_example
from pizero.configs.finetune import with_lora
from pizero.configs.language import with_language
from pizero.configs.one_step import with_one_step
from pizero.configs.preset import Preset
from pizero.model.config import Pi0Config
from pizero.model.pi0 import Pi0
from pizero.policy.policy import ModelPolicy
from pizero.train.config import PartsConfig
from pizero.train.plan import Layout, plan_step
from pizero.types import UserError
from pizero.workflows.plan import Resources, plan_training
from pizero.workflows.start import Initialization
from pizero.workflows.train import train_policy

FROZEN = ("vision_tower.", "token_embedding.", "transformer.prefix_norm.")


def short(pi05: bool = False, **changes: object) -> Preset:
    preset = nano_preset(steps=4, validate_every=4, save_every=2, precision="float32", **changes)
    return dataclasses.replace(preset, model=nano_model(pi05=pi05))


def of_its_kind(folder: Path) -> Preset:
    config = read_checkpoint(folder).config
    assert isinstance(config, Pi0Config)
    return short(config.adaptive)


@pytest.fixture(scope="module", params=[False, True], ids=["pi0", "pi05"])
def trained(request: pytest.FixtureRequest, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A trained policy, and the one-step policy that is distilled from it."""
    folder, preset = tmp_path_factory.mktemp("one_step"), short(request.param, max_delay=2)
    base = train_policy(dataset, folder / "base", preset).checkpoint
    preset = with_one_step(short(request.param))
    return [base, train_policy(dataset, folder / "one", preset, initial=Initialization(base)).checkpoint]


def test_the_expert_alone_is_trained(trained: list[Path]) -> None:
    before, after = (load_file(folder / "model.safetensors") for folder in trained)
    assert {name.partition(".")[0] for name in after.keys() - before.keys()} == {"target_time"}
    same = {name for name, value in before.items() if torch.equal(value, after[name])}
    assert same >= {name for name in before if name.startswith(FROZEN) or ".prefix." in name}
    assert not same & {name for name in before if name.endswith("weight") and ".expert." in name}
    assert after["target_time.mlp_out.weight"].any()


def test_the_checkpoint_says_so(trained: list[Path]) -> None:
    base, one = (load_policy(folder) for folder in trained)
    assert isinstance(base, ModelPolicy)
    assert isinstance(one, ModelPolicy)
    assert (base.num_steps, one.num_steps) == (10, 1)
    assert load_policy(trained[1], num_steps=4).num_steps == 4
    assert isinstance(one.model.config, Pi0Config)
    assert one.model.config.max_delay == 2  # the base's
    assert verify_example(load_checkpoint(trained[1])) < 1e-4


def test_a_file_without_the_input_is_refused(trained: list[Path], tmp_path: Path) -> None:
    tensors = load_file(trained[1] / "model.safetensors")
    for file in trained[1].iterdir():
        if file.is_file() and file.name != "model.safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    save_file({k: v for k, v in tensors.items() if k != "target_time.mlp_in.bias"}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"target_time\.mlp_in\.bias"):
        load_model(tmp_path)


@pytest.mark.parametrize("to", ["openpi-jax", "openpi-torch", "lerobot", "transformers"])
def test_other_formats_have_no_place_for_it(trained: list[Path], tmp_path: Path, to: str) -> None:
    if to == "transformers" and "prompt" in (trained[1] / "config.json").read_text():
        pytest.skip("holds π0 alone")
    with pytest.raises(UserError, match=r"one-step model has an input .* write native"):
        convert(trained[1], tmp_path / "out", to)
    assert not list(tmp_path.iterdir())


def test_it_goes_on_as_what_it_is(trained: list[Path], dataset: Path, tmp_path: Path) -> None:
    """Neither a resume nor a further training has to be told."""
    model, preset = load_model(trained[1]), of_its_kind(trained[1])
    assert isinstance(model, Pi0)
    more = train_policy(dataset, tmp_path / "more", preset, initial=Initialization(trained[1]))
    preset = dataclasses.replace(preset, train=dataclasses.replace(preset.train, steps=6))
    again = train_policy(dataset, tmp_path / "more", preset, resume=True)
    assert again.checkpoint.name != more.checkpoint.name
    for folder in (more.checkpoint, again.checkpoint):
        after = load_model(folder)
        assert isinstance(after, Pi0)
        assert after.config == model.config
        assert torch.equal(after.token_embedding.weight, model.token_embedding.weight)
    assert set(losses(tmp_path / "more")) == set(range(1, 7))


def test_an_interrupted_training_resumes_exactly(trained: list[Path], dataset: Path, tmp_path: Path) -> None:
    """Its first model got the input from a plain base, the resumed one is made with it."""
    copy = tmp_path / "one"
    shutil.copytree(trained[1].parents[1], copy)
    shutil.rmtree(copy / "checkpoints" / trained[1].name)
    again = train_policy(dataset, copy, with_one_step(of_its_kind(trained[0])), resume=True).checkpoint
    assert again.name == trained[1].name
    expected, found = (load_file(folder / "model.safetensors") for folder in (trained[1], again))
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_what_cannot_learn_it(dataset: Path, tmp_path: Path) -> None:
    preset = short()
    with pytest.raises(UserError, match="give its checkpoint with --checkpoint"):
        train_policy(dataset, tmp_path / "run", with_one_step(preset))
    for beside in (with_lora(preset), with_language(preset, "openpi", False, True)):
        with pytest.raises(UserError, match="leave --lora, --text, --fast and --no-insulation out"):
            with_one_step(beside)
    with pytest.raises(UserError, match="leave --freeze heads out"):
        with_one_step(short(parts=PartsConfig(freeze=("heads",))))
    for other in (dataclasses.replace(preset, model=nano_baseline()), nano_fast_preset()):
        with pytest.raises(UserError, match=r"one step is learnt from the many that π0 and π0\.5 integrate"):
            with_one_step(other)


def test_what_a_one_step_policy_cannot_learn(trained: list[Path], dataset: Path, tmp_path: Path) -> None:
    """It stays one, and so trains its action expert alone."""
    preset = of_its_kind(trained[1])
    for beside in (with_lora(preset), with_language(preset, "openpi", True, True)):
        with pytest.raises(UserError, match="leave --lora, --text, --fast and --no-insulation out"):
            train_policy(dataset, tmp_path / "run", beside, initial=Initialization(trained[1]))
        with pytest.raises(UserError, match="leave --lora, --text, --fast and --no-insulation out"):
            plan_training(beside, Resources(), str(trained[1]))
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_a_plan_counts_what_is_trained(trained: list[Path]) -> None:
    preset = of_its_kind(trained[0])
    whole = plan_step(preset.model, preset.train, Layout())
    distilled = with_one_step(preset)
    step = plan_step(distilled.model, distilled.train, Layout())
    assert step.weights > whole.weights
    assert step.gradients < 0.5 * whole.gradients
    for named, path in ((distilled, trained[0]), (preset, trained[1])):
        plan = plan_training(named, Resources(), str(path))
        assert plan.step.gradients < 0.5 * plan.step.weights


def test_a_plan_is_of_what_can_be_trained(trained: list[Path]) -> None:
    base = of_its_kind(trained[0])
    assert isinstance(base.model, Pi0Config)
    preset, other = with_one_step(base), with_one_step(short(not base.model.adaptive))
    with pytest.raises(UserError, match="give its checkpoint with --checkpoint"):
        plan_training(preset, Resources())
    with pytest.raises(UserError, match=r"holds a model 'pi05?', but 'pi05?' is to be trained"):
        plan_training(other, Resources(), str(trained[0]))
    if not base.model.adaptive:  # one of them, since advice takes a plan for each line
        options = [advice.options for advice in plan_training(preset, Resources(memory=1000), str(trained[0])).advice]
        assert "--recompute" in options
        assert "--lora" not in options
