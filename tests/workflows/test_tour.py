"""docs/tour.md and README.md as somebody goes through them, with a policy of two training steps."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from test_pages import BLOCKS, commands

from pizero.cli import serve
from pizero.cli.main import run
from pizero.workflows import check, verdict

SMALL = shlex.split("--steps 2 --batch-size 2 --draws 1 --warmup-steps 0 --threads 1 --precision float32")


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `pizero quickstart` has run, but for the time it takes."""
    folder = tmp_path_factory.mktemp("tour")
    dataset, trained = str(folder / "runs/quickstart/dataset"), str(folder / "runs/quickstart/train")
    assert run("collect", ["tabletop", "--output", dataset, "--episodes", "4", "--image-size", "32"]) == 0
    assert run("train", [dataset, "--preset", "tabletop", "--output", trained, *SMALL]) == 0
    return folder


@pytest.mark.parametrize("page", ["tour.md", "README.md"])
def test_every_block_of_the_page(
    page: str, quickstart: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def serve_alone(loads: Any, _: Any) -> None:
        assert [load() for load in loads().values()]

    monkeypatch.setattr(serve, "_serve_alone", serve_alone)
    monkeypatch.setattr(check, "CHUNKS", 2)
    monkeypatch.setattr(verdict, "CHUNKS", 2)
    monkeypatch.chdir(quickstart)
    names: dict[str, Any] = {}
    todo = [block for block in BLOCKS if block.page == page and block.kind in ("", "python") and block.why is None]
    assert todo
    for block in todo:
        if block.kind == "python":
            exec(compile(block.code, str(block), "exec"), names)
            continue
        for command in commands(block.code):
            _, name, *arguments = shlex.split(command)
            few = ["--episodes", "1"] if name == "evaluate" else []
            status = run(name, [*arguments, *few])
            assert status == 0 or name == "check", f"{command}: {capsys.readouterr().err}"  # 1: it has found something
