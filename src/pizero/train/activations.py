"""How the blocks of a finished model run in training: recomputed in the backward pass, compiled."""

from __future__ import annotations

from functools import partial
from typing import TypeVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from pizero.model.siglip import VisionBlock
from pizero.model.two_expert import TwoExpertLayer

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

    It takes a C++ compiler, and a minute at the first step.
    """
    for module in model.modules():
        if isinstance(module, BLOCKS):
            module.forward = torch.compile(module.forward)  # type: ignore[method-assign]
    return model
