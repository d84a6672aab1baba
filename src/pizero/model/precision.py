"""Precision of a finished model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar, cast

import torch
from torch import nn

from pizero.model.layers import AdaptiveRMSNorm, Float32Linear, RMSNorm
from pizero.model.siglip import ConvolutionalStem, VisionTower

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def cast_weights(model: AnyModule, dtype: torch.dtype) -> AnyModule:
    """Casts the large matrices, in place; those of `float32_names` become float32."""
    kept = float32_names(model)
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.float() if name in kept else parameter.data.to(dtype)
    return model


def matrix_dtypes(model: nn.Module) -> set[torch.dtype]:
    """Of the parameters that `cast_weights` casts; a model runs without autocast where there is one of them."""
    kept = float32_names(model)
    return {parameter.dtype for name, parameter in model.named_parameters() if name not in kept}


def float32_names(model: nn.Module) -> set[str]:
    """Parameters that the reference keeps in float32: patch and position embeddings, Gemma's norms, and the projections
    of state, actions and time; and a convolutional stem. A model without these parts, such as the diffusion policy, has
    none.
    """
    kept: set[str] = set()
    for root, module in cast("Iterable[tuple[str, nn.Module]]", model.named_modules()):
        start = f"{root}." if root else ""
        if isinstance(module, VisionTower):
            kept.add(f"{start}position_embedding")
        elif isinstance(module, Float32Linear | ConvolutionalStem | RMSNorm | AdaptiveRMSNorm):
            kept.update(start + name for name, _ in module.named_parameters())
    return kept
