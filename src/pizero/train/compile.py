"""The blocks of a finished model through torch.compile."""

from __future__ import annotations

import torch
from torch import nn

from pizero.train.activations import BLOCKS
from pizero.types import UserError


def compile_blocks(model: nn.Module) -> None:
    """In place, before activation checkpointing: what lies between the products becomes fewer kernels.

    It takes a C++ compiler, and half a minute at the first step.
    """
    for module in model.modules():
        if isinstance(module, BLOCKS):
            module.forward = torch.compile(module.forward)  # type: ignore[method-assign]


def check_compiler(device: torch.device) -> None:
    """UserError where torch.compile cannot work for this device: a compiler or its headers are missing."""
    try:
        torch.compile(torch.cos)(torch.ones(2, device=device))
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"blocks cannot be compiled here, train without --compile: {reason}") from error
