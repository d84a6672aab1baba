"""LeRobot's names for the sizes of its experts: config.json records no others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pizero.checkpoints.files.safetensors_file import SafetensorsWeights
from pizero.checkpoints.format import GIVE_SIZES
from pizero.model.config import GEMMA_2B, GEMMA_300M
from pizero.types import UserError

VARIANTS = {"gemma_2b": GEMMA_2B, "gemma_300m": GEMMA_300M}


def check_width(values: Mapping[str, Any], width: int | None) -> None:
    """UserError where the token table is not as wide as the variant that config.json names; None: there is no table."""
    name = values.get("paligemma_variant", "gemma_2b")
    if width is not None and name in VARIANTS and width != VARIANTS[name].width:
        raise UserError(
            f"config.json names {name}, of width {VARIANTS[name].width}, but the weights have {width}; {GIVE_SIZES}"
        )


def width_of_table(weights: SafetensorsWeights, name: str) -> int | None:
    shape = weights.shape(name) if name in weights else ()
    return shape[-1] if shape else None
