"""What a robot sends beside its observation, checked."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pizero.types import UserError

FAR = 1e6
"""Normalised states and actions, and noise, beyond which a model would compute with infinities."""


def float_array(name: str, given: Any) -> NDArray[np.float32]:
    """What a robot sent under this name, infinite where float32 ends. UserError where it is no array of numbers."""
    try:
        with np.errstate(over="ignore"):
            return np.asarray(given, np.float32)
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{name}: got {type(given).__name__}, expected an array of numbers") from None


def whole_number(name: str, given: Any, of: str) -> int:
    """What a robot sent under this name as a count of something. UserError where it is none."""
    try:
        count = operator.index(given)
    except TypeError:
        count = -1
    if count < 0:
        raise UserError(f"{name}: got {str(given)[:60]}, expected a whole number of {of}")
    return count
