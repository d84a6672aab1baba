"""Any known checkpoint format in, a model or a policy out."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch

from pizero.checkpoints.facts import GivenFacts, make_pipeline, pipeline_facts, unknown
from pizero.checkpoints.files.remote import local_folder
from pizero.checkpoints.format import SIZES, Arch, Facts, Format, StoredCheckpoint
from pizero.checkpoints.lerobot import diffusion as lerobot_diffusion
from pizero.checkpoints.lerobot import plugin as lerobot_plugin
from pizero.checkpoints.lerobot import policy as lerobot
from pizero.checkpoints.models import Network, NetworkConfig, usable_device
from pizero.checkpoints.native import checkpoint as native
from pizero.checkpoints.native.adapters import merge_adapters
from pizero.checkpoints.native.checkpoint import (
    Checkpoint,
    load_example,
    load_robots,
    save_checkpoint,
    torch_dtype,
    verify_example,
)
from pizero.checkpoints.openpi import jax as openpi_jax
from pizero.checkpoints.openpi import torch as openpi_torch
from pizero.checkpoints.refusals import check_no_adapters, refusal
from pizero.checkpoints.transformers import pi0 as transformers_pi0
from pizero.data.embodiments import Embodiment
from pizero.data.fast.codec import FastCodec
from pizero.data.norm_stats import NormStats
from pizero.data.tokenizer import PaligemmaTokenizer
from pizero.engine.fast_sampler import FastSampler
from pizero.engine.fast_writer import FastWriter
from pizero.engine.products import Kernels, check_kernels
from pizero.files import new_folder, read_json, write_bytes
from pizero.model.action_model import ActionSampler
from pizero.model.config import Pi0Config
from pizero.model.pi0 import Pi0
from pizero.model.pi0_fast import Pi0Fast, Pi0FastConfig
from pizero.policy.policy import ModelPolicy
from pizero.policy.real_time import RealTime
from pizero.types import UserError

FORMATS: dict[str, Format] = {
    native.NAME: native, lerobot.NAME: lerobot, lerobot_diffusion.NAME: lerobot_diffusion,
    lerobot_plugin.NAME: lerobot_plugin,
    transformers_pi0.NAME: transformers_pi0, openpi_torch.NAME: openpi_torch, openpi_jax.NAME: openpi_jax,
}  # fmt: skip
"""By the name that users type, in the order in which they are tried."""


def load_model(
    path: str | Path,
    device: str | torch.device = "cpu",
    dtype: str = "float32",
    arch: Arch | str | Path | None = None,
) -> Pi0:
    """The π0 of a checkpoint of any known format, strictly; the format is recognised by the content.

    path: a folder, or a hub id or address as for `remote.local_folder`. dtype: "float32", "bfloat16" or "float16", for
    the large matrices. arch: sizes for a checkpoint whose own config has none, as a Pi0Config, a dictionary,
    or the path of a JSON file; the weights' shapes must agree.
    """
    model = load_network(path, device, dtype, arch)
    if not isinstance(model, Pi0):
        raise UserError(f"{path} holds a {type(model).__name__}, not a π0; load_policy runs it")
    return model


def load_network(
    path: str | Path,
    device: str | torch.device = "cpu",
    dtype: str | None = "float32",
    arch: Arch | str | Path | None = None,
) -> Network:
    """The same for a checkpoint of any model; arch is for a π0 alone. dtype None: as stored."""
    kind = None if dtype is None else torch_dtype(dtype)
    source = read_checkpoint(local_folder(path), arch)
    for note in source.notes:
        warnings.warn(note, stacklevel=2)
    return source.build(device, kind)


def load_policy(
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: str = "float32",
    kernels: Kernels = "auto",
    keep: Sequence[str] = (),
    num_steps: int | None = None,
    seed: int = 0,
    verify: bool = False,
    real_time: RealTime | None = None,
    adapters: str | Path | None = None,
    arch: Arch | str | Path | None = None,
    embodiment: Embodiment | str | None = None,
    norm_stats: NormStats | str | Path | None = None,
    tokenizer: PaligemmaTokenizer | str | Path | None = None,
    codec: FastCodec | str | Path | None = None,
) -> ModelPolicy:
    """The policy of a checkpoint of any known format; path, dtype, arch as for `load_model`.

    embodiment (or its name), norm_stats (or its file, or the folder that holds it; openpi's norm_stats.json too, whose
    mode follows from the model), tokenizer (or its file), codec (or its folder; for a π0-FAST): what the checkpoint has
    not recorded; UserError says what is missing.
    Given all the same, they take the place of the checkpoint's own. The name of one of the robots that a mixture was
    trained for gives that robot with its statistics; without it the first of them is run.
    kernels, keep: as for `FastSampler`; "int8" and "float8" are faster and change the numbers. UserError before weights
    are read where this machine does not have them for this dtype. num_steps, seed, real_time: as for `ModelPolicy`.
    verify: run the stored example first; UserError if it fails or there is none, as with adapters.
    adapters: folder of LoRA adapters that were trained from this checkpoint; they are merged, and bring the robot.
    """
    folder, source = open_checkpoint(path, arch, adapters)
    for note in source.notes:
        warnings.warn(note, stacklevel=2)
    facts = _policy_facts(folder, source, GivenFacts(embodiment, norm_stats, tokenizer, codec))
    pipeline = make_pipeline(source.config, facts)  # before gigabytes are read
    if isinstance(source.config, Pi0Config):
        check_kernels(kernels, usable_device(device), torch_dtype(dtype))
    elif kernels != "auto":
        raise UserError(f"{kernels} kernels are for π0 and π0.5, and {folder} is neither")
    model = source.build(device, torch_dtype(dtype))
    if verify:
        own = pipeline if unknown(source.facts, source.config) else make_pipeline(source.config, source.facts)
        example = load_example(folder) if adapters is None else None
        verify_example(Checkpoint(model, own, example))  # it was stored with the checkpoint's own
    sampler: ActionSampler | Pi0Fast | FastWriter = model
    if isinstance(model, Pi0):
        sampler = FastSampler(model, kernels=kernels, keep=keep, consume=True)
    elif isinstance(model, Pi0Fast):
        sampler = FastWriter(model, consume=True)
    return ModelPolicy(sampler, pipeline, num_steps=num_steps, seed=seed, real_time=real_time)


def load_plain_policy(
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    num_steps: int | None = None,
    arch: Arch | str | Path | None = None,
    embodiment: Embodiment | str | None = None,
) -> ModelPolicy:
    """The same actions without the fast path, in float32: a policy whose layers can be watched as they run."""
    folder, source = open_checkpoint(path, arch)
    pipeline = make_pipeline(source.config, _policy_facts(folder, source, GivenFacts(embodiment)))
    return ModelPolicy(source.build(device, torch.float32), pipeline, num_steps=num_steps, fast=False)


def _policy_facts(folder: Path, source: StoredCheckpoint, given: GivenFacts) -> Facts:
    """The checkpoint's, or those of the robot that is given by its name in a mixture, with what else is given."""
    known, name = source.facts, given.embodiment
    if isinstance(name, str) and name in (robots := load_robots(folder)):
        known = pipeline_facts(robots[name])
    if known.embodiment is not None and known.embodiment.name == name:
        given = replace(given, embodiment=None)
    return given.over(known, source.config)


def open_checkpoint(
    path: str | Path, arch: Arch | str | Path | None = None, adapters: str | Path | None = None
) -> tuple[Path, StoredCheckpoint]:
    """The folder of a checkpoint, and what `read_checkpoint` gives of it. adapters: LoRA's, trained from it; merged."""
    folder = local_folder(path)
    source = read_checkpoint(folder, arch)
    return folder, source if adapters is None else merge_adapters(source, local_folder(adapters))


def read_checkpoint(folder: Path, arch: Arch | str | Path | None = None) -> StoredCheckpoint:
    """The reader's answer; UserError when no format knows the folder. arch: as for `load_model`; without it what the
    folder has in `SIZES`.
    """
    for format in FORMATS.values():
        if format.detect(folder):
            check_no_adapters(folder)
            if arch is None and (folder / SIZES).is_file():
                return _read_with_sizes(folder, format)
            return format.read(folder, None if arch is None else read_arch(arch))
    raise UserError(refusal(folder, lambda path: any(format.detect(path) for format in FORMATS.values())))


def _read_with_sizes(folder: Path, format: Format) -> StoredCheckpoint:
    sizes = read_arch(folder / SIZES)
    try:
        return format.read(folder, sizes)
    except UserError as error:
        raise UserError(f"{error} (sizes of {folder / SIZES})") from error


def record_sizes(folder: Path, writer: Format, config: NetworkConfig) -> bool:
    """Writes `SIZES` beside weights whose own files do not give this config back; whether they do not."""
    try:
        if writer.read(folder, None).config == config:
            return False
    except UserError:
        pass
    if not isinstance(config, Pi0Config | Pi0FastConfig):
        raise UserError("the result has other sizes than the source; nothing is left of it")
    write_bytes(folder / SIZES, (json.dumps({"config": config.to_json()}, indent=1) + "\n").encode())
    return True


def save_model(model: Network, folder: str | Path, format: str = "native") -> None:
    """Writes the model alone, without transforms or an example, in any format that `pizero convert` writes.

    An older native checkpoint in `folder` is replaced; another format needs a new folder.
    """
    if format == native.NAME:
        save_checkpoint(Path(folder), model)
        return
    writer = find_format(format)
    with new_folder(Path(folder)) as partial:
        writer.write(partial, model, Facts())
        record_sizes(partial, writer, model.config)


def find_format(name: str) -> Format:
    """A format by name; UserError lists them."""
    if name not in FORMATS:
        raise UserError(f"unknown checkpoint format {name!r}; expected one of {', '.join(FORMATS)}")
    return FORMATS[name]


def read_arch(arch: Arch | str | Path) -> Arch:
    """Sizes as users give them, or those in a file of them, which `pizero inspect --json` may have written.

    Whose words they are, the format knows.
    """
    if isinstance(arch, Pi0Config | Pi0FastConfig):
        return arch
    values = arch if isinstance(arch, Mapping) else read_json(Path(arch))
    config = values.get("config")
    return cast("Mapping[str, Any]", config) if isinstance(config, Mapping) else values
