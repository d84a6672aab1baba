"""The settings of a run, kept in its folder as run.json: what a resume may change, and what is printed of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from pizero.configs.presets import Preset
from pizero.files import read_json, write_bytes
from pizero.train.config import TrainConfig
from pizero.train.optim import learning_rate
from pizero.types import UserError
from pizero.workflows.progress import console, tell

FREE = (
    "train.log_every", "train.validate_every", "train.save_every", "train.keep", "train.threads",
    "train.selection.patience", "train.selection.keep_best",
)  # fmt: skip
"""May change when a run is resumed: no loss depends on them. More steps may be requested too."""


def is_finished(folder: Path, step: int, preset: Preset) -> bool:
    """Prints and returns whether the run, whose newest checkpoint is of `step`, is finished. UserError when the
    steps asked for lie behind it, but the run's own do not, or when it is a run of other settings.
    """
    config = preset.train
    if step < config.steps:
        return False
    path = folder / "run.json"
    own = int(read_json(path)["train"]["steps"]) if path.is_file() else step
    if step < own:
        raise UserError(
            f"{folder} is at step {step:,} of {own:,}, and {config.steps:,} steps are requested; give --steps {own} to "
            "continue, or another folder"
        )
    _refuse_other_settings(folder, preset)
    more = "with --resume and more --steps it continues from there"
    console.print(f"{folder} is finished: step {step:,} of {own:,}; {more}")
    return True


def check_settings(folder: Path, preset: Preset, step: int | None) -> None:
    """step: of the checkpoint that a resumed run continues from. What changed since is printed, or a UserError with old
    and new values where losses depend on it.
    """
    if (warning := short_of_peak(preset.train)) is not None:
        tell("warning", warning)
    if step is not None:
        free = _refuse_other_settings(folder, preset)
        if free:
            console.print(f"changed: {changed_text(free)}")
        if "train.steps" in free:
            console.print(_rate_text(preset.train, step, free["train.steps"]))


def _refuse_other_settings(folder: Path, preset: Preset) -> dict[str, tuple[Any, Any]]:
    """UserError, with old and new values, where settings changed on which losses depend. Returns the other changes,
    old and new by name; more steps are one of them.
    """
    path = folder / "run.json"
    if not path.is_file():
        return {}
    changed = changed_settings(read_json(path), _settings(preset))
    free = {name: values for name, values in changed.items() if name in FREE}
    more = changed.get("train.steps")
    if more is not None and more[1] > more[0]:
        free["train.steps"] = more
    refused = {name: values for name, values in changed.items() if name not in free}
    if refused:
        raise UserError(
            f"{folder} was started with other settings: {changed_text(refused)}; give the old values to continue, or "
            "start anew in another folder"
        )
    return free


def write_settings(folder: Path, preset: Preset) -> None:
    """run.json, once nothing refuses the run any more: a resume that was refused has changed nothing."""
    write_bytes(folder / "run.json", json.dumps(_settings(preset), indent=1).encode())


def _settings(preset: Preset) -> dict[str, Any]:
    """As JSON has them."""
    weights = None if preset.task_weights is None else sorted(preset.task_weights.items())
    values = {"model": preset.model.to_json(), "train": preset.train.to_json(), "task_weights": weights}
    return cast("dict[str, Any]", json.loads(json.dumps(values)))


def short_of_peak(config: TrainConfig) -> str | None:
    """What to say where the run ends within its warm-up."""
    if config.steps > config.warmup_steps:
        return None
    reached = learning_rate(config, config.steps - 1)
    return (
        f"{config.steps:,} steps end within the warm-up of {config.warmup_steps:,}: the learning rate reaches "
        f"{reached:.2g} of its {config.learning_rate:.2g}; for a run this short give --warmup-steps"
        f"{f' {config.steps // 10}' if config.steps >= 10 else ''}"
    )


def _rate_text(config: TrainConfig, step: int, steps: Any) -> str:
    before, now = (learning_rate(dataclasses.replace(config, steps=count), step) for count in steps)
    return (
        f"the learning rate follows the schedule of {config.steps:,} steps from here on: {now:.2g} at step {step:,}, "
        f"where that of {steps[0]:,} has {before:.2g}"
    )


def changed_settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """(old value, new one) of what `new` has otherwise, by dotted name; what `old` lacks does not count."""
    pairs = ((name, (value, _at(new, name))) for name, value in _flat(old))
    return {name: (value, now) for name, (value, now) in pairs if now != value}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by dotted name."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(cast("dict[str, Any]", value), f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _at(values: Any, name: str) -> Any:
    """The setting, or group of settings, of a dotted name; None where there is none."""
    for part in name.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values


def changed_text(changed: Mapping[str, tuple[Any, Any]]) -> str:
    """What `changed_settings` found, in words."""
    shown = [
        f"{name.removeprefix('train.')} was {_value(old)}, now {_value(new)}" for name, (old, new) in changed.items()
    ]
    return "; ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "")


def _value(value: Any) -> str:
    return f"{value:,}" if type(value) is int else str(value)
