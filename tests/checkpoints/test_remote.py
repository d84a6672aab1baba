"""Checkpoints from elsewhere, without a network: fsspec's file system in memory, a hub that cannot be reached."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

import pizero.checkpoints.files.remote as remote
from pizero.checkpoints.files.remote import local_folder, paligemma_tokenizer
from pizero.checkpoints.load import load_model
from pizero.checkpoints.native.checkpoint import save_checkpoint
from pizero.model.config import small_config
from pizero.model.pi0 import Pi0
from pizero.types import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PIZERO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def upload(folder: Path, address: str) -> None:
    system = fsspec.filesystem("memory")
    for path in folder.rglob("*"):
        if path.is_file():
            system.pipe_file(f"{address}/{path.relative_to(folder)}", path.read_bytes())


def test_an_address_is_downloaded_once(tmp_path: Path, cache: Path) -> None:
    save_checkpoint(tmp_path / "m", Pi0(small_config("nano")))
    upload(tmp_path / "m", "/bucket/m")
    assert load_model("memory://bucket/m").config == small_config("nano")
    fsspec.filesystem("memory").rm("/bucket", recursive=True)
    assert local_folder("memory://bucket/m") == cache / "memory" / "bucket" / "m"  # from the cache now
    assert sorted(path.name for path in (cache / "memory" / "bucket").iterdir()) == ["m"]


def test_an_address_with_nothing_leaves_nothing(cache: Path) -> None:
    with pytest.raises(UserError, match=r"cannot download memory://bucket/none .*copy it to"):
        local_folder("memory://bucket/none")
    assert not [path for path in cache.rglob("*") if path.name.startswith((".none", "none"))]


def test_an_unknown_address_says_what_it_needs() -> None:
    with pytest.raises(UserError, match="nosuch://bucket/m"):
        local_folder("nosuch://bucket/m")


@pytest.mark.parametrize("name", ["owner/model", "hf://owner/model", "hf://owner/model@main"])
def test_a_hub_that_cannot_be_reached(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", _unreachable)
    with pytest.raises(UserError, match=r"no folder owner/model, and the hub did not give it \(no network"):
        local_folder(name)


def test_a_hub_id_is_a_folder_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda repo, revision, **_: asked.append((repo, revision)) or str(tmp_path)
    )
    assert local_folder("hf://owner/model@v1") == tmp_path
    assert asked == [("owner/model", "v1")]


def test_a_dataset_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repo, **more: asked.update(more) or str(tmp_path))
    assert local_folder(Path("owner/data"), "dataset") == tmp_path
    assert asked["repo_type"] == "dataset"
    assert asked["allow_patterns"] == ["meta/*", "data/*", "videos/*"]
    monkeypatch.setattr("huggingface_hub.snapshot_download", _unreachable)
    with pytest.raises(UserError, match="copy its folders meta, data and videos into a folder"):
        local_folder("owner/data", "dataset")


def test_a_path_stays_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", _unreachable)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "m").mkdir(parents=True)
    assert local_folder("runs/m") == Path("runs/m")
    assert local_folder("./runs/none") == Path("./runs/none")
    assert local_folder("/nowhere/at/all") == Path("/nowhere/at/all")


def test_the_tokenizer_offline_names_the_file(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "TOKENIZER_URL", "http://127.0.0.1:9/paligemma_tokenizer.model")
    with pytest.raises(UserError, match=rf"put paligemma_tokenizer.model at {cache}"):
        paligemma_tokenizer()
    cache.mkdir()
    (cache / "paligemma_tokenizer.model").write_bytes(b"there")
    assert paligemma_tokenizer() == cache / "paligemma_tokenizer.model"


def _unreachable(*_: object, **__: object) -> str:
    raise OSError("no network")
