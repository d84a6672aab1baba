"""pizero export: a policy that runs without PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class Arguments:
    """Writes a checkpoint as graphs that ONNX Runtime or OpenVINO run, and proves it: the export must give pizero's own
    action chunk before it gets its name. docs/export.md: how a robot runs it.

    Example: pizero export runs/tabletop exports/tabletop --to onnx
    """

    checkpoint: Annotated[str, tyro.conf.Positional]
    """Checkpoint folder of any format, the folder of a run, whose newest checkpoint is taken, or a hub id."""
    folder: Annotated[Path, tyro.conf.Positional]
    """New folder."""
    to: Literal["onnx", "openvino"]
    """Runtime that will open it."""
    dtype: Literal["float32", "bfloat16", "float16", "int8"] = "float32"
    """Of the large matrices in the files; int8 changes the numbers most. For the diffusion policy, not int8."""
    num_steps: int | None = None
    """Steps of sampling, a constant of the export; without it the model's own number."""
    threads: int | None = None
    """Of the runtime, in the proof; without it, its own choice."""
    embodiment: str | None = None
    """Robot, if the checkpoint does not record it: a name, a TOML file, or the folder of a dataset that describes it
    (same for the options below)."""
    norm_stats: Path | None = None
    """norm_stats.json of the robot's data, pizero's or openpi's, or the folder that holds it; a dataset's too."""
    tokenizer: Path | None = None
    """SentencePiece model."""


def run(arguments: Arguments) -> int:
    from pizero.workflows.export import export_and_print

    export_and_print(**vars(arguments))
    return 0
