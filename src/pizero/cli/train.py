"""pizero train: a policy from a LeRobot dataset."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class Arguments:
    """Trains a policy on a LeRobot dataset, from scratch or from a checkpoint. Settings come from a preset.

    Example: pizero train runs/tabletop-data --preset tabletop --output runs/tabletop
    """

    dataset: Annotated[Path, tyro.conf.Positional]
    """LeRobot dataset: its folder, or its id on the Hugging Face hub (owner/name); or a .toml file that lists several
    (examples/mixture.toml)."""
    preset: Literal["tabletop", "metaworld", "pusht"]
    """Model size, optimisation settings and robot."""
    output: Path
    """Folder of the run: checkpoints, metrics.jsonl, run.json."""
    model: Literal["pi0", "pi05", "diffusion"] = "pi0"
    """pi05: adaptive RMSNorm and the state in the prompt. diffusion: the baseline, a diffusion policy that sees five
    observations and neither state nor instruction."""
    embodiment: str | None = None
    """Robot, by name or as a TOML file (examples/my_arm.toml), instead of the preset's."""
    resume: bool = False
    """Go on from the newest checkpoint in the output folder."""
    checkpoint: str | None = None
    """Start from these weights instead of fresh ones: a checkpoint of any format by path, hub id or address, or a
    PaliGemma (its folder, or big_vision's .npz) for the prefix of a π0. Its tokenizer stays."""
    tokenizer: Path | None = None
    """SentencePiece model (PaliGemma's, say); without it a small one is trained on the dataset's prompts."""
    norm_stats: str | None = None
    """Statistics to use instead of the dataset's own: a file (of pizero norm-stats, openpi's norm_stats.json, LeRobot's
    meta/stats.json), or a checkpoint, such as the one of --checkpoint where the robot is one that it has seen (of an
    openpi checkpoint with several robots, CHECKPOINT/assets/ROBOT)."""
    skip_bad_episodes: bool = False
    """Leaves episodes with missing or damaged files, or with gaps, out with a warning each."""
    frames: Literal["auto", "memory", "disk", "decode"] = "auto"
    """Decoded frames: kept in memory; kept in a file, decoded once for this and all later runs; or decoded whenever
    they are read. auto: memory up to 2 GiB, else the disk where there is room."""
    workers: int | None = None
    """Processes that prepare batches ahead; without it none on the CPU and up to 4 otherwise."""
    steps: int | None = None
    """Optimizer steps, instead of the preset's; so the following."""
    batch_size: int | None = None
    learning_rate: float | None = None
    draws: int | None = None
    max_delay: int | None = None
    """Trains for real-time chunking: the first 0 to max_delay actions of each chunk are given (docs/real_time.md)."""
    augmentation: Literal["openpi", "shift", "none"] | None = None
    precision: Literal["auto", "float32", "mixed"] | None = None
    save_every: int | None = None
    seed: int | None = None
    threads: int | None = None
    device: str = "cpu"


def run(arguments: Arguments) -> int:
    from pizero.configs.presets import get_preset
    from pizero.workflows.progress import console
    from pizero.workflows.train import train_policy

    preset = get_preset(arguments.preset, arguments.model)
    names = (
        "steps",
        "batch_size",
        "learning_rate",
        "draws",
        "max_delay",
        "augmentation",
        "precision",
        "save_every",
        "seed",
        "threads",
    )
    changes = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    preset = dataclasses.replace(preset, train=dataclasses.replace(preset.train, **changes))
    if arguments.embodiment is not None:
        preset = dataclasses.replace(preset, embodiment=arguments.embodiment)
    result = train_policy(
        arguments.dataset, arguments.output, preset, resume=arguments.resume, start=arguments.checkpoint,
        tokenizer=arguments.tokenizer, stats=arguments.norm_stats, device=arguments.device,
        skip_bad_episodes=arguments.skip_bad_episodes, frames=arguments.frames, workers=arguments.workers,
    )  # fmt: skip
    console.print(f"{result.parameters:,} parameters, loss {result.loss:.4f}\ncheckpoint: {result.checkpoint}")
    return 0
