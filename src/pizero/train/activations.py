"""How the blocks of a finished model run in training: recomputed in the backward pass, compiled."""

from __future__ import annotations

from functools import partial
from typing import TypeVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from pizero.model.siglip import VisionBlock
from pizero.model.two_expert import TwoExpertLayer
from pizero.types import UserError

BLOCKS = (VisionBlock, TwoExpertLayer)
"""The repeated parts, each with one forward: what is recomputed, and sharded, as a whole."""

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def checkpoint_activations(model: AnyModule) -> AnyModule:
    """Each vision block and each layer of the two experts keeps its inputs only and recomputes the rest in backward."""
    for module in model.modules():
        if isinstance(module, BLOCKS):
            module.forward = partial(checkpoint, module.forward, use_reentrant=False)  # type: ignore[method-assign]
    return model


def compile_blocks(model: AnyModule) -> AnyModule:
    """The same blocks through torch.compile, which joins what lies between the products. Before they are recomputed.

    It takes a C++ compiler, and half a minute at the first step.
    """
    for module in model.modules():
        if isinstance(module, BLOCKS):
            module.forward = torch.compile(module.forward)  # type: ignore[method-assign]
    return model


def check_compiler(device: torch.device) -> None:
    """UserError where torch.compile cannot work for this device: a compiler or its headers are missing."""
    try:
        torch.compile(torch.cos)(torch.ones(2, device=device))
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"blocks cannot be compiled here, train without --compile: {reason}") from error
