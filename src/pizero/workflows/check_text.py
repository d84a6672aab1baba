"""What `pizero check` found, in the terminal or in the file that it is sent to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.padding import Padding
from rich.text import Text

from pizero.data.doctor.finding import ORDER
from pizero.data.doctor.names import dim_text
from pizero.workflows.progress import console

FAULTS_SHOWN = 10
"""check.json has all."""
_COLOURS = {"error": "bold red", "warning": "yellow", "note": "cyan"}


def print_results(results: dict[str, Any], output: Path | None) -> None:
    """`results`: what check.json holds. output: the folder where it is."""
    for finding in results["findings"]:
        _print_finding(finding)
    for fault in results["faults"][:FAULTS_SHOWN]:
        _line(f"{fault['file']}, episode {fault['episode']}: {fault['text']}")
    if (more := len(results["faults"]) - FAULTS_SHOWN) > 0:
        _line(f"and {more} more: check.json, which --output FOLDER writes, has all")
    if results["replay"] is not None:
        _print_replay(results["replay"], results["action_names"])
    if results["verdict"] is not None:
        _print_verdict(results["verdict"])
    counts = {severity: sum(finding["severity"] == severity for finding in results["findings"]) for severity in ORDER}
    said = ", ".join(_count(number, severity) for severity, number in counts.items() if number)
    _line(
        f"{_count(results['episodes'], 'episode')}, {_count(results['frames'], 'frame')}: {said or 'nothing found'}"
        + (f" · {output / 'check.html'}" if output is not None else "")
    )


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _print_finding(finding: dict[str, str]) -> None:
    """Three lines: what and where, what is seen, what to do; wrapped in a terminal, and in a file as they are."""
    severity = finding["severity"]
    console.print(
        Text.assemble((severity, _COLOURS[severity]), f" · {finding['check']} · {finding['where']}"),
        soft_wrap=not console.is_terminal,
    )
    for text in (finding["evidence"], f"do: {finding['advice']}"):
        if console.is_terminal:
            console.print(Padding(Text(text), (0, 0, 0, 4)))
        else:
            _line(f"    {text}")


def _print_replay(summary: dict[str, Any], names: list[str] | None) -> None:
    dims = range(len(summary["error"]))
    errors = ", ".join(
        f"{dim_text('action', dim, names)} {summary['error'][dim]:.3g}" if names else f"{summary['error'][dim]:.3g}"
        for dim in dims
    )
    _line(f"replay of {summary['chunks']} chunks ({summary['episodes']})")
    _line(f"mean absolute error by dimension, robot units: {errors}")
    for dim, gripper in summary["grippers"].items():
        name = f"{dim_text('action', int(dim), names)} (gripper)" if names else f"gripper, dimension {dim}"
        _line(
            f"{name}: on the right side {100 * gripper['same_side']:.0f} % of the time; "
            f"{gripper['found']} of {gripper['events']} events found, {gripper['extra']} extra"
        )


def _print_verdict(verdict: dict[str, Any]) -> None:
    """A line for each aspect, then the answer."""
    colours = {"yes": "green", "open": "cyan", "doubt": "yellow", "no": "bold red"}
    for aspect in verdict["aspects"]:
        state = aspect["state"]
        console.print(
            Text.assemble((f"{state:<6}", colours[state]), f"{aspect['aspect']:<11}", aspect["text"]),
            soft_wrap=not console.is_terminal,
        )
    console.print(Text.assemble(("verdict ", colours[verdict["answer"]]), verdict["text"]), soft_wrap=True)


def _line(text: str) -> None:
    console.print(Text(text), soft_wrap=True)
