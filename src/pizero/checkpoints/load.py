"""Any known checkpoint format in, a model out."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch

from pizero.checkpoints.files.remote import local_folder
from pizero.checkpoints.lerobot import diffusion as lerobot_diffusion
from pizero.checkpoints.lerobot import policy as lerobot
from pizero.checkpoints.models import Network
from pizero.checkpoints.native import checkpoint as native
from pizero.checkpoints.native.adapters import merge_adapters
from pizero.checkpoints.native.checkpoint import save_checkpoint, torch_dtype
from pizero.checkpoints.openpi import jax as openpi_jax
from pizero.checkpoints.openpi import torch as openpi_torch
from pizero.checkpoints.refusals import check_no_adapters, refusal
from pizero.checkpoints.source import Arch, Facts, Format, Source
from pizero.checkpoints.transformers import pi0 as transformers_pi0
from pizero.files import new_folder, read_json
from pizero.model.config import Pi0Config
from pizero.model.pi0 import Pi0
from pizero.types import UserError

FORMATS: dict[str, Format] = {
    native.NAME: native, lerobot.NAME: lerobot, lerobot_diffusion.NAME: lerobot_diffusion,
    transformers_pi0.NAME: transformers_pi0, openpi_torch.NAME: openpi_torch, openpi_jax.NAME: openpi_jax,
}  # fmt: skip
"""By the name that users type, in the order in which they are tried."""


def load_model(
    path: str | Path,
    device: str | torch.device = "cpu",
    dtype: str = "float32",
    arch: Arch | str | Path | None = None,
) -> Pi0:
    """The π0 of a checkpoint of any known format, strictly; the format is told by the content.

    path: a folder, or a hub id or address as for `remote.local_folder`. dtype: "float32", "bfloat16" or "float16", for
    the large matrices. arch: sizes for a checkpoint whose own config does not tell them, as a Pi0Config, a dictionary,
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
    source = read_source(local_folder(path), arch)
    for note in source.notes:
        warnings.warn(note, stacklevel=2)
    return source.build(device, kind)


def open_checkpoint(
    path: str | Path, arch: Arch | str | Path | None = None, adapters: str | Path | None = None
) -> tuple[Path, Source]:
    """The folder of a checkpoint, and what `read_source` gives of it. adapters: LoRA's, trained from it; merged."""
    folder = local_folder(path)
    source = read_source(folder, arch)
    return folder, source if adapters is None else merge_adapters(source, local_folder(adapters))


def read_source(folder: Path, arch: Arch | str | Path | None = None) -> Source:
    """The reader's answer; UserError when no format knows the folder. arch: as for `load_model`."""
    sizes = None if arch is None else read_arch(arch)
    for format in FORMATS.values():
        if format.detect(folder):
            check_no_adapters(folder)
            return format.read(folder, sizes)
    raise UserError(refusal(folder, lambda path: any(format.detect(path) for format in FORMATS.values())))


def save_model(model: Network, folder: str | Path, format: str = "native") -> None:
    """Writes the model alone, without transforms or an example, in any format that `pizero convert` writes.

    An older native checkpoint in `folder` is replaced; another format needs a new folder.
    """
    if format == native.NAME:
        save_checkpoint(Path(folder), model)
        return
    with new_folder(Path(folder)) as partial:
        find_format(format).write(partial, model, Facts())


def find_format(name: str) -> Format:
    """A format by name; UserError lists them."""
    if name not in FORMATS:
        raise UserError(f"unknown checkpoint format {name!r}; expected one of {', '.join(FORMATS)}")
    return FORMATS[name]


def read_arch(arch: Arch | str | Path) -> Arch:
    """Sizes as users give them, or those in a file of them, which `pizero inspect --json` may have written.

    Whose words they are, the format knows.
    """
    if isinstance(arch, Pi0Config):
        return arch
    values = arch if isinstance(arch, Mapping) else read_json(Path(arch))
    config = values.get("config")
    return cast("Mapping[str, Any]", config) if isinstance(config, Mapping) else values
