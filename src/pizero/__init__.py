"""π0 and π0.5: train, evaluate, run. Importing the package is quick; torch is loaded on first use of a name below."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pizero.types import Observation, UserError

if TYPE_CHECKING:
    from pizero.checkpoints.load import load_model, load_policy, save_model
    from pizero.engine.fast_sampler import FastSampler
    from pizero.model.config import Pi0Config
    from pizero.model.pi0 import Pi0

__version__ = "0.1.0"
__all__ = ["FastSampler", "Observation", "Pi0", "Pi0Config", "UserError", "load_model", "load_policy", "save_model"]

_HOMES = {
    "FastSampler": "pizero.engine.fast_sampler",
    "Pi0": "pizero.model.pi0",
    "Pi0Config": "pizero.model.config",
    "load_model": "pizero.checkpoints.load",
    "save_model": "pizero.checkpoints.load",
    "load_policy": "pizero.checkpoints.load",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pizero' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
