"""One rank of the trainings that a JSON file lists, one after the other: torchrun rank_runs.py RUNS.json DATASET."""

from __future__ import annotations

import dataclasses
import json
import resource
import sys
from pathlib import Path
from typing import Any

import pytest
import torch._dynamo  # what the first optimizer imports  # noqa: F401
from train_helpers import nano_fast_preset, nano_model, nano_preset

from pizero.configs.language import with_language
from pizero.train.config import GradientConfig, LoraConfig, PartsConfig
from pizero.train.trainer import Trainer
from pizero.types import UserError
from pizero.workflows.measures import MeasureConfig
from pizero.workflows.start import Initialization
from pizero.workflows.train import Runtime, train_policy
from pizero.workflows.training_data import DataOptions

OPTIONS = {"initial": Initialization, "data": DataOptions, "runtime": Runtime, "measure": MeasureConfig}


def train(dataset: Path, run: dict[str, Any]) -> None:
    """run: `output` folder; `changes` of nano_preset; `options` of train_policy; `stop`, a step it does not take;
    `full_disk`, a step from which on files cannot grow beyond 20 kB.
    """
    changes = dict(run.get("changes", {}))
    if "gradient" in changes:
        changes["gradient"] = GradientConfig(**changes["gradient"])
    if "lora" in changes:
        changes["parts"] = PartsConfig(lora=LoraConfig(**changes.pop("lora")))
    if "freeze" in changes:
        changes["parts"] = PartsConfig(freeze=tuple(changes.pop("freeze")))
    options = dict(run.get("options", {}))
    for name, kind in OPTIONS.items():
        options[name] = kind(**options.get(name, {}))
    preset = nano_fast_preset(**changes) if run.get("fast") else nano_preset(**changes)
    if run.get("pi05"):
        preset = dataclasses.replace(preset, model=nano_model(True, prompt_length=64))
    if run.get("language"):
        preset = with_language(dataclasses.replace(preset, codec_size=300), "openpi", fast=True, insulation=True)
    original, stop = Trainer.train_step, run.get("stop")

    def step(self: Trainer, batch: Any) -> Any:
        if self.step == run.get("full_disk"):
            self._checkpoints.finish()  # the one before is written while the training goes on
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        if self.step == stop:
            raise KeyboardInterrupt
        return original(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", step)
        try:
            train_policy(dataset, Path(run["output"]), preset, **options)
            assert stop is None
        except KeyboardInterrupt:
            assert stop is not None


def train_all(runs: list[dict[str, Any]], dataset: Path) -> None:
    """One after the other; a UserError is a line, and ends the process with 2."""
    for run in runs:
        try:
            train(dataset, run)
        except UserError as error:
            print(f"UserError: {error}", file=sys.stderr)
            raise SystemExit(2) from None


if __name__ == "__main__":
    train_all(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
