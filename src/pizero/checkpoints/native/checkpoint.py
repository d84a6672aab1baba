"""pizero's own checkpoint: a self-contained folder. Loading needs its path and nothing else.

config.json                                    format, version, model, sizes and switches
model.safetensors                              the weights, under the names of the modules
pipeline.json norm_stats.json tokenizer.model  what turns robot dictionaries into tensors and back
fast_codec/                                    the codec of a model that writes actions as tokens
facts.json                                     in its place where some of that is unknown
robots/<name>/                                 pipelines of the other robots that it was trained for
example.npz                                    an observation and the action chunk that it must give
training_state/                                the trainer's; neither read nor written here
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

import torch

from pizero.checkpoints.facts import load_facts, make_pipeline, pipeline_facts, save_facts, unknown
from pizero.checkpoints.files.safetensors_file import WEIGHTS, SafetensorsWeights, write_safetensors
from pizero.checkpoints.format import Arch, Facts, StoredCheckpoint
from pizero.checkpoints.models import MODELS, Network, NetworkConfig, model_name
from pizero.checkpoints.native.adapters import PlainState
from pizero.checkpoints.native.example import Example, reproduce
from pizero.checkpoints.openpi.folder import config_from_arch
from pizero.data.pipeline import Pipeline
from pizero.files import read_json, values_of
from pizero.types import UserError

NAME = "native"
FORMAT, VERSION = "pizero", 1
CONFIG, EXAMPLE, PIPELINE, ROBOTS = "config.json", "example.npz", "pipeline.json", "robots"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Checkpoint:
    """The parts of a native checkpoint; those that it was saved without are None."""

    model: Network
    pipeline: Pipeline | None
    example: Example | None


def detect(folder: Path) -> bool:
    """Recognised by the format that config.json names."""
    try:
        return read_json(folder / CONFIG).get("format") == FORMAT
    except UserError:
        return False


def read(folder: Path, arch: Arch | None = None) -> StoredCheckpoint:
    """Sizes and facts; `arch` must agree with them."""
    source = _weights(folder, arch)
    if not (folder / PIPELINE).is_file():
        return replace(source, facts=load_facts(folder))
    pipeline = Pipeline.load(folder)
    facts = pipeline_facts(pipeline)
    if make_pipeline(source.config, facts).to_json() != pipeline.to_json():
        raise UserError(f"{folder}: {PIPELINE} and {CONFIG} do not fit together; copy the checkpoint again")
    return replace(source, facts=facts)


def write(folder: Path, model: Network, facts: Facts) -> None:
    """The pipeline where all of it is known, else the facts that are."""
    complete = not unknown(facts, model.config)
    _write(folder, model, make_pipeline(model.config, facts) if complete else None, None)
    if not complete:
        save_facts(facts, folder)


def save_checkpoint(
    folder: Path,
    model: Network,
    pipeline: Pipeline | None = None,
    example: Example | None = None,
    extra: Callable[[Path], None] | None = None,
    robots: Sequence[Pipeline] = (),
    widen: bool = False,
) -> None:
    """Writes the folder as a whole; an older checkpoint at its name is replaced. `extra(folder)` may add files.

    robots: pipelines of other robots than `pipeline`'s, for `load_policy(embodiment=...)`. LoRA adapters are merged.
    widen: bfloat16 matrices beside float32 ones become float32.

    The folder is written beside its place and renamed. A crash leaves either checkpoint at `folder`, or the older one
    beside it as `.<name>.old`, which the next save puts back first. UserError when `folder` holds anything else than a
    checkpoint.
    """
    folder = folder.absolute()
    new, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    _put_back(old, folder)
    if folder.exists() and not detect(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not a checkpoint; choose another folder, it will not be overwritten")
    try:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        _write(new, model, pipeline, example, widen)
        for other in robots:
            (new / ROBOTS / quote(other.embodiment.name, safe="")).mkdir(parents=True)
            other.save(new / ROBOTS / quote(other.embodiment.name, safe=""))
        if extra is not None:
            extra(new)
        _sync_tree(new)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
        _sync(folder.parent)
    finally:
        _put_back(old, folder)
        shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(folder: Path, device: str | torch.device = "cpu", dtype: str | None = None) -> Checkpoint:
    """The checkpoint in `folder`, strictly; `dtype` as for `load_model`, or None for that of the file."""
    kind = None if dtype is None else torch_dtype(dtype)
    return Checkpoint(
        model=_weights(folder).build(device, kind),
        pipeline=Pipeline.load(folder) if (folder / PIPELINE).is_file() else None,
        example=load_example(folder),
    )


def load_example(folder: Path) -> Example | None:
    """The stored example, if there is one."""
    return Example.load(folder / EXAMPLE) if (folder / EXAMPLE).is_file() else None


def load_robots(folder: Path) -> dict[str, Pipeline]:
    """Pipelines of the other robots, by the embodiment's name."""
    pipelines = [Pipeline.load(path) for path in sorted((folder / ROBOTS).glob("*")) if path.is_dir()]
    return {pipeline.embodiment.name: pipeline for pipeline in pipelines}


def verify_example(checkpoint: Checkpoint) -> float:
    """Runs the stored example again and returns the relative error; UserError when the actions are others now."""
    if checkpoint.pipeline is None or checkpoint.example is None:
        raise UserError("the checkpoint has no example to verify: it was saved without a pipeline or without one")
    return reproduce(checkpoint.model, checkpoint.pipeline, checkpoint.example)


def read_config(folder: Path) -> NetworkConfig:
    """Sizes and switches of the checkpoint in `folder`; UserError when it is not one, or of an unknown version."""
    if not folder.is_dir():
        old = folder.absolute().with_name(f".{folder.name}.old")
        hint = f"; an interrupted save left its checkpoint in {old}: rename it" if old.is_dir() else ""
        raise UserError(f"no checkpoint folder at {folder}{hint}")
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(f"{folder} is not a {FORMAT} checkpoint: it has no {CONFIG}")
    values = read_json(path)
    if values.get("format") != FORMAT:
        raise UserError(f"{path} does not say that its format is {FORMAT!r}; the folder is no {FORMAT} checkpoint")
    if values.get("version") != VERSION:
        raise UserError(f"{path} has version {values.get('version')!r}, this release reads {VERSION}; update pizero")
    name = values.get("model")
    if not isinstance(name, str) or name not in MODELS:
        raise UserError(f"{path} holds a model {name!r}, expected one of {', '.join(MODELS)}")
    if not isinstance(values.get("config"), dict):
        raise UserError(f"{path} has no 'config' with sizes; copy the checkpoint again")
    with values_of(path):
        return MODELS[name][0].from_json(values["config"])


def torch_dtype(name: str) -> torch.dtype:
    """The dtype of a name that users type."""
    if name not in DTYPES:
        raise UserError(f"unknown dtype {name!r}; expected one of {', '.join(DTYPES)}")
    return DTYPES[name]


def _weights(folder: Path, arch: Arch | None = None) -> StoredCheckpoint:
    config = read_config(folder)
    if arch is not None and (config_from_arch(arch) if isinstance(arch, Mapping) else arch) != config:
        raise UserError(f"{folder} knows its own sizes and they differ from arch; leave arch out")
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder} has no {WEIGHTS}; the checkpoint is not complete")
    weights = SafetensorsWeights(folder, WEIGHTS)
    return StoredCheckpoint(NAME, config, lambda: iter(weights.items()), notes=weights.notes)


def _write(
    folder: Path, model: Network, pipeline: Pipeline | None, example: Example | None, widen: bool = False
) -> None:
    config = model.config
    values = {"format": FORMAT, "version": VERSION, "model": model_name(config), "config": config.to_json()}
    (folder / CONFIG).write_text(json.dumps(values, indent=2) + "\n")
    write_safetensors(folder / WEIGHTS, PlainState(model, widen))
    if pipeline is not None:
        pipeline.save(folder)
    if example is not None:
        example.save(folder / EXAMPLE)


def _put_back(old: Path, folder: Path) -> None:
    """After a save that stopped between its two renames the older checkpoint gets its name again."""
    if not folder.exists() and old.exists():
        old.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _sync_tree(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        _sync(path)


def _sync(path: Path) -> None:
    """Waits until a file or a folder's list of names is on the disk: a rename must not overtake the content."""
    if os.name != "posix" and path.is_dir():
        return  # Windows opens no folder
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
