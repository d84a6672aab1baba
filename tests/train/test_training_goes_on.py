"""After each kind of error the next training works in the same folder, to the numbers of a run without an error.

Elsewhere: kills and a full disk (test_robust), another training in the folder and other data (test_same_run), settings
that changed (test_resume), losses that are not finite (test_gradient), ranks (test_distributed).
"""

from __future__ import annotations

import dataclasses
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint import save
from train_helpers import losses, nano_baseline, nano_preset

from pizero.checkpoints.native.checkpoint import load_checkpoint, verify_example
from pizero.data.loader import Loader
from pizero.train.config import GradientConfig, LoraConfig, PartsConfig, SelectionConfig
from pizero.train.metrics import MetricsFile
from pizero.train.run_folder import list_checkpoints
from pizero.train.sharded_state import gather_state, read_shards
from pizero.train.trainer import Trainer
from pizero.types import UserError
from pizero.workflows.measures import MeasureConfig
from pizero.workflows.start import Initialization
from pizero.workflows.train import Runtime, train_policy

SHORT: dict[str, Any] = {"steps": 4, "save_every": 2, "validate_every": 2}
ALL_PARTS = ("vision", "prefix", "expert", "embedding", "heads")


@pytest.fixture(scope="module")
def whole(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without an error."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train_policy(dataset, folder, nano_preset(**SHORT))
    return folder


def check_same(run: Path, whole: Path) -> None:
    assert losses(run) == losses(whole)
    assert [path.name for path in (run / "checkpoints").iterdir() if path.name > "0000002"] == ["0000004"]
    verify_example(load_checkpoint(list_checkpoints(run)[-1]))


def test_a_refused_training_leaves_the_folder_free(dataset: Path, whole: Path, tmp_path: Path) -> None:
    """What is wrong before the first step: start, data, model, parts, measures."""
    mixture, run = tmp_path / "mixture.toml", tmp_path / "run"
    mixture.write_text(f'[[datasets]]\npath = "{dataset}"\nweight = 0\n')

    def refused(text: str, data: Path = dataset, changes: Any = None, model: Any = None, **options: Any) -> None:
        preset = nano_preset(**{**SHORT, **(changes or {})})
        preset = preset if model is None else dataclasses.replace(preset, model=model)
        with pytest.raises(UserError, match=text):
            train_policy(data, run, preset, **options)
        assert not list_checkpoints(run)

    refused("weight is 0, expected a number above 0", mixture)
    refused("nowhere", tmp_path / "nowhere")
    refused("give --model pi0", model=nano_baseline(), initial=Initialization(whole))
    refused("give them with --checkpoint", changes={"parts": PartsConfig(lora=LoraConfig())})
    refused("every part is frozen", changes={"parts": PartsConfig(freeze=ALL_PARTS)})
    refused("frozen, adapted and chosen", changes={"parts": PartsConfig(freeze=("vision",))}, model=nano_baseline())
    refused("cannot be divided into 3 equal parts", changes={"gradient": GradientConfig(accumulate=3)})
    refused("by success_rate, which this run", changes={"selection": SelectionConfig("success_rate", patience=1)})
    refused("not for several ranks or the baseline", model=nano_baseline(), runtime=Runtime(compiled=True))
    refused("raise validation_fraction", changes={"validation_fraction": 0}, measure=MeasureConfig(open_loop_chunks=1))
    train_policy(dataset, run, nano_preset(**SHORT))
    check_same(run, whole)


def at_step(step: int, original: Callable[..., Any], index: int) -> Callable[..., Any]:
    """A method that fails at a step, which is its argument `index` or its object's."""

    def method(*arguments: Any, **options: Any) -> Any:
        found = arguments[index] if index else arguments[0].step
        if found == step:
            raise OSError(28, "No space left on device")
        return original(*arguments, **options)

    return method


@pytest.mark.parametrize(
    ("kind", "name", "index", "step"),
    [(Loader, "batch", 1, 3), (MetricsFile, "write", 1, 3), (Trainer, "validate", 0, 4), (Trainer, "save", 0, 4)],
    ids=["reading", "metrics", "measuring", "saving"],
)
def test_a_training_that_fails_on_its_way_is_resumed(
    kind: Any, name: str, index: int, step: int, dataset: Path, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, name, at_step(step, getattr(kind, name), index))
        with pytest.raises(OSError, match="No space left"):
            train_policy(dataset, run, nano_preset(**SHORT))
    assert [path.name for path in list_checkpoints(run)] == ["0000002"]
    train_policy(dataset, run, nano_preset(**SHORT), resume=True)
    check_same(run, whole)


def test_a_checkpoint_that_was_cut_off_names_the_one_before(dataset: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_policy(dataset, run, nano_preset(**SHORT))
    before, newest = list_checkpoints(run)
    state, longer = newest / "training_state" / "state.pt", nano_preset(**{**SHORT, "steps": 6})
    content = state.read_bytes()
    for part in (b"", content[: len(content) // 2]):
        state.write_bytes(part)
        with pytest.raises(UserError, match=rf"state\.pt cannot be read \(.*delete {newest} to continue from step 2$"):
            train_policy(dataset, run, longer, resume=True)
    newest.rename(tmp_path / "cut")
    train_policy(dataset, run, nano_preset(**SHORT), resume=True)  # the advice works
    check_same(run, whole)
    assert torch.load(before / "training_state" / "state.pt", weights_only=True)["step"] == 2


def test_a_rule_of_random_numbers_that_is_not_known(dataset: Path, whole: Path, tmp_path: Path) -> None:
    """Of a later version's run: refused, and the run is as it was."""
    run = tmp_path / "run"
    train_policy(dataset, run, nano_preset(**SHORT))
    shutil.rmtree(list_checkpoints(run)[-1])
    path = list_checkpoints(run)[-1] / "training_state" / "state.pt"
    content = path.read_bytes()
    torch.save(torch.load(path, weights_only=True) | {"seed_rule": "later"}, path)
    with pytest.raises(UserError, match="the rule 'later', which this version does not know"):
        train_policy(dataset, run, nano_preset(**SHORT), resume=True)
    assert [folder.name for folder in list_checkpoints(run)] == ["0000002"]
    path.write_bytes(content)
    train_policy(dataset, run, nano_preset(**SHORT), resume=True)
    check_same(run, whole)


def a_state(seed: int) -> tuple[nn.Module, torch.optim.Optimizer, dict[str, torch.Tensor]]:
    """A model after a step, its optimizer and its average."""
    torch.manual_seed(seed)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return model, optimizer, {"weight": torch.rand(2, 3)}


def test_shards_that_cannot_be_read(tmp_path: Path) -> None:
    """A file that is missing, cut off or another model's: one line each; the same model then takes whole ones."""
    model, optimizer, average = a_state(0)
    written = gather_state(model, [optimizer], average)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*single process")  # as it is meant here
        save(written, checkpoint_id=tmp_path / "shards", no_dist=True)
    other, its_optimizer, its_average = a_state(1)
    for damage in (
        lambda folder: (folder / ".metadata").unlink(),
        lambda folder: [path.unlink() for path in folder.glob("*.distcp")],
        lambda folder: [path.write_bytes(path.read_bytes()[:100]) for path in folder.glob("*.distcp")],
        lambda folder: (folder / ".metadata").write_bytes((folder / ".metadata").read_bytes()[:50]),
    ):
        shutil.rmtree(tmp_path / "bad", ignore_errors=True)
        shutil.copytree(tmp_path / "shards", tmp_path / "bad")
        damage(tmp_path / "bad")
        with pytest.raises(UserError, match=r"bad cannot be read \(.*delete its checkpoint to continue from the one"):
            read_shards(tmp_path / "bad", other, [its_optimizer], its_average)
    with pytest.raises(UserError, match="cannot be read"):
        read_shards(tmp_path / "shards", nn.Linear(3, 2, bias=False), [], {})
    read_shards(tmp_path / "shards", other, [its_optimizer], its_average)
    found = gather_state(other, [its_optimizer], its_average)
    assert found.keys() == written.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in written.items())
