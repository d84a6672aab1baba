"""The architecture of a preset, a released model or a checkpoint."""

from __future__ import annotations

import json as json_module
from pathlib import Path

from rich.console import Console

from pizero.baseline.config import BaselineConfig
from pizero.checkpoints.files.remote import local_folder
from pizero.checkpoints.load import read_checkpoint
from pizero.configs.presets import PRESETS, get_preset
from pizero.files import write_bytes
from pizero.model.config import Pi0Config
from pizero.model.pi0_fast import Pi0FastConfig
from pizero.report.architecture import describe, print_architecture
from pizero.report.fast_architecture import describe_fast
from pizero.report.mask import mask_picture
from pizero.types import UserError

FULL_SIZE = {"pi0": Pi0Config.pi0, "pi05": Pi0Config.pi05, "pi0-fast": Pi0FastConfig}


def model_config(name: str, arch: Path | None = None) -> Pi0Config | Pi0FastConfig:
    """Of "pi0", "pi05", "pi0-fast", a preset, or the checkpoint at a path. arch: as for `load_model`."""
    if name in FULL_SIZE:
        return FULL_SIZE[name]()
    config = get_preset(name).model if name in PRESETS else read_checkpoint(local_folder(name), arch).config
    if isinstance(config, BaselineConfig):
        raise UserError(f"{name} holds a diffusion policy; inspect shows π0, π0.5 and π0-FAST")
    return config


def inspect(
    name: str, console: Console, *, cameras: int | None, prompt_tokens: int | None, num_steps: int | None,
    json: Path | None, mask: Path | None, arch: Path | None = None,
) -> None:  # fmt: skip
    """Prints the table; writes the same as JSON and the picture of the attention mask where asked."""
    config = model_config(name, arch)
    if isinstance(config, Pi0FastConfig):
        if num_steps is not None:
            raise UserError(f"num_steps: {name} writes tokens, it has no integration steps; leave it out")
        architecture = describe_fast(config, num_cameras=cameras, prompt_tokens=prompt_tokens)
    else:
        steps = config.default_num_steps if num_steps is None else num_steps
        architecture = describe(config, num_cameras=cameras, prompt_tokens=prompt_tokens, num_steps=steps)
    print_architecture(architecture, console)
    if json is not None:
        write_bytes(json, (json_module.dumps(architecture.to_json(), indent=1) + "\n").encode())
        console.print(f"JSON: {json}")
    if mask is not None:
        mask_picture(config, mask)
        console.print(f"attention mask: {mask}")
