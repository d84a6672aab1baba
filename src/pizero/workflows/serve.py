"""Which checkpoints a server has, and how each is loaded."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pizero.checkpoints.native import load_example
from pizero.checkpoints.remote import local_folder
from pizero.policy.policy import ModelPolicy, load_policy
from pizero.types import UserError
from pizero.workflows.evaluate import find_checkpoint

_RESERVED = {"live", "healthz", "metrics", "page"}


def named(checkpoints: Sequence[str]) -> dict[str, str]:
    """Name -> path of arguments like NAME=PATH; a single one may be a path alone and is then called "policy"."""
    if not checkpoints:
        raise UserError("name a checkpoint to serve")
    if len(checkpoints) == 1 and "=" not in checkpoints[0]:
        return {"policy": checkpoints[0]}
    found: dict[str, str] = {}
    for text in checkpoints:
        name, equals, path = text.partition("=")
        if not equals or not path or not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name):
            raise UserError(f"of several checkpoints each is NAME=PATH, NAME of letters, digits, . _ -; got {text!r}")
        if name in found or name in _RESERVED:
            raise UserError(f"the name {name!r} is taken; choose another")
        found[name] = path
    return found


def loaders(checkpoints: dict[str, str], **options: Any) -> dict[str, Callable[[], ModelPolicy]]:
    """Name -> a function that loads its policy; of a run the checkpoint that is the newest then.

    options: as for `load_policy`. A checkpoint with a stored example must reproduce it.
    """

    def loader(path: str) -> Callable[[], ModelPolicy]:
        def load() -> ModelPolicy:
            folder = local_folder(find_checkpoint(Path(path) if Path(path).exists() else path))
            return load_policy(folder, verify=load_example(folder) is not None, **options)

        return load

    return {name: loader(path) for name, path in checkpoints.items()}
