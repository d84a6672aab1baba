"""Which of a π0's weights are trained, and in which precision they are kept."""

from __future__ import annotations

import torch
from torch import nn

from pizero.model.config import LanguageConfig
from pizero.model.pi0 import Pi0
from pizero.model.pi0_fast import Pi0Fast
from pizero.model.precision import cast_weights, float32_names
from pizero.train.config import Part, PartsConfig, Precision
from pizero.train.lora import add_lora, is_adapter
from pizero.types import UserError

EMBEDDING, TEXT_HEAD = "token_embedding.weight", "text_head.weight"


def part_of(name: str) -> Part:
    """vision: the tower and its projection. prefix, expert: the layers and the final norm of one expert. embedding: the
    token table, and a head of its own for text. heads: the projections of state, actions and time.
    """
    if name.startswith("vision_tower."):
        return "vision"
    if name in (EMBEDDING, TEXT_HEAD):
        return "embedding"
    if name.startswith(("layers.", "norm.")):  # of π0-FAST
        return "prefix"
    if name.startswith("transformer."):
        return "expert" if ".expert." in name or name.startswith("transformer.expert_norm.") else "prefix"
    return "heads"


def language_of(model: nn.Module) -> LanguageConfig | None:
    """Of a π0 that learns to write; None of every other model."""
    return model.config.language if isinstance(model, Pi0) else None


def choose_parts(model: nn.Module, config: PartsConfig, seed: int = 0) -> None:
    """Adds the adapters, and freezes what is not trained; UserError when nothing is left, or for another model.

    With adapters an expert's own weights are frozen, its norms included, and with the prefix's the embedding table:
    what openpi's freeze filter names (src/openpi/models/pi0_config.py).
    """
    if config == PartsConfig():
        return
    if isinstance(model, Pi0Fast):
        _check_parts_of_fast(config)
    elif not isinstance(model, Pi0):
        raise UserError(f"parts are frozen, adapted and chosen in a π0, not in a {type(model).__name__}")
    frozen = set[str](config.freeze)
    if config.lora is not None:
        add_lora(model, config.lora, seed)
        frozen |= {"prefix"} if config.lora.prefix_rank else set()
        frozen |= {"expert"} if config.lora.expert_rank else set()
    frozen |= {"embedding"} if "prefix" in frozen else set()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_adapter(name) or part_of(name) not in frozen)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError("every part is frozen: nothing is left to train")
    if config.embedding_steps == "stateless" and language_of(model) is not None:
        raise UserError("embedding_steps stateless moves the rows that a batch reads; as a head all of them are used")
    if config.embedding_steps == "stateless" and "embedding" in frozen:
        raise UserError("the embedding table is frozen; embedding_steps stateless has nothing to do")


def _check_parts_of_fast(config: PartsConfig) -> None:
    """UserError for what a π0-FAST does not have, or cannot be trained with."""
    if absent := sorted({"expert", "heads"} & set(config.freeze)):
        raise UserError(f"freeze {absent[0]}: a π0-FAST has vision, prefix and embedding alone")
    if config.lora is not None and not config.lora.prefix_rank:
        raise UserError("LoRA of a π0-FAST adapts the prefix, its only expert: prefix_rank must be above 0")
    if config.embedding_steps == "stateless":
        raise UserError("embedding_steps stateless moves the rows that a batch reads; as a head all of them are used")


def keep_in_precision(model: nn.Module, precision: Precision, mixed: bool) -> None:
    """Casts the weights as `TrainConfig.precision` says; `mixed`: whether products are computed in bfloat16.

    Adapters, and what `model.precision` keeps, stay float32. Frozen weights are bfloat16 where products are, as in
    openpi (scripts/train.py); nothing is lost but the bits that no product reads.
    """
    if precision == "bfloat16":
        if not isinstance(model, Pi0 | Pi0Fast):
            raise UserError(f"precision bfloat16 is for a π0, not for a {type(model).__name__}; use mixed or float32")
        cast_weights(model, torch.bfloat16)
        for name, parameter in model.named_parameters():
            parameter.data = parameter.data.float() if is_adapter(name) else parameter.data
    elif mixed and isinstance(model, Pi0 | Pi0Fast):
        kept = float32_names(model)
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad and name not in kept:
                parameter.data = parameter.data.bfloat16()
