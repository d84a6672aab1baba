"""pizero completion: what a shell needs to complete commands and options."""

from __future__ import annotations

import io
import re
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class Arguments:
    """Prints a script that completes commands, options and their values in a shell.

    Once: pizero completion bash > ~/.local/share/bash-completion/completions/pizero
          pizero completion zsh > FOLDER/_pizero    (FOLDER: one of $fpath)
          pizero completion fish > ~/.config/fish/completions/pizero.fish

    The script holds all that it needs: pizero itself does not start at a Tab. Make it again after an update.
    """

    shell: Annotated[Literal["bash", "zsh", "fish"], tyro.conf.Positional]


def run(arguments: Arguments) -> int:
    from pizero.cli.main import COMMANDS

    commands = {name: import_module(f"pizero.cli.{name.replace('-', '_')}").Arguments for name in COMMANDS}
    script = io.StringIO()
    with redirect_stdout(script), suppress(SystemExit):
        tyro.extras.subcommand_cli_from_dict(
            commands, prog="pizero", args=["--tyro-print-completion", arguments.shell], sort_subcommands=False
        )
    print("\n".join(_without_breaks(line) for line in script.getvalue().splitlines()))
    return 0


def _without_breaks(line: str) -> str:
    """A line break in an option's description would be offered as a completion of its own."""
    return re.sub(r"\\+n", " ", line) if line.startswith("COMPLETION_SPEC") else line
