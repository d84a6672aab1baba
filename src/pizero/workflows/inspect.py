"""The architecture of a preset, a released model or a checkpoint."""

from __future__ import annotations

import json as json_module
from pathlib import Path

from rich.console import Console

from pizero.checkpoints.files.remote import local_folder
from pizero.checkpoints.load import read_checkpoint
from pizero.configs.presets import PRESETS, get_preset
from pizero.files import write_bytes
from pizero.model.config import Pi0Config
from pizero.report.architecture import describe, print_architecture
from pizero.report.mask import mask_picture
from pizero.types import UserError

FULL_SIZE = {"pi0": Pi0Config.pi0, "pi05": Pi0Config.pi05}


def model_config(name: str, arch: Path | None = None) -> Pi0Config:
    """Sizes and switches of "pi0", "pi05", a preset, or the checkpoint at a path. arch: as for `load_model`."""
    if name in FULL_SIZE:
        return FULL_SIZE[name]()
    config = get_preset(name).model if name in PRESETS else read_checkpoint(local_folder(name), arch).config
    if not isinstance(config, Pi0Config):
        raise UserError(f"{name} holds a diffusion policy; inspect shows π0 and π0.5")
    return config


def inspect(
    name: str, console: Console, *, cameras: int | None, prompt_tokens: int | None, num_steps: int,
    json: Path | None, mask: Path | None, arch: Path | None = None,
) -> None:  # fmt: skip
    """Prints the table; writes the same as JSON and the picture of the attention mask where asked."""
    config = model_config(name, arch)
    architecture = describe(config, num_cameras=cameras, prompt_tokens=prompt_tokens, num_steps=num_steps)
    print_architecture(architecture, console)
    if json is not None:
        write_bytes(json, (json_module.dumps(architecture.to_json(), indent=1) + "\n").encode())
        console.print(f"JSON: {json}")
    if mask is not None:
        mask_picture(config, mask)
        console.print(f"attention mask: {mask}")
