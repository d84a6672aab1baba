"""What a shell completes, asked of bash itself."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from pizero.cli.main import COMMANDS, run

ASK = """source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 )); _tyro_pizero; printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "pizero"
    with pytest.MonkeyPatch.context() as patch, path.open("w") as file:
        patch.setattr("sys.stdout", file)
        assert run("completion", ["bash"]) == 0
    return path


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["conv"], {"convert", "convert-dataset"}),
        ([""], {*COMMANDS, "-h", "--help"}),
        (["train", "--mod"], {"--model"}),
        (["train", "--model", "pi0"], {"pi0", "pi05", "pi0-fast"}),
        (["bench", "inf"], {"inference"}),
    ],
)
def test_bash_completes(typed: list[str], offered: set[str], script: Path) -> None:
    command = ["bash", "-c", ASK, "bash", str(script), "pizero", *typed]
    assert set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()) == offered
