"""Precision of a finished model."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from pizero.model.layers import AdaptiveRMSNorm, Float32Linear, RMSNorm
from pizero.model.siglip import VisionTower

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def cast_weights(model: AnyModule, dtype: torch.dtype) -> AnyModule:
    """Casts the large matrices, in place, and keeps in float32 what the reference keeps there: patch and position
    embeddings, Gemma's norms, and the projections of state, actions and time. A model without these parts, such as the
    diffusion policy, is cast as a whole.
    """
    kept: set[int] = set()
    for module in model.modules():
        if isinstance(module, VisionTower):
            kept.add(id(module.position_embedding))
        elif isinstance(module, Float32Linear | RMSNorm | AdaptiveRMSNorm):
            kept.update(id(parameter) for parameter in module.parameters())
    for parameter in model.parameters():
        parameter.data = parameter.data.float() if id(parameter) in kept else parameter.data.to(dtype)
    return model
