"""Export folders that are damaged, half there, or made by somebody who means harm: one line each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from export_helpers import write

from pizero.export.export import export
from pizero.exported.manifest import described
from pizero.exported.policy import load_exported
from pizero.types import UserError

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    export(write(root / "checkpoint", "pi0"), root / "export", to="onnx", threads=1)
    return root / "export"


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "export"))


def change(folder: Path, **values: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def narrow(folder: Path) -> dict[str, Any]:
    return {**json.loads((folder / "manifest.json").read_text())["words"], "width": 3}


def renamed(folder: Path, name: str) -> None:
    """A file that the manifest names otherwise, with its right size and hash."""
    files = json.loads((folder / "manifest.json").read_text())["files"]
    change(folder, files={**files, name: files["pipeline.json"]})


def replaced(folder: Path, name: str, content: bytes) -> None:
    """Other content, of which the manifest tells the truth."""
    (folder / name).write_bytes(content)
    files = json.loads((folder / "manifest.json").read_text())["files"]
    change(folder, files={**files, name: described(folder / name)})


def swapped(folder: Path) -> None:
    (folder / "vision.onnx").write_bytes((folder / "step.onnx").read_bytes())
    files = json.loads((folder / "manifest.json").read_text())["files"]
    change(folder, files={**files, "vision.onnx": files["step.onnx"]})


def outside(folder: Path) -> None:
    """A graph whose weights lie where its folder ends."""
    import onnx

    shutil.copy(folder / "step.0.bin", folder.parent / "step.0.bin")
    model = onnx.load(str(folder / "step.onnx"), load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = "../step.0.bin" if entry.key == "location" else entry.value
    replaced(folder, "step.onnx", model.SerializeToString())


def flipped(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)


HARM: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "manifest.json cannot be read"),
    "foreign JSON": (lambda f: (f / "manifest.json").write_text('{"a": 1}'), "the folder is no export"),
    "a list": (lambda f: (f / "manifest.json").write_text("[1]"), "holds a list"),
    "cut JSON": (lambda f: (f / "manifest.json").write_text('{"format"'), "cannot be read as JSON"),
    "a later version": (lambda f: change(f, version=2), "has version '2'"),
    "an unknown key": (lambda f: change(f, extra=1), r"keys \['extra'\]"),
    "NaN": (lambda f: change(f, num_steps=float("nan")), "num_steps must be a whole number"),
    "a huge number": (lambda f: change(f, action_horizon=10**12), "action_horizon must be at most"),
    "text for a number": (lambda f: change(f, layers="two"), "layers must be a whole number"),
    "an unknown kind": (lambda f: change(f, kind="pi9"), "kind: got 'pi9'"),
    "no files": (lambda f: change(f, files={}), "names no pipeline.json"),
    "files as a list": (lambda f: change(f, files=[1]), "another kind than expected"),
    "another camera": (lambda f: change(f, cameras=["front"]), "do not fit together"),
    "another width": (lambda f: change(f, action_dim=5), "do not fit together"),
    "other delays": (lambda f: change(f, max_delay=2), "is not the graph that its manifest describes"),
    "a delay beyond the chunk": (lambda f: change(f, max_delay=10**6), "max_delay must be at most"),
    "text of a silent model": (lambda f: change(f, writes_text=True), "do not fit together"),
    "text of a diffusion policy": (
        lambda f: change(f, kind="diffusion", words=None, writes_text=True), "writes_text: a diffusion policy"
    ),
    "a head alone": (lambda f: change(f, head=narrow(f)), "head: its rows have width 3"),
    "more layers": (lambda f: change(f, layers=3), "is not the graph that its manifest describes"),
    "a path upwards": (lambda f: renamed(f, "../pipeline.json"), "is no name of a file in the folder"),
    "an absolute path": (lambda f: renamed(f, "/etc/passwd"), "is no name of a file in the folder"),
    "a missing graph": (lambda f: (f / "prefix.onnx").unlink(), "prefix.onnx is missing"),
    "missing weights": (lambda f: (f / "step.0.bin").unlink(), "step.0.bin is missing"),
    "cut weights": (lambda f: (f / "step.0.bin").write_bytes(b"x"), "has 1 bytes, its manifest says"),
    "a flipped bit": (lambda f: flipped(f, "prefix.0.bin"), "its hash differs"),
    "a folder for a file": (
        lambda f: ((f / "words.0.bin").unlink(), (f / "words.0.bin").mkdir()), "words.0.bin has"
    ),
    "a graph of rubbish": (lambda f: replaced(f, "vision.onnx", b"\x08\x07rubbish"), "cannot be opened by ONNX"),
    "a graph of another kind": (swapped, "is not the graph that its manifest describes"),
    "weights outside": (outside, "cannot be opened by ONNX Runtime"),
    "few words": (lambda f: replaced(f, "words.0.bin", b"\0" * 96), "is no part of a token table"),
    "NaN statistics": (
        lambda f: replaced(
            f, "norm_stats.json", (f / "norm_stats.json").read_bytes().replace(b"10.0", b"NaN")
        ),
        "holds NaN",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HARM)
def test_harm_is_one_line(name: str, folder: Path) -> None:
    spoil, message = HARM[name]
    spoil(folder)
    with pytest.raises(UserError, match=message) as caught:
        load_exported(folder, threads=1)
    assert "\n" not in str(caught.value)


def test_weights_of_nan_are_told_when_they_act(folder: Path) -> None:
    content = np.full((folder / "step.0.bin").stat().st_size // 4, np.nan, np.float32).tobytes()
    replaced(folder, "step.0.bin", content)
    with pytest.raises((UserError, RuntimeError), match=r"NaN|not pizero's"):
        load_exported(folder, threads=1, verify=True)


def test_the_stored_example_is_run_when_asked(folder: Path) -> None:
    load_exported(folder, threads=1, verify=True)
    content = bytearray((folder / "step.0.bin").read_bytes())
    values = np.frombuffer(content, np.float32).copy() * 1.5
    replaced(folder, "step.0.bin", values.tobytes())
    load_exported(folder, threads=1)
    with pytest.raises(UserError, match="not pizero's"):
        load_exported(folder, threads=1, verify=True)


def test_a_failed_proof_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pizero.exported.policy as policy

    checkpoint = write(tmp_path / "checkpoint", "pi05")
    monkeypatch.setattr(policy, "TOLERANCES", {"float32": 1e-12})
    with pytest.raises(UserError, match="the exported policy's chunk is not pizero's"):
        export(checkpoint, tmp_path / "out" / "export", to="onnx", threads=1)
    assert list((tmp_path / "out").iterdir()) == []


def test_openvino_on_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own error, as it came on a disk of 2 MB."""
    openvino = pytest.importorskip("openvino")

    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError("basic_ios::clear: iostream error")

    monkeypatch.setattr(openvino, "save_model", full)
    write(tmp_path / "checkpoint", "pi0")
    with pytest.raises(UserError, match=r"write the graph vision \(basic_ios::clear: .*; the disk has .* MB free"):
        export(tmp_path / "checkpoint", tmp_path / "export", to="openvino", threads=1)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_missing_package_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    checkpoint = write(tmp_path / "checkpoint", "pi05")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match="onnx is not installed; pip install"):
        export(checkpoint, tmp_path / "export", to="onnx", threads=1)
    assert not (tmp_path / "export").exists()


def test_an_export_is_not_overwritten(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exists already"):
        export(write(tmp_path / "checkpoint", "pi0"), whole, to="onnx", threads=1)
