"""The blocks of a finished model, recomputed in the backward pass: activation checkpointing."""

from __future__ import annotations

from functools import partial
from typing import TypeVar

from torch import nn
from torch.utils.checkpoint import checkpoint

from pizero.model.pi0_fast import TextLayer
from pizero.model.siglip import VisionBlock
from pizero.model.two_expert import TwoExpertLayer

BLOCKS = (VisionBlock, TwoExpertLayer, TextLayer)
"""The repeated parts, each with one forward: what is recomputed, and sharded, as a whole."""

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def checkpoint_activations(model: AnyModule) -> AnyModule:
    """Each vision block and each layer keeps its inputs only and recomputes the rest in backward."""
    for module in model.modules():
        if isinstance(module, BLOCKS):
            module.forward = partial(checkpoint, module.forward, use_reentrant=False)  # type: ignore[method-assign]
    return model
