"""pizero convert: any checkpoint format to any other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class Arguments:
    """Writes a checkpoint in another format, and proves it: the result is read again and must sample the same actions.

    Example: pizero convert gs://openpi-assets/checkpoints/pi05_base pi05 --to native --embodiment droid
    """

    source: Annotated[str, tyro.conf.Positional]
    """Checkpoint folder of any format, a Hugging Face id (owner/name), or an address (hf://, gs://)."""
    target: Annotated[Path, tyro.conf.Positional]
    """New folder."""
    to: Literal["native", "openpi-torch", "openpi-jax", "lerobot", "lerobot-plugin", "transformers"]
    """Format of the result."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Of the large matrices; without it every tensor keeps its own."""
    arch: Path | None = None
    """JSON with the model's sizes, as `pizero inspect --json` writes it, for a source that does not record them
    (docs/checkpoints.md)."""
    embodiment: str | None = None
    """Robot, if the source does not record it: a name, a TOML file, or the folder of a dataset that describes it (same
    for the options below)."""
    norm_stats: Path | None = None
    """norm_stats.json of the robot's data, pizero's or openpi's, or the folder that holds it; a dataset's too."""
    tokenizer: Path | None = None
    """SentencePiece model."""
    codec: Path | None = None
    """Of a π0-FAST: folder of its action codec."""
    merge_lora: Path | None = None
    """Folder of a LoRA training that started from the source, of one of its checkpoints, or the `adapters` in that:
    they are merged."""


def run(arguments: Arguments) -> int:
    from pizero.workflows.convert import convert_and_print

    convert_and_print(**vars(arguments))
    return 0
