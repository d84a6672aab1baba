"""What a resume needs of a sharded training: PyTorch's distributed checkpoint, written beside the steps that follow.

Every rank writes its own parts; any number of ranks, or one process, reads them again. Ranks that have the whole state
keep it in one file instead (`Trainer.save`), which sharded ones read too.
"""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.optim import Optimizer

from pizero.train.distributed import Ranks, local, spread_like, whole
from pizero.types import UserError

SHARDS = "shards"
"""The folder's name inside `training_state`."""


class ShardedSaver:
    """Writes one checkpoint at a time in the background; `finish` waits for it and raises what went wrong."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._pool = ThreadPoolExecutor(1)
        self._waiting: list[Future[Any]] = []

    def start(self, target: Path, state: dict[str, Tensor], write: Callable[[Callable[[Path], None]], None]) -> None:
        """state: this rank's parts, copied before this returns.

        write: called by the first rank in another thread; it writes the checkpoint at `target` and calls its argument
        with the folder into which the shards are to be put.
        """
        self.finish()
        shards = target.with_name(f".{target.name}.{SHARDS}")
        if self._ranks.is_first:
            shutil.rmtree(shards, ignore_errors=True)
        self._ranks.from_first(lambda: target.parent.mkdir(parents=True, exist_ok=True))
        # a clone: DCP's own copy of tensors on the CPU may share their memory
        state = {name: tensor.detach().clone() for name, tensor in state.items()}
        written: Any = async_save(state, checkpoint_id=shards, process_group=self._ranks.control)
        self._waiting = [written]

        def put_into(folder: Path) -> None:
            written.result()  # all ranks' parts are there: the first rank writes their table of contents last
            shards.rename(folder / SHARDS)

        if self._ranks.is_first:
            self._waiting = [self._pool.submit(write, put_into), written]

    def finish(self) -> None:
        """Waits for the checkpoint that is being written; every rank raises when one could not write its part."""
        error: BaseException | None = None
        for future in self._waiting:
            try:
                future.result()
            except (Exception, CheckpointException) as found:
                known = isinstance(found, UserError)
                error = error or (found if known else UserError(f"a checkpoint could not be written ({reason(found)})"))
        self._waiting = []
        self._ranks.raise_together(error)


def gather_state(model: nn.Module, optimizers: Sequence[Optimizer], average: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights, average and optimizer state by name, this rank's parts."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    state = {f"weights.{name}": tensor.detach() for name, tensor in model.state_dict().items()}
    state |= {f"average.{name}": tensor for name, tensor in average.items()}
    for optimizer in optimizers:
        for parameter, values in optimizer.state.items():
            state |= {f"optimizer.{names[parameter]}.{key}": value for key, value in values.items()}
    return state


def read_shards(folder: Path, model: nn.Module, optimizers: Sequence[Optimizer], average: Mapping[str, Tensor]) -> None:
    """Fills model, optimizers and average, in the parts that they have now."""
    state = gather_state(model, (), average)
    parameters = dict(model.named_parameters())
    owner = {p: optimizer for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    try:
        stored: Any = FileSystemReader(folder).read_metadata().state_dict_metadata
        for key in stored:
            if key.startswith("optimizer."):
                name, _, field = key.removeprefix("optimizer.").rpartition(".")
                parameter = parameters[name]
                like = parameter.detach() if stored[key].size == parameter.shape else torch.empty(stored[key].size)
                state[key] = owner[parameter].state[parameter][field] = torch.empty_like(like)
        load(state, checkpoint_id=folder)
    except (OSError, KeyError, EOFError, pickle.UnpicklingError, CheckpointException) as error:
        raise UserError(
            f"{folder} cannot be read ({reason(error)}); delete its checkpoint to continue from the one before"
        ) from None


@torch.no_grad()
def take_parts(saved: Mapping[str, Any], model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
    """Weights and optimizer state from the state.pt of ranks that had all of them, in the parts that this rank has."""
    for name, tensor in model.state_dict().items():
        local(tensor).copy_(local(spread_like(saved["weights"][name], tensor)))
    for optimizer, values in zip(optimizers, saved["optimizers"], strict=True):
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for index, fields in values["state"].items():
            parameter = parameters[index]
            for field, value in fields.items():
                part = spread_like(value, parameter.detach()) if value.shape == parameter.shape else value
                optimizer.state[parameter][field] = part


def whole_weights(model: nn.Module, ranks: Ranks) -> dict[str, Tensor]:
    """All weights on the host of the first rank, copied one by one; nothing on the others."""
    weights: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        full = whole(tensor)
        if ranks.is_first:
            weights[name] = full.to("cpu", copy=True)
    return weights


def reason(error: BaseException) -> str:
    """An error in one line; of DCP's, which lists every rank's traceback, the first one's cause."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    return " ".join(str(error).split())[:200] or type(error).__name__
