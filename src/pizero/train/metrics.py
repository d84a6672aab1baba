"""Metrics as JSON lines: one object per line, with the step it belongs to; and the same for TensorBoard and wandb."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from pizero.types import UserError


class Tracker(Protocol):
    """Takes the numbers of a run as they come."""

    def write(self, step: int, **values: Any) -> None: ...

    def close(self) -> None: ...


class MetricsFile:
    """Appends to `path`. A resumed run drops the lines after its checkpoint and continues, so no step appears twice.

    trackers: get every line too. Without a path, on a rank that is not the first, nothing is written.
    """

    def __init__(self, path: Path | None, resume_step: int = 0, trackers: Sequence[Tracker] = ()) -> None:
        self._trackers = trackers
        if path is None:
            self._file = open(os.devnull, "w")  # noqa: SIM115
            return
        lines = [line for line in read_metrics(path) if line["step"] <= resume_step] if resume_step else []
        partial = path.with_name(path.name + ".partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in lines))
        os.replace(partial, path)
        self._file = path.open("a", buffering=1)

    def write(self, step: int, **values: Any) -> None:
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        for tracker in self._trackers:
            tracker.write(step, **values)

    def close(self) -> None:
        self._file.close()
        for tracker in self._trackers:
            tracker.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete lines; the last one may have been cut off by a kill."""
    lines: list[dict[str, Any]] = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


class Interval:
    """What is gathered between two lines of the log. Time that `paused` covers does not count."""

    def __init__(self, carried: Sequence[float] = ()) -> None:
        """carried: losses of its steps before a resume; they count in the mean alone."""
        self.losses: list[Tensor] = []
        self.norms: list[Tensor] = []
        self._carried = torch.tensor(carried, dtype=torch.float32)
        self.waited = 0.0
        self._since, self._busy = time.perf_counter(), time.process_time()

    def next(self, batches: Iterator[Any]) -> Any:
        """The next batch; the wait for it is counted."""
        started = time.perf_counter()
        batch = next(batches)
        self.waited += time.perf_counter() - started
        return batch

    @contextmanager
    def paused(self) -> Iterator[None]:
        started, busy = time.perf_counter(), time.process_time()
        yield
        self._since += time.perf_counter() - started
        self._busy += time.process_time() - busy

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._since

    @property
    def cpu_seconds(self) -> float:
        return time.process_time() - self._busy

    def mean_loss(self) -> float:
        return float(self._all().mean())

    def mean_norm(self) -> float:
        """Of the gradients, before they are clipped."""
        return float(torch.stack(self.norms).mean())

    def to_carry(self) -> list[float]:
        """What a checkpoint keeps of it."""
        return self._all().tolist()

    def _all(self) -> Tensor:
        return torch.cat([self._carried, torch.stack(self.losses).cpu()]) if self.losses else self._carried


class TensorBoard:
    """Numbers as scalars into event files of `folder`."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError("TensorBoard is missing: pip install 'pizero[track]'") from error
        self._writer: Any = SummaryWriter(str(folder))

    def write(self, step: int, **values: Any) -> None:
        for name, value in values.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """Numbers into a run of wandb named after `folder`; account and project are wandb's own settings (WANDB_*)."""

    def __init__(self, folder: Path) -> None:
        try:
            import wandb  # pyright: ignore
        except ImportError as error:
            raise UserError("wandb is missing: pip install 'pizero[track]'") from error
        self._run: Any = wandb.init(dir=str(folder), name=folder.name)  # pyright: ignore

    def write(self, step: int, **values: Any) -> None:
        self._run.log({name: value for name, value in values.items() if isinstance(value, int | float)}, step=step)

    def close(self) -> None:
        self._run.finish()


TRACKERS: dict[str, Callable[[Path], Tracker]] = {"tensorboard": TensorBoard, "wandb": Wandb}
"""By the names that users type; each is made for a run's folder."""
