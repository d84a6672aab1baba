"""Activation checkpointing of a finished model: less memory for one more forward pass."""

from __future__ import annotations

from functools import partial

from torch.utils.checkpoint import checkpoint

from pizero.model.pi0 import Pi0
from pizero.model.siglip import VisionBlock
from pizero.model.two_expert import TwoExpertLayer


def checkpoint_activations(model: Pi0) -> Pi0:
    """Each vision block and each layer of the two experts keeps its inputs only and recomputes the rest in backward."""
    for module in model.modules():
        if isinstance(module, VisionBlock | TwoExpertLayer):
            module.forward = partial(checkpoint, module.forward, use_reentrant=False)  # type: ignore[method-assign]
    return model
