"""Processes that train, forked from one that has imported what a training needs, which takes seconds."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from rank_runs import train_all

FORKING = multiprocessing.get_context("forkserver")
FORKING.set_forkserver_preload(["rank_runs"])


def begin(runs: list[dict[str, Any]], dataset: Path, shown: Path, **environment: str) -> BaseProcess:
    """A process that takes the trainings `runs` one after the other, with these variables set; what it prints goes
    into the file `shown`.
    """
    process = FORKING.Process(target=_train, args=(runs, dataset, shown, environment))
    process.start()
    return process


def _train(runs: list[dict[str, Any]], dataset: Path, shown: Path, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    with shown.open("w") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    train_all(runs, dataset)
