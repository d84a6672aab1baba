"""`pizero <command>`: finds the command, runs it, and turns a user's mistake into one line and exit status 2."""

from __future__ import annotations

import atexit
import io
import signal
import sys
import warnings
from contextlib import redirect_stdout
from importlib import import_module
from typing import Any

COMMANDS = {
    "quickstart": "collects demonstrations in the built-in simulator, trains a tiny π0, evaluates it, writes a report",
    "collect": "records a simulator's scripted demonstrator as a LeRobot v3.0 dataset",
    "robot": "the robot file of a dataset, from its own description",
    "check": "what is wrong with a dataset, alone or beside a checkpoint",
    "norm-stats": "statistics of a dataset's state and actions, in seconds",
    "fit-codec": "a FAST codec (actions as tokens) for a dataset, and what it loses there",
    "train": "trains a policy on a LeRobot dataset; resumes",
    "replay": "a page of what a policy would do along a recorded episode",
    "evaluate": "rollouts in a simulator: success rate with interval, videos, JSON",
    "benchmark": "a suite from demonstrations to a row of the results: collect, train, evaluate",
    "metaworld": "the whole job on six Meta-World tasks: collect, train, evaluate",
    "serve": "policy server for robots, with the wire protocol of openpi and a page to watch",
    "playground": "a page to watch a policy act, tell it what to do, and move things under its hands",
    "compare": "the ladder from the diffusion baseline to π0, one row per improvement; resumes",
    "convert": "any checkpoint format to any other, verified before it gets its name",
    "convert-dataset": "LeRobot v3.0 from older versions, robomimic or ACT",
    "export": "a policy without PyTorch: ONNX or OpenVINO graphs, verified before they get their name",
    "bench": "inference speed beside this machine's limit; the error of int8",
    "completion": "a script for bash, zsh or fish that completes commands and options",
    "inspect": "the architecture with shapes, parameters, FLOPs; a page of what a policy does inside",
}


def main() -> None:
    """Entry point of the `pizero` script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # where output is not UTF-8, π becomes a question mark
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        raise SystemExit(0)
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(f"pizero {version('pizero')}")
        raise SystemExit(0)
    from pizero.processes import ended_by_signals, interrupted, leave_at_once

    atexit.register(leave_at_once)
    with ended_by_signals():
        status = run(arguments[0], arguments[1:])
        if status == 128 + signal.SIGINT:
            interrupted()
        raise SystemExit(status)


def run(command: str, arguments: list[str]) -> int:
    """Runs one command and returns its exit status: 0, 1 (it found a failure), 2 (a mistake), 128 and the number of the
    signal that ended it: 130 after Ctrl-C, 143 after SIGTERM.
    """
    if command not in COMMANDS:
        print(f"pizero: unknown command {command!r}; `pizero --help` lists them", file=sys.stderr)
        return 2
    import tyro

    from pizero.cli.help_text import Folded, join_paragraphs
    from pizero.processes import received
    from pizero.types import UserError

    module = import_module(f"pizero.cli.{command.replace('-', '_')}")
    try:
        join_paragraphs(module.Arguments)
        with redirect_stdout(Folded(sys.stdout)):
            given = tyro.cli(module.Arguments, args=arguments, prog=f"pizero {command}")
        with warnings.catch_warnings():
            warnings.showwarning = _tell_warning
            return module.run(given) or 0
    except KeyboardInterrupt:
        return _interrupted(command, received() or signal.SIGINT)
    except Exception as error:
        if (number := received()) is not None:  # what was under way failed for that
            return _interrupted(command, number)
        if isinstance(error, UserError):
            print(f"pizero {command}: {error}", file=sys.stderr)
            return 2
        if isinstance(error, BrokenPipeError):
            return 1
        raise


def _interrupted(command: str, number: int) -> int:
    what = "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}"
    print(f"pizero {command}: {what}; nothing half-written is left", file=sys.stderr)
    return 128 + number


def _tell_warning(message: Warning | str, category: type[Warning], *place: Any) -> None:
    """A warning of the package is one line of the terminal; other warnings come with their place."""
    from pizero.workflows.progress import tell

    own = category is UserWarning
    tell("warning", str(message) if own else warnings.formatwarning(message, category, *place[:2]).rstrip())


def _help() -> str:
    from pizero.cli.help_text import fold

    width = max(map(len, COMMANDS))
    lines = [fold(f"  {name:<{width}}  {text}", width + 2) for name, text in COMMANDS.items()]
    return "\n".join(
        ["usage: pizero <command> [options]", "", *lines, "", "`pizero <command> --help` explains a command's options."]
    )
