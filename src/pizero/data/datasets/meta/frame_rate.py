"""The frames a second of a dataset whose info.json does not say them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pizero.data.datasets.files.json_files import as_number, as_table
from pizero.data.datasets.files.numbers import read_known
from pizero.data.datasets.meta.features import Feature
from pizero.data.datasets.meta.info import INFO_PATH
from pizero.types import UserError

FILES = 8
"""Data files that are looked at."""
REGULAR = 0.25
"""Of the usual step, that a step may be off."""
UNITS = {1.0: "seconds", 1e3: "milliseconds", 1e6: "microseconds", 1e9: "nanoseconds"}
"""Of time stamps, as parts of a second."""
SLOWEST = 0.3
"""Frames a second of a robot; time stamps that are further apart than that are in a smaller unit than seconds."""
WHOLE = 2e-4
"""Of the rate, by which it may miss a whole number that it is taken for: time stamps are rounded."""


def find_frame_rate(root: Path, features: Mapping[str, Feature], data: Sequence[Path], notes: list[str]) -> float:
    """By the time stamps where they are regular, else by what a column says of itself; UserError where neither is."""
    steps = np.concatenate([np.zeros(0), *(_steps(path) for path in islice(dict.fromkeys(data), FILES))])
    usual = float(np.median(steps)) if steps.size else 0.0
    rate = None
    if usual > 0 and (np.abs(steps - usual) <= REGULAR * usual).all():
        unit, name = stamp_unit(usual)
        rate, how = (
            unit / float(steps.mean()),
            "the time stamps are" if unit == 1 else f"the time stamps, in {name}, are",
        )
        rate = float(round(rate)) if abs(rate - round(rate)) <= WHOLE * rate else float(f"{rate:.4g}")
    else:
        how = "its columns say"
        rate = next((found for feature in features.values() if (found := _said(feature)) is not None), None)
    if not rate:
        raise UserError(
            f"{root / INFO_PATH} says no fps above 0, and the time stamps are not regular; write the frames a second "
            "there"
        )
    notes.append(f"meta/info.json says no fps above 0; {how} {rate:g} a second, which is used")
    return rate


def stamp_unit(step: float) -> tuple[float, str]:
    """(parts of a second, name): the unit of time stamps that are `step` apart, by what a robot's frame rate can be."""
    found = [unit for unit in UNITS if step > 0 and unit / step >= SLOWEST]
    return (found[0], UNITS[found[0]]) if found else (1.0, UNITS[1.0])


def _steps(path: Path) -> NDArray[np.float64]:
    """Seconds between the frames of the episodes in a file; none where it is unknown."""
    try:
        columns = read_known(path, ("timestamp", "episode_index"))[1]
    except UserError:
        return np.zeros(0)  # told when the file is read
    if "timestamp" not in columns:
        return np.zeros(0)
    steps = np.diff(columns["timestamp"].scalars().astype(np.float64))
    if "episode_index" in columns:
        steps = steps[np.diff(columns["episode_index"].scalars()) == 0]
    return steps[np.isfinite(steps)]


def _said(feature: Feature) -> float | None:
    """The rate that a column's own description has."""
    info = as_table(feature.get("info")) or as_table(feature.get("video_info"))
    rate = as_number(info.get("video.fps")) or as_number(feature.get("fps"))
    return rate if rate is not None and rate > 0 else None
