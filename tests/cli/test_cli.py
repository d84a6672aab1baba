"""The commands as a user types them."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from pizero.cli.main import COMMANDS, main, run


def pizero(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = "from pizero.cli.main import main; main()"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


def test_help_lists_every_command_quickly(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["pizero", "--help"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert all(command in shown for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(command, ["--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert f"pizero {command}" in shown
    assert "--no-no-" not in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "unknown command 'fly'"),
        (["collect", "tabletop", "--output", "{tmp}/d", "--tasks", "dance"], "dance"),
        (["collect", "tabletop", "--output", "{tmp}/d", "--episodes", "0"], "must be at least 1"),
        (["norm-stats", "{tmp}/none"], "none"),
        (["train", "{tmp}/none", "--preset", "tabletop", "--output", "{tmp}/r"], "none"),
        (["evaluate", "{tmp}/none", "--env", "tabletop"], "there is nothing at this path"),
        (["inspect", "{tmp}/none"], "there is nothing at this path"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = run(arguments[0], [argument.format(tmp=tmp_path) for argument in arguments[1:]])
    shown = capsys.readouterr().err.strip().splitlines()
    assert status == 2
    assert message in shown[-1]
    assert shown[-1].startswith("pizero")
    assert not (tmp_path / "d").exists()


def test_as_a_process(tmp_path: Path) -> None:
    wrong = pizero("evaluate", str(tmp_path), "--env", "tabletop")
    assert wrong.returncode == 2
    assert "Traceback" not in wrong.stderr
    assert pizero("--version").stdout.startswith("pizero ")


def test_output_that_is_not_utf8_gets_question_marks() -> None:
    """As where Windows writes into a pipe."""
    code = "from pizero.cli.main import main; main()"
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    shown = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, env=environment, check=True)
    assert b"a tiny ?0" in b" ".join(shown.stdout.split())  # wherever lines end


def test_interrupt_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pizero.workflows import collect as module

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "record_episode", interrupted)
    assert run("collect", ["tabletop", "--output", str(tmp_path / "d")]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_warning_is_one_line_without_its_place(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(_: object) -> int:
        warnings.warn("prompt '[a]': cut")
        warnings.warn("old", DeprecationWarning)
        return 0

    monkeypatch.setattr("pizero.cli.inspect.run", told)
    assert run("inspect", []) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "warning prompt '[a]': cut"
    assert "DeprecationWarning: old" in "".join(lines[1:])


def test_inspect_of_a_checkpoint_that_does_not_tell_its_sizes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    golden = Path(__file__).parents[1] / "golden" / "openpi" / "pi0_d32"
    first, again = tmp_path / "first.json", tmp_path / "again.json"
    arch = str(golden / "tiny_config.json")
    assert run("inspect", [str(golden / "torch"), "--arch", arch, "--json", str(first)]) == 0
    assert run("inspect", [str(golden / "torch"), "--arch", str(first), "--json", str(again)]) == 0
    assert first.read_text() == again.read_text()
    assert run("inspect", [str(golden / "torch")]) == 2
    assert "give the sizes with arch" in capsys.readouterr().err
