"""What is no checkpoint that can be read here gets one line that says what it is and what to do."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pizero.checkpoints import refusals
from pizero.checkpoints.files.orbax import ArrayToWrite, write_arrays
from pizero.checkpoints.files.remote import local_folder
from pizero.checkpoints.load import load_model, load_policy, read_checkpoint, save_model
from pizero.model.config import small_config
from pizero.model.pi0 import Pi0
from pizero.types import UserError

Make = Callable[[Path], object]


def refused(path: Path) -> str:
    """The line; the same for the model and the policy, without a file more than before."""
    before = sorted(path.parent.rglob("*"))
    lines: list[str] = []
    for load in (load_model, load_policy):
        with pytest.raises(UserError) as caught:
            load(path)
        lines.append(str(caught.value))
    assert sorted(path.parent.rglob("*")) == before
    assert lines[0] == lines[1]
    assert "\n" not in lines[0]
    return lines[0]


def config(**values: Any) -> Make:
    return lambda folder: (folder / "config.json").write_text(json.dumps(values))


def weights(*names: str, file: str = "model.safetensors") -> Make:
    return lambda folder: save_file({name: torch.zeros(2) for name in names}, folder / file)


def file(name: str, content: bytes = b"x") -> Make:
    return lambda folder: (folder / name).write_bytes(content)


def both(*makes: Make) -> Make:
    return lambda folder: [make(folder) for make in makes]


def adapters(folder: Path) -> None:
    weights("base_model.model.x.lora_A.weight", file="adapter_model.safetensors")(folder)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "a/b"}))


def fast_arrays(folder: Path) -> None:
    names = ("PaliGemma/img/embedding/kernel", "PaliGemma/llm/embedder/input_embedding")
    arrays = [ArrayToWrite(name, (2,), torch.float32, lambda: [torch.zeros(2)], split=False) for name in names]
    write_arrays(folder / "params", arrays)


def trainer_state(folder: Path) -> None:
    (folder / "training_state").mkdir()
    torch.save({"step": 3}, folder / "training_state" / "state.pt")


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 14467165872\n"
ACT = config(type="act", input_features={}, output_features={}, chunk_size=100)
KINDS: dict[str, tuple[Make, str]] = {
    "a part of openpi's π0-FAST": (fast_arrays, "has other sizes than .* give them with arch"),
    "LeRobot's π0-FAST": (
        both(config(type="pi0_fast"), weights("model.x")),
        "LeRobot's pi0_fast, but no weights of one",
    ),
    "an older name of it": (config(type="pi0fast"), "LeRobot's π0-FAST of a version .* not supported"),
    "act": (both(ACT, weights("model.x")), "policy 'act' of LeRobot; .*pi0, pi05 and diffusion can be read"),
    "smolvla": (config(type="smolvla", normalization_mapping={}), "policy 'smolvla' of LeRobot"),
    "an older pi0": (
        both(config(type="pi0", proj_width=1024, num_steps=10, input_features={}), weights("model.x")),
        "is π0 of an older LeRobot .before 0.4., .*not read here",
    ),
    "no type": (config(input_features={}, num_steps=5), 'config.json of LeRobot without "type"'),
    "a config without weights": (config(type="pi05"), "LeRobot's pi05, but no weights .* copy the checkpoint again"),
    "a type that is misspelt": (
        both(config(type="pi0.5", input_features={}), weights("model.action_in_proj.weight")),
        'tensors of pi05 under LeRobot\'s names, and config.json says the type \'pi0.5\'; .*has "type": "pi05"',
    ),
    "weights of LeRobot alone": (
        weights("model.action_in_proj.weight", "model.action_time_mlp_in.weight"),
        "tensors of pi0 under LeRobot's names, and there is no config.json with a type",
    ),
    "names with another start": (
        both(config(type="pi05"), weights("policy.model.action_in_proj.weight")),
        "tensors that are named otherwise, as 'policy.model.action_in_proj.weight'",
    ),
    "a config beside a pickle": (
        both(config(type="pi05"), file("pytorch_model.bin")),
        "LeRobot's pi05, but its weights are in pytorch_model.bin, a pickle, .*as safetensors",
    ),
    "parts that PEFT wraps": (
        both(config(type="pi0"), weights("base_model.model.model.action_in_proj.modules_to_save.default.weight")),
        "LoRA adapters of PEFT beside the weights",
    ),
    "adapters": (adapters, "LoRA adapters of PEFT for 'a/b', not a whole model; merge them"),
    "adapters of LeRobot": (both(adapters, config(type="pi0")), "LoRA adapters of PEFT"),
    "paligemma": (both(config(model_type="paligemma"), weights("language_model.x")), "PaliGemma, an initial"),
    "another model": (both(config(model_type="llama"), weights("model.x")), "holds a 'llama' of Transformers"),
    "big_vision's": (file("pt_224.npz"), "pt_224.npz: big_vision's format, .*an initial checkpoint .*, no policy"),
    "pytorch_model.bin": (file("pytorch_model.bin"), "pytorch_model.bin: a pickle, .*as safetensors"),
    "pt": (file("policy.pt"), "policy.pt: a pickle, which is never opened here; save .*as safetensors"),
    "pth": (file("policy.PTH"), "policy.PTH: a pickle"),
    "ckpt": (file("epoch=3.ckpt"), "epoch=3.ckpt: a pickle"),
    "onnx": (file("model.onnx"), "model.onnx: exported for another runtime; take the original weights"),
    "tflite": (file("model.tflite"), "exported for another runtime"),
    "gguf": (file("pi0-q4.gguf", b"GGUF"), "exported for another runtime"),
    "a trainer's state": (trainer_state, "trainer's state alone .*give the checkpoint's folder"),
    "other tensors": (weights("encoder.x"), "holds a model.safetensors whose tensors are not those of a π0"),
    "a pointer": (file("model.safetensors", LFS), "is a pointer of Git LFS .*; run git lfs pull"),
    "a page": (file("model.safetensors", b"<!DOCTYPE html>\n<html>404</html>" + b" " * 99), "web page .* download"),
    "a short page": (file("model.safetensors", b"<html>"), "web page"),
    "100 bytes": (file("model.safetensors", b"a" * 100), "no safetensors file, or was cut short: it has 100 bytes"),
    "a renamed pickle": (file("model.safetensors", pickle.dumps({"a": 1}, 2)), "a pickle and no safetensors file"),
    "a renamed GGUF": (file("model.safetensors", b"GGUF" + bytes(99)), "a GGUF file and no safetensors file"),
    "a dataset": (
        lambda folder: [(folder / "meta").mkdir(), (folder / "meta" / "info.json").write_text("{}")],
        "is a LeRobot dataset and no checkpoint; pizero check examines it",
    ),
    "a broken config": (file("config.json", b'{"format": "pizero",'), "config.json cannot be read as JSON"),
    "a name in control": (file("a\nb"), r"no checkpoint of a known format: found a b"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_it_is_and_what_to_do(kind: str, tmp_path: Path) -> None:
    make, expected = KINDS[kind]
    folder = tmp_path / "given"
    folder.mkdir()
    make(folder)
    line = refused(folder)
    assert str(folder) in line
    with pytest.raises(UserError, match=expected):
        read_checkpoint(folder)


def test_a_torch_archive_that_was_renamed(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
    assert "is a pickle or another archive and no safetensors file" in refused(tmp_path)


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    """Whatever the name: unpickling this one would leave a file."""

    class Payload:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "executed",)

    for name in ("policy.pt", "pytorch_model.bin", "model.safetensors", "training_state.pkl"):
        folder = tmp_path / name.replace(".", "_")
        folder.mkdir()
        (folder / name).write_bytes(pickle.dumps(Payload()))
        refused(folder)
        assert not (tmp_path / "executed").exists()
    pickle.loads((tmp_path / "policy_pt" / "policy.pt").read_bytes())
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("pi0.ckpt", "is a file and no checkpoint folder: a pickle"),
        ("model.gguf", "is a file and no checkpoint folder: exported"),
        ("pt_224.npz", "an initial checkpoint (pizero train --checkpoint), no policy"),
        ("notes.txt", "it is a file; give the folder"),
    ],
)
def test_a_file_in_the_place_of_a_folder(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"x")
    assert text in refused(tmp_path / name)


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("native") / "m"
    save_model(Pi0(small_config("nano")), folder)
    return folder


def test_a_file_of_a_checkpoint(native: Path) -> None:
    assert f"is one file of a checkpoint; give its folder, {native}" in refused(native / "model.safetensors")


def copies(native: Path, *places: Path) -> None:
    for place in places:
        place.mkdir(parents=True)
        for entry in native.iterdir():
            (place / entry.name).symlink_to(entry)


def test_the_folder_of_a_run(native: Path, tmp_path: Path) -> None:
    """Of our own trainer: the newest is the one of the greatest step, whenever it was copied."""
    run = tmp_path / "run"
    copies(native, run / "checkpoints" / "0002000", run / "checkpoints" / "0010000", run / "checkpoints" / "0000500")
    newest = run / "checkpoints" / "0010000"
    assert f"3 checkpoints lie in it; give the newest, {newest}" in refused(run / "checkpoints")
    assert local_folder(run) == newest
    load_model(run)


def test_the_folder_of_two_runs(native: Path, tmp_path: Path) -> None:
    copies(
        native,
        *(tmp_path / "runs" / name / "checkpoints" / step for name, step in (("a", "0000020"), ("b", "0000010"))),
    )
    assert f"2 training runs lie in it; give one of them, as {tmp_path / 'runs' / 'a'}" in refused(tmp_path / "runs")


def test_the_folder_of_a_run_that_has_saved_nothing(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints" / ".0000020.new").mkdir(parents=True)
    (tmp_path / "run" / "run.json").write_text("{}")
    assert "without a finished checkpoint; wait for its first one" in refused(tmp_path / "run")


def test_the_folder_of_a_run_of_lerobot(native: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    copies(native, *(run / "checkpoints" / step / "pretrained_model" for step in ("000100", "000020")))
    (run / "checkpoints" / "last").symlink_to("000020")
    line = refused(run)
    assert f"2 checkpoints lie in it; give the newest, {run / 'checkpoints' / '000100' / 'pretrained_model'}" in line


def test_the_folder_of_a_run_of_openpi(tmp_path: Path) -> None:
    for step in (9, 29999):
        (tmp_path / "run" / str(step)).mkdir(parents=True)
        fast_arrays(tmp_path / "run" / str(step))
    assert f"2 checkpoints lie in it; give the newest, {tmp_path / 'run' / '29999'}" in refused(tmp_path / "run")


def test_a_single_checkpoint_within(native: Path, tmp_path: Path) -> None:
    copies(native, tmp_path / "download" / "pi0")
    (tmp_path / "download" / "README.md").write_text("hello")
    assert f"a checkpoint lies in it; give the newest, {tmp_path / 'download' / 'pi0'}" in refused(
        tmp_path / "download"
    )


def test_damaged_checkpoints_within_are_not_offered(native: Path, tmp_path: Path) -> None:
    copies(native, tmp_path / "run" / "1")
    (tmp_path / "run" / "2").mkdir()
    (tmp_path / "run" / "2" / "model.safetensors").write_bytes(b"cut")
    assert f"give the newest, {tmp_path / 'run' / '1'}" in refused(tmp_path / "run")


def test_a_tree_of_folders_is_looked_through_to_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "_MOST_FOLDERS", 7)
    for number in range(20):
        (tmp_path / str(number) / "a").mkdir(parents=True)
    asked: list[Path] = []
    line = refusals.refusal(tmp_path, lambda folder: bool(asked.append(folder)))
    assert "no checkpoint of a known format: found 0, 1, 10, 11, 12, 13, 14, 15 and 12 more" in line
    assert len(asked) == 7


def test_an_archive_of_arrays_is_named_before_what_lies_beside_it(tmp_path: Path) -> None:
    np.savez(tmp_path / "arrays.npz", a=np.zeros(3))
    (tmp_path / "README.md").write_text("hello")
    assert "holds arrays.npz: big_vision's format" in refused(tmp_path)
