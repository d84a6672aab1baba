"""Any known checkpoint format in, a model out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from pizero.checkpoints.models import Network
from pizero.checkpoints.native import is_native, load_checkpoint, save_checkpoint, torch_dtype
from pizero.checkpoints.openpi_torch import config_from_arch, is_openpi_torch, load_openpi_torch
from pizero.model.config import Pi0Config
from pizero.model.pi0 import Pi0
from pizero.model.precision import cast_weights
from pizero.types import UserError

Arch = Pi0Config | Mapping[str, Any] | str | Path


def load_model(
    path: str | Path, device: str | torch.device = "cpu", dtype: str = "float32", arch: Arch | None = None
) -> Pi0:
    """The π0 of a native or openpi-torch checkpoint folder, strictly; the format is told by the content.

    dtype: "float32", "bfloat16" or "float16", for the large matrices. arch: sizes for a checkpoint whose own config
    does not tell them, as a Pi0Config, a dictionary, or the path of a JSON file; the weights' shapes must agree.
    """
    model = load_network(path, device, dtype, arch)
    if not isinstance(model, Pi0):
        raise UserError(f"{path} holds a {type(model).__name__}, not a π0; load_policy runs it")
    return model


def load_network(
    path: str | Path, device: str | torch.device = "cpu", dtype: str = "float32", arch: Arch | None = None
) -> Network:
    """The same for a checkpoint of any model; arch is for a π0 alone."""
    folder, kind = Path(path), torch_dtype(dtype)
    config = None if arch is None else _config(arch)
    if is_native(folder):
        model = load_checkpoint(folder, device).model
        if config is not None and config != model.config:
            raise UserError(f"{folder} knows its own sizes and they differ from arch; leave arch out")
    elif _is_openpi_torch(folder):
        model = load_openpi_torch(folder, config)
    else:
        raise UserError(f"{folder} holds no checkpoint of a known format (native, openpi-torch): {_found(folder)}")
    return cast_weights(model, kind).to(device).eval()


def save_model(model: Network, folder: str | Path, format: str = "native") -> None:
    """Writes the model alone, without transforms or an example; an older checkpoint in `folder` is replaced."""
    if format != "native":
        raise UserError(f"saving as {format!r} is not supported yet; expected 'native'")
    save_checkpoint(Path(folder), model)


def _is_openpi_torch(folder: Path) -> bool:
    try:
        return is_openpi_torch(folder)
    except SafetensorError as error:
        raise UserError(f"the weights in {folder} cannot be read ({error}); copy the checkpoint again") from error


def _config(arch: Arch) -> Pi0Config:
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
