"""The checkpoints of a run: a native one, with what a resume needs in its `training_state` folder.

training_state/
    train.json    the settings
    state.pt      step, weights, optimizers; from one process, and from ranks that all have the whole state
    shards/       in its place the parts of ranks that share the state, for any number of ranks; progress.pt: the rest
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from pizero.checkpoints.files.safetensors_file import SafetensorsWeights
from pizero.checkpoints.models import Network, empty_model
from pizero.checkpoints.native import adapters
from pizero.checkpoints.native.checkpoint import Example, save_checkpoint
from pizero.data.mark import Mark, differences
from pizero.data.pipeline import Pipeline
from pizero.model.precision import matrix_dtypes
from pizero.train.config import TrainConfig
from pizero.train.distributed import Placement
from pizero.train.metrics import Tracker
from pizero.train.optim import WeightAverage, product_context
from pizero.train.parts import choose_parts
from pizero.train.run_folder import checkpoint_folder, list_checkpoints, note_best, prune
from pizero.train.seeds import SEED_RULE, SeedRule
from pizero.train.selection import Selection
from pizero.train.sharded_state import (
    SHARDS,
    ShardedSaver,
    gather_state,
    read_shards,
    reason,
    take_parts,
    whole_weights,
)
from pizero.types import UserError


@dataclass(frozen=True)
class RunOutput:
    """Where a training writes to, and what its checkpoints hold beside its weights and settings."""

    folder: Path
    pipeline: Pipeline
    robots: Sequence[Pipeline] = ()
    """Pipelines of the other robots of a mixture."""
    make_example: Callable[[Network], Example] | None = None
    data: Sequence[Mark] = ()
    """What distinguishes the training's datasets from others, which a resume refuses; none where nobody says."""
    trackers: Sequence[Tracker] = ()
    """Take the numbers too that go into metrics.jsonl."""


@dataclass
class Checkpoints:
    """Saves and restores a training. Those of ranks that divide the state are written while the training continues, and
    `finish` waits for the last one.
    """

    output: RunOutput
    placement: Placement
    config: TrainConfig
    model: Network
    optimizers: Sequence[torch.optim.Optimizer]
    average: WeightAverage
    selection: Selection
    seed_rule: SeedRule = SEED_RULE
    """The run's own, which a resume takes from its checkpoint."""

    def __post_init__(self) -> None:
        self._sharded = ShardedSaver(self.placement.ranks) if self.placement.in_shards else None

    def save(self, step: int, skipped_steps: int, losses: Sequence[float]) -> Path:
        """losses: of the steps since the last line of the log."""
        target = checkpoint_folder(self.output.folder, step)
        progress = {
            "step": step, "selection": self.selection.state(), "skipped_steps": skipped_steps,
            "losses": list(losses), "seed_rule": self.seed_rule, "data": [dict(mark) for mark in self.output.data],
        }  # fmt: skip
        if self._sharded is not None:
            self._save_sharded(target, progress, self._sharded)
            return target
        state = progress | {
            "weights": self.model.state_dict(),  # keeps the weights while the average takes their place
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }

        def write() -> None:
            with self.average.applied():
                self._write(target, self.model, progress, lambda folder: torch.save(state, folder / "state.pt"))

        self.placement.ranks.by_first(write)
        return target

    def finish(self) -> None:
        if self._sharded is not None:
            self._sharded.finish()

    def resume(self) -> tuple[int, int, list[float]] | None:
        """Restores the newest complete checkpoint; returns what `save` was given, or None when there is none.

        UserError for other data than the run's, and for a checkpoint that was cut off.
        """
        found = self.placement.ranks.from_first(lambda: list_checkpoints(self.output.folder))
        if not found:
            return None
        folder = found[-1] / "training_state"
        sharded = (folder / SHARDS).is_dir()
        file = folder / ("progress.pt" if sharded else "state.pt")
        try:
            state = torch.load(file, map_location=self.placement.device, weights_only=True)
        except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
            before = f"continue from step {int(found[-2].name)}" if len(found) > 1 else "begin anew: it is the only one"
            raise UserError(f"{file} cannot be read ({reason(error)}); delete {found[-1]} to {before}") from error
        self._check_data(found[-1], state.get("data", ()))
        if sharded:
            read_shards(folder / SHARDS, self.model, self.optimizers, self.average.tensors())
        else:
            self._restore(found[-1], state)
        self.seed_rule = state.get("seed_rule", "sum")
        if "selection" in state:
            self.selection.load(state["selection"])
        return int(state["step"]), int(state.get("skipped_steps", 0)), state.get("losses", [])

    def whole_model(self) -> Network:
        """The model; where it is in shards, on the first rank a copy on the host, and on the others an empty one."""
        if self._sharded is None:
            return self.model
        weights, model = whole_weights(self.model, self.placement.ranks), empty_model(self.model.config)
        choose_parts(model, self.config.parts)
        if self.placement.ranks.is_first:
            model.load_state_dict(weights, assign=True)
        return model

    # ---------------------------------------------------------------- inside

    def _check_data(self, checkpoint: Path, before: Sequence[Mark]) -> None:
        changed = differences(before, self.output.data) if before and self.output.data else []
        if changed:
            raise UserError(
                f"{self.output.folder} was trained on other data; changed: {', '.join(changed)}. Give the data that it "
                f"was started with, or begin a new run with these weights: --checkpoint {checkpoint} and another "
                "--output"
            )

    def _save_sharded(self, target: Path, progress: Mapping[str, Any], saver: ShardedSaver) -> None:
        """Every rank's parts as they are now, and on the first rank the whole average; the writing continues later."""
        saver.finish()
        with self.average.applied():
            model = self.whole_model()

        def write(put_shards: Callable[[Path], None]) -> None:
            def write_state(folder: Path) -> None:
                torch.save(progress, folder / "progress.pt")
                put_shards(folder)

            self._write(target, model, progress, write_state)

        saver.start(target, gather_state(self.model, self.optimizers, self.average.tensors()), write)

    def _write(
        self, target: Path, model: Network, progress: Mapping[str, Any], write_state: Callable[[Path], None]
    ) -> None:
        """With LoRA the weights are merged, and `adapters` holds what was trained alone. Older checkpoints go."""
        output = self.output

        def write_more(folder: Path) -> None:
            state = folder / "training_state"
            state.mkdir()
            write_state(state)
            (state / "train.json").write_text(json.dumps(self.config.to_json(), indent=1))
            if self.config.parts.lora is not None:
                adapters.save_adapters(folder / adapters.FOLDER, model, output.pipeline)

        with sampling(model):
            example = output.make_example(model) if output.make_example is not None else None
        try:
            target.parent.mkdir(exist_ok=True)
            save_checkpoint(target, model, output.pipeline, example, write_more, output.robots, widen=True)
        except (OSError, RuntimeError, SafetensorError) as error:  # torch.save has a RuntimeError for a full disk
            raise UserError(
                f"the checkpoint of step {progress['step']} could not be written ({reason(error)}); the ones before "
                "are intact: make room, then continue with --resume"
            ) from error
        kept, best = self.config.selection, progress["selection"]
        if kept.keep_best and best["best_step"] == progress["step"]:
            note_best(output.folder, progress["step"], kept.metric, best["best"])
        prune(output.folder, self.config.keep, best["best_step"] if kept.keep_best else None)

    def _restore(self, checkpoint: Path, state: Mapping[str, Any]) -> None:
        """From a state.pt; the weights of its checkpoint, or of its adapters, are the average."""
        with_adapters = self.config.parts.lora is not None
        self.average.load(
            SafetensorsWeights(checkpoint / adapters.FOLDER, adapters.WEIGHTS)
            if with_adapters else SafetensorsWeights(checkpoint)
        )  # fmt: skip
        if self._sharded is not None:
            take_parts(state, self.model, self.optimizers)
            return
        self.model.load_state_dict(state["weights"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)


def sampling(model: nn.Module) -> AbstractContextManager[Any]:
    """For sampling from a model as it is, where it is: frozen bfloat16 weights beside float32 ones need autocast."""
    mixed = len(matrix_dtypes(model)) > 1
    return product_context("mixed", next(model.parameters()).device) if mixed else nullcontext()
