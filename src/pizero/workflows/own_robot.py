"""The robot that recorded a dataset, as the dataset itself describes it: no robot file, or one that is written here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from pizero.checkpoints.files.remote import local_folder
from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.embodiments import Embodiment
from pizero.data.recognition.description import of_dataset, of_folder
from pizero.data.recognition.recognise import RobotGuess, recognise
from pizero.data.recognition.robot_file import robot_file
from pizero.files import write_bytes
from pizero.types import UserError
from pizero.workflows.progress import console, tell


def guess_robot(
    dataset: LeRobotDataset, cameras: Sequence[str] | None = None, *, needs_camera: bool = True
) -> RobotGuess:
    """cameras: the model's; None takes as many as the dataset has, three at most. UserError where there is no camera,
    unless none is needed, no state or no action.
    """
    return recognise(of_dataset(dataset), cameras, needs_camera=needs_camera)


def own_robot(
    dataset: LeRobotDataset, cameras: Sequence[str] | None = None, *, needs_camera: bool = True
) -> Embodiment:
    return guess_robot(dataset, cameras, needs_camera=needs_camera).robot


def write_robot_file(root: Path, output: Path | None) -> RobotGuess:
    """The robot file of a dataset (folder or hub id) into `output`, or to standard output; what was guessed and what is
    in doubt is printed. Episodes with faults count no further, and a description without data is enough.

    UserError where `output` exists.
    """
    if output is not None and output.exists():
        raise UserError(f"{output} exists; give another name, or remove it")
    guess = recognise(of_folder(root if root.is_dir() else local_folder(root, "dataset")))
    print_guess(guess)
    text = robot_file(guess)
    if output is None:
        print(text, end="")
    else:
        write_bytes(output, text.encode())
        console.print(f"robot file: {output}; pizero train {root} --embodiment {output} takes it")
    return guess


def print_guess(guess: RobotGuess, more: Iterable[tuple[str, str]] = ()) -> None:
    """A table of what is what, then each question. more: further rows."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for what, text in (*guess.table(), *more):
        table.add_row(what, Text(text))
    console.print(table)
    for question in guess.questions:
        tell("question", question)
