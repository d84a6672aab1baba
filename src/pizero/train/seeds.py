"""The random numbers of a training: a stream of its own for every seed, step and purpose."""

from __future__ import annotations

from enum import IntEnum
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Generator

from pizero.types import UserError

SeedRule: TypeAlias = Literal["sequence", "sum"]
"""How a stream follows from its seed and step.

sequence: NumPy's SeedSequence mixes seed, step and purpose. sum: that of runs whose checkpoints name no rule, and for
going on with these alone: on a CPU a seed has at step t the numbers that the seed after next has at step t + 2.
"""

SEED_RULE: SeedRule = "sequence"


class Purpose(IntEnum):
    """What a stream is for. The numbers are part of a run: they stay."""

    DRAWS = 0
    """Noise, times, delays and augmentation of a step."""
    VALIDATION = 1
    ROUNDING = 2
    """Of bfloat16 weights."""
    TABLE = 3
    """Rounding of the embedding table's rows."""


def stream(
    seed: int, step: int, purpose: Purpose, rule: SeedRule = SEED_RULE, device: torch.device | str = "cpu"
) -> Generator:
    """The generator of a training's `seed` at `step`, at its start; on the same device always the same numbers.

    A generator on a CPU has 2^32 starts: of all streams of a study two may be alike by chance, but in nothing else.
    """
    if rule == "sum":
        return Generator(device).manual_seed(seed * 2_147_483_647 + step)
    if rule != "sequence":
        raise UserError(f"the random numbers of this run follow the rule {rule!r}, which this version does not know")
    words = np.random.SeedSequence([seed, step, purpose]).generate_state(2, np.uint32)
    return Generator(device).manual_seed(int(words[0]) | int(words[1] & 0x7FFFFFFF) << 32)
