"""What the reader of every format gives, and the writer of every format takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from pizero.checkpoints.files.keymap import fill
from pizero.checkpoints.models import Network, NetworkConfig, empty_model, usable_device
from pizero.data.embodiments import Embodiment
from pizero.data.fast.codec import FastCodec
from pizero.data.norm_stats import NormStats
from pizero.data.tokenizer import PaligemmaTokenizer
from pizero.model.config import Pi0Config
from pizero.model.pi0_fast import Pi0FastConfig
from pizero.types import Convention

Arch = Pi0Config | Pi0FastConfig | Mapping[str, Any]
"""Sizes that a checkpoint does not record: a config, our own JSON, or the words of the checkpoint's own project."""

SIZES = "pizero.json"
"""File with an `Arch` beside weights whose own files do not record it; we write it where a format has no place."""
GIVE_SIZES = f"give the sizes with arch, or write them beside the weights as {SIZES} (pizero inspect SOURCE --json)"


@dataclass(frozen=True)
class Facts:
    """What a checkpoint records of the way from robot dictionaries to tensors. None is unknown, never guessed."""

    embodiment: Embodiment | None = None
    norm_stats: NormStats | None = None
    tokenizer: PaligemmaTokenizer | None = None
    convention: Convention = "openpi"
    """How the model's images were resized and its prompts cleaned: a matter of the format's project."""
    codec: FastCodec | None = None
    """Of the actions, for a model that writes them as tokens."""


@dataclass(frozen=True)
class StoredCheckpoint:
    """A checkpoint that was recognised and whose names fit its config; its tensors are read when they are asked for.

    tensors: our names and the tensors, as stored; the largest first where reading one needs memory of its own.
    notes: warnings for the user, such as a tensor that the forward pass does not use and that differs from the
        one it should equal.
    """

    format: str
    config: NetworkConfig
    tensors: Callable[[], Iterator[tuple[str, Tensor]]]
    facts: Facts = field(default_factory=Facts)
    notes: tuple[str, ...] = ()

    def build(self, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> Network:
        """The network with these weights, for use; dtype None keeps each tensor's own.

        UserError, before weights are read, where the device is not here.
        """
        device = usable_device(device)
        model = empty_model(self.config)
        fill(model, self.tensors(), device, dtype)
        return model.eval()


class Format(Protocol):
    """One module per format has these three."""

    def detect(self, folder: Path) -> bool:
        """Recognised by the content, never by a folder's name.

        False for foreign content; UserError when a file of the format's own name cannot be read.
        """
        ...

    def read(self, folder: Path, arch: Arch | None) -> StoredCheckpoint:
        """UserError with the list when names or shapes do not fit."""
        ...

    def write(self, folder: Path, model: Network, facts: Facts) -> None:
        """Into an empty folder that exists; the caller renames it. The tensors keep the dtypes that the model has."""
        ...
