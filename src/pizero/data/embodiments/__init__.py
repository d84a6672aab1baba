"""Robots by name. Each function makes an `Embodiment`; `generic` takes the description as arguments."""

from __future__ import annotations

from collections.abc import Callable

from pizero.data.embodiments.embodiment import Embodiment
from pizero.data.embodiments.generic import generic
from pizero.data.embodiments.metaworld import metaworld
from pizero.data.embodiments.pusht import pusht
from pizero.data.embodiments.tabletop import tabletop

__all__ = ["EMBODIMENTS", "Embodiment", "generic", "metaworld", "pusht", "tabletop"]

EMBODIMENTS: dict[str, Callable[..., Embodiment]] = {
    "generic": generic,
    "metaworld": metaworld,
    "pusht": pusht,
    "tabletop": tabletop,
}
