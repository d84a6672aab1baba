"""Any known checkpoint format in, a model out."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch

from pizero.checkpoints import lerobot_diffusion, openpi_jax, openpi_torch
from pizero.checkpoints.keymap import fill
from pizero.checkpoints.models import Network, make_model
from pizero.checkpoints.native import is_native, load_checkpoint, save_checkpoint, torch_dtype
from pizero.checkpoints.openpi_torch import config_from_arch
from pizero.checkpoints.source import Arch, Format, Source
from pizero.model.config import Pi0Config
from pizero.model.pi0 import Pi0
from pizero.types import UserError

FORMATS: dict[str, Format] = {
    "lerobot-diffusion": lerobot_diffusion, "openpi-torch": openpi_torch, "openpi-jax": openpi_jax
}  # fmt: skip
"""Foreign formats by the name that users type, in the order in which they are tried."""


def load_model(
    path: str | Path,
    device: str | torch.device = "cpu",
    dtype: str = "float32",
    arch: Arch | str | Path | None = None,
) -> Pi0:
    """The π0 of a checkpoint folder of any known format, strictly; the format is told by the content.

    dtype: "float32", "bfloat16" or "float16", for the large matrices. arch: sizes for a checkpoint whose own config
    does not tell them, as a Pi0Config, a dictionary, or the path of a JSON file; the weights' shapes must agree.
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
    folder, kind = Path(path), None if dtype is None else torch_dtype(dtype)
    config = None if arch is None else _config(arch)
    if is_native(folder):
        model = load_checkpoint(folder, device, dtype).model
        if config is not None and config != model.config:
            raise UserError(f"{folder} knows its own sizes and they differ from arch; leave arch out")
        return model
    source = read_source(folder, config)
    for note in source.notes:
        warnings.warn(note, stacklevel=2)
    with torch.device("meta"):
        model = make_model(source.config)
    fill(model, source.tensors(), device, kind)
    return model.eval()


def read_source(folder: Path, arch: Arch | None = None) -> Source:
    """The reader's answer for a checkpoint that is not native; UserError when no format knows it."""
    for format in FORMATS.values():
        if format.detect(folder):
            return format.read(folder, arch)
    raise UserError(f"{folder} holds no checkpoint of a known format (native, {', '.join(FORMATS)}): {_found(folder)}")


def save_model(model: Network, folder: str | Path, format: str = "native") -> None:
    """Writes the model alone, without transforms or an example; an older checkpoint in `folder` is replaced."""
    if format != "native":
        raise UserError(f"saving as {format!r} is not supported yet; expected 'native'")
    save_checkpoint(Path(folder), model)


def _config(arch: Arch | str | Path) -> Pi0Config:
    if isinstance(arch, Pi0Config):
        return arch
    if isinstance(arch, Mapping):
        return config_from_arch(arch)
    try:
        values = json.loads(Path(arch).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"arch {arch} cannot be read as JSON: {error}") from error
    return config_from_arch(values)


def _found(folder: Path, shown: int = 8) -> str:
    if not folder.exists():
        return "there is nothing at this path"
    if not folder.is_dir():
        return "it is a file; give the folder"
    names = sorted(entry.name for entry in folder.iterdir())
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return f"found {', '.join(names[:shown])}{more}" if names else "the folder is empty"
