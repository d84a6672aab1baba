"""The documentation as a site (`make site`): every link leads somewhere, and nothing comes from another host."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

pytest.importorskip("mkdocs", reason="needs the extra docs")
pytest.importorskip("mkdocstrings", reason="needs the extra docs")
ROOT = Path(__file__).parents[1]


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "no_proxy": "", "https_proxy": "http://127.0.0.1:9"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (built.returncode, built.stderr) == (0, "")
    shown = re.sub(r"<[^>]+>", "", (tmp_path / "model.html").read_text())
    assert "def embed_prefix" in shown  # the code beside the words
    assert "load_policy" in (tmp_path / "search" / "search_index.json").read_text()
    assert (tmp_path / "files" / "examples" / "my_arm.toml.txt").is_file()


@pytest.fixture
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "site_hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("tag", "refused"),
    [
        ('<script src="https://elsewhere.example/x.js"></script>', True),
        ("<link rel=stylesheet href=//fonts.example/roboto.css>", True),
        ('<img alt="" src="http://elsewhere.example/x.png">', True),
        ('<a href="https://elsewhere.example">', False),
        ('<script src="assets/x.js"></script>', False),
    ],
)
def test_another_host_is_refused(tag: str, refused: bool, hooks: ModuleType, tmp_path: Path) -> None:
    from mkdocs.exceptions import PluginError

    (tmp_path / "index.html").write_text(f"<html>{tag}</html>")
    found = []
    try:
        hooks.on_post_build(SimpleNamespace(site_dir=str(tmp_path)))
    except PluginError as error:
        found.append(str(error))
    assert bool(found) == refused


def test_links_out_of_the_docs_lead_to_files_of_the_site(hooks: ModuleType) -> None:
    def page(path: str) -> SimpleNamespace:
        return SimpleNamespace(file=SimpleNamespace(src_uri=path), meta={})

    moved = hooks.on_page_markdown(
        "[a](../examples/my_arm.toml) [b](data.md#units) [c](../README.md)", page("training.md")
    )
    assert moved == "[a](files/examples/my_arm.toml.txt) [b](data.md#units) [c](index.md)"
    assert hooks.on_page_markdown("[a](docs/data.md)", page("index.md")) == "[a](data.md)"
