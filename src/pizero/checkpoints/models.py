"""The models that are trained and stored, by the name that a checkpoint's config.json gives them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch.overrides import TorchFunctionMode

from pizero.baseline.config import BaselineConfig
from pizero.baseline.policy import DiffusionPolicy
from pizero.model.config import Pi0Config
from pizero.model.pi0 import Pi0
from pizero.model.pi0_fast import Pi0Fast, Pi0FastConfig
from pizero.types import UserError

Network: TypeAlias = Pi0 | Pi0Fast | DiffusionPolicy
"""A module that is an `ActionModel`; a π0-FAST is one with the codec of its pipeline (`policy.sampling.sampler_of`)."""

NetworkConfig: TypeAlias = Pi0Config | Pi0FastConfig | BaselineConfig

MODELS: dict[str, tuple[type[Any], type[Any]]] = {
    "pi0": (Pi0Config, Pi0),
    "pi0-fast": (Pi0FastConfig, Pi0Fast),
    "diffusion": (BaselineConfig, DiffusionPolicy),
}
"""Class of the config and class of the model. π0.5 is a config of "pi0"."""


def model_name(config: NetworkConfig) -> str:
    """The key in `MODELS`."""
    return next(name for name, (kind, _) in MODELS.items() if isinstance(config, kind))


def empty_model(config: NetworkConfig) -> Network:
    """Names and shapes alone, on the meta device; filling nothing takes seconds at full size, so it is skipped."""
    try:
        with torch.device("meta"), _NoFilling():
            return make_model(config)
    except (RuntimeError, OverflowError, TypeError) as error:  # each size is possible, not their product
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the config's sizes do not make a model ({reason}); copy the checkpoint again") from error


def make_model(config: NetworkConfig) -> Network:
    """A model with fresh weights."""
    return MODELS[model_name(config)][1](config)


def known_device(device: str | torch.device) -> torch.device:
    """UserError for a name that PyTorch does not know, such as "gpu"; the device need not be here."""
    try:
        return torch.device(device)
    except RuntimeError:
        raise UserError(f"unknown device {str(device)!r}; expected cpu, cuda, or cuda:1 and so on") from None


def usable_device(device: str | torch.device) -> torch.device:
    """UserError where this machine, or this PyTorch, does not have it."""
    found = known_device(device)
    try:
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise UserError(f"device {str(device)!r} cannot be used here ({reason}); choose cpu or another") from error
    return found


class _NoFilling(TorchFunctionMode):
    """`torch.nn.init` and what it calls return the tensor as it is."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.__name__ in ("normal_", "uniform_", "kaiming_uniform_", "zeros_", "ones_", "zero_", "fill_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
