"""Opens whatever runs: a checkpoint of any format, or an export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pizero.checkpoints.files.remote import local_folder
from pizero.checkpoints.load import load_policy, open_checkpoint
from pizero.checkpoints.native.checkpoint import load_example
from pizero.exported.manifest import detect, read_manifest
from pizero.exported.policy import ExportedPolicy, load_exported
from pizero.policy.policy import ModelPolicy
from pizero.policy.real_time import RealTime
from pizero.types import UserError

_DEFAULTS: dict[str, Any] = {"device": "cpu", "dtype": "float32", "kernels": "auto", "keep": ()}


def action_horizon(path: str | Path) -> int:
    """Actions of a chunk of a checkpoint or an export."""
    folder = local_folder(path)
    return read_manifest(folder).action_horizon if detect(folder) else open_checkpoint(folder)[1].config.action_horizon


def open_policy(path: str | Path, **options: Any) -> ModelPolicy | ExportedPolicy:
    """options: as for `load_policy`. A checkpoint or an export with a stored example must reproduce it.

    UserError for an option that an export has settled.
    """
    folder = local_folder(path)
    if not detect(folder):
        return load_policy(folder, verify=load_example(folder) is not None, **options)
    seed = options.pop("seed", 0)
    real_time = options.pop("real_time", None) or RealTime()
    settled = [name for name, value in options.items() if value is not None and value != _DEFAULTS.get(name)]
    settled += ["jacobian"] * (real_time != RealTime())
    if settled:
        raise UserError(f"{folder} is an export, in which {', '.join(settled)} is settled; give it to pizero export")
    return load_exported(folder, seed=seed, verify=True)
