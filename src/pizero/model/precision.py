"""Precision of a finished model."""

from __future__ import annotations

import torch

from pizero.model.layers import AdaptiveRMSNorm, Float32Linear, RMSNorm
from pizero.model.pi0 import Pi0


def cast_weights(model: Pi0, dtype: torch.dtype) -> Pi0:
    """Casts the large matrices, in place, and keeps in float32 what the reference keeps there: patch and position
    embeddings, Gemma's norms, and the projections of state, actions and time.
    """
    kept = {id(model.vision_tower.position_embedding)}
    for module in model.modules():
        if isinstance(module, Float32Linear | RMSNorm | AdaptiveRMSNorm):
            kept.update(id(parameter) for parameter in module.parameters())
    for parameter in model.parameters():
        parameter.data = parameter.data.float() if id(parameter) in kept else parameter.data.to(dtype)
    return model
