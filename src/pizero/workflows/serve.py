"""Which checkpoints a server has, and how each is loaded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pizero.checkpoints.load import load_policy
from pizero.serving.hosted import AnyPolicy, Load
from pizero.types import UserError
from pizero.workflows.policies import open_policy

_RESERVED = {"live", "healthz", "health", "metrics", "page", "vla-eval"}


def named(checkpoints: Sequence[str]) -> dict[str, str]:
    """Name -> path of arguments like NAME=PATH; a single one may be a path alone and is then called "policy"."""
    if not checkpoints:
        raise UserError("name a checkpoint to serve")
    if len(checkpoints) == 1 and "=" not in checkpoints[0]:
        return {"policy": _absolute(checkpoints[0])}
    found: dict[str, str] = {}
    for text in checkpoints:
        name, equals, path = text.partition("=")
        if not equals or not path or not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,63}", name):
            raise UserError(f"of several checkpoints each is NAME=PATH, NAME of letters, digits, . _ -; got {text!r}")
        if name in found or name in _RESERVED:
            raise UserError(f"the name {name!r} is taken; choose another")
        found[name] = _absolute(path)
    return found


def _absolute(path: str) -> str:
    """Paths for a process that may work elsewhere; what is no folder here as it is."""
    return "+".join(str(Path(part).resolve()) if Path(part).exists() else part for part in _parts(path))


def _parts(path: str) -> list[str]:
    """[checkpoint], or [checkpoint, adapters] of BASE+ADAPTERS."""
    base, plus, adapters = path.rpartition("+")
    return [base, adapters] if plus and not Path(path).exists() else [path]


def loaders(checkpoints: dict[str, str], **options: Any) -> dict[str, Load]:
    """Name -> a function that loads its policy, of BASE+ADAPTERS both; of a run the checkpoint that is the newest then.

    options: as for `load_policy`. A checkpoint with a stored example must reproduce it.
    """

    def loader(path: str) -> Load:
        def load() -> AnyPolicy:
            checkpoint, *adapters = _parts(path)
            if adapters:
                return load_policy(checkpoint, adapters=adapters[0], **options)
            return open_policy(checkpoint, **options)

        return load

    return {name: loader(path) for name, path in checkpoints.items()}
