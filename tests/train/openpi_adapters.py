"""A checkpoint in openpi's JAX format that has LoRA adapters."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from pizero.checkpoints.convert import convert
from pizero.checkpoints.files.orbax import ArrayToWrite, OrbaxArrays, write_arrays
from pizero.checkpoints.load import read_checkpoint
from pizero.checkpoints.openpi import jax as openpi_jax


def with_openpi_adapters(folder: Path, base: Path) -> Path:
    """The base in openpi's JAX format, with adapters of the ranks of `LoraConfig()`."""
    convert(base, folder, "openpi-jax")
    config = read_checkpoint(base).config
    generator, arrays = torch.Generator().manual_seed(0), OrbaxArrays(folder / "params")
    values = {name: arrays.read(name) for name in arrays}
    for row in openpi_jax.rows_of(config):
        shape, rank = row.stored_shape, 32 if ".expert." in row.ours[0] else 16
        for name in row.adapters:
            size = (*shape[:-1], rank) if name.endswith("a") else (*shape[:-2], rank, shape[-1])
            values[name] = torch.randn(size, generator=generator) * 0.1
    shutil.rmtree(folder / "params")
    written = [ArrayToWrite(n, tuple(a.shape), a.dtype, lambda a=a: [a], split=False) for n, a in values.items()]
    write_arrays(folder / "params", written)
    return folder
