"""Where recorded sets lie: in the folder that PIZERO_GOLDEN names, or in its folder of their kind (fast_codec, ...)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

DEFAULT = Path(__file__).parents[1] / "golden"


def find_sets(kind: str, parts: Sequence[str], fits: Callable[[Path], bool] = lambda folder: True) -> list[Path]:
    """Folders with all these files. Without any the calling module fails; it is skipped in a folder of one's own."""
    root = Path(os.environ.get("PIZERO_GOLDEN") or DEFAULT)
    folders = [folder for place in (root / kind, root) if place.is_dir() for folder in place.iterdir()]
    found = sorted(folder for folder in folders if all((folder / part).is_file() for part in parts) and fits(folder))
    if not found:
        message = f"{root} holds no set of {kind}: a folder with {', '.join(parts)}"
        if root.resolve() != DEFAULT.resolve():
            pytest.skip(message, allow_module_level=True)
        pytest.fail(message, pytrace=False)
    return found
