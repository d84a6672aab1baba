"""Recorded sets that are not there fail in the repository's own folder, and are skipped in another."""

from __future__ import annotations

from pathlib import Path

import golden_folders
import pytest


def test_a_missing_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a set lies incomplete, in one folder or in the other."""
    (tmp_path / "kind" / "one").mkdir(parents=True)
    (tmp_path / "kind" / "one" / "a.json").touch()
    monkeypatch.delenv("PIZERO_GOLDEN", raising=False)
    monkeypatch.setattr(golden_folders, "DEFAULT", tmp_path)
    with pytest.raises(pytest.fail.Exception, match=r"holds no set of kind: a folder with a\.json, b\.npz"):
        golden_folders.find_sets("kind", ("a.json", "b.npz"))
    with pytest.raises(pytest.fail.Exception, match="holds no set of kind"):
        golden_folders.find_sets("kind", ("a.json",), lambda folder: False)
    monkeypatch.setenv("PIZERO_GOLDEN", str(tmp_path / "kind"))
    with pytest.raises(pytest.skip.Exception, match="holds no set of kind"):
        golden_folders.find_sets("kind", ("a.json", "b.npz"))
    assert golden_folders.find_sets("kind", ("a.json",)) == [tmp_path / "kind" / "one"]
    monkeypatch.setenv("PIZERO_GOLDEN", str(tmp_path))
    assert golden_folders.find_sets("kind", ("a.json",)) == [tmp_path / "kind" / "one"]
