"""`pizero bench`: how fast this machine runs a π0 or writes a π0-FAST's tokens, and what coarser numbers cost."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from pizero.types import UserError


@dataclass(frozen=True)
class Inference:
    """Plain and fast path with random weights, in turns: whole call, stages, and this machine's limit.

    Example: pizero bench inference --model pi0 --threads 2 --paths plain fast int8
    """

    model: Literal["pi0", "pi05", "tiny", "tiny-pi05", "small"] = "pi0"
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    paths: tuple[Literal["plain", "fast", "int8", "float8"], ...] = ("plain", "fast")
    """The first is what the others are compared with."""
    cameras: int | None = None
    """Cameras with an image; all of them if not given."""
    prompt: int | None = None
    """Tokens of the instruction; all slots if not given."""
    num_steps: int = 10
    """Integration steps; 1 is what a one-step policy takes."""
    batch: int = 1
    horizon: int | None = None
    """Actions of a chunk; the model's own if not given."""
    threads: int = 0
    """0 takes what PyTorch does."""
    rounds: int = 5
    device: str = "cpu"
    ablation: bool = False
    """Also measures without each of the optimisations of the fast path, one at a time."""
    sweep: bool = False
    """Instead: the fast path's time by cameras, prompt, horizon, steps and batch."""
    json: Path | None = None
    """Writes the figures there, and a picture of a sweep beside them."""


@dataclass(frozen=True)
class Int8:
    """The error of int8 on recorded observations: of velocity and actions, as a whole and layer by layer.

    Example: pizero bench int8 runs/tabletop runs/tabletop/dataset
    """

    checkpoint: Annotated[str, tyro.conf.Positional]
    """Checkpoint folder of any format, the folder of a run, or a hub id."""
    dataset: Annotated[Path, tyro.conf.Positional]
    """LeRobot dataset of the same robot."""
    observations: int = 8
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What int8 is compared with."""
    worst: int = 8
    """Layers that are shown, and kept out of int8 in a last measurement."""
    json: Path | None = None
    """Writes the figures there."""


@dataclass(frozen=True)
class Tokens:
    """How long a π0-FAST takes to write a chunk, on recorded observations one at a time: plain and fast path in turns,
    and the fast path without the grammar, with the share of what is then no chunk.

    Example: pizero bench tokens runs/fast runs/fast-data --threads 1
    """

    checkpoint: Annotated[str, tyro.conf.Positional]
    """Checkpoint folder of any format, the folder of a run, or a hub id."""
    dataset: Annotated[Path, tyro.conf.Positional]
    """LeRobot dataset of the same robot."""
    observations: int = 16
    rounds: int = 3
    threads: int = 0
    """0 takes what PyTorch does."""
    json: Path | None = None
    """Writes the figures there."""


Arguments = (
    Annotated[Inference, tyro.conf.subcommand("inference")]
    | Annotated[Int8, tyro.conf.subcommand("int8")]
    | Annotated[Tokens, tyro.conf.subcommand("tokens")]
)


def run(arguments: Inference | Int8 | Tokens) -> None:
    from pizero.workflows.evaluate import write_json

    if isinstance(arguments, Tokens):
        result = _tokens(arguments)
    else:
        result = _int8(arguments) if isinstance(arguments, Int8) else _inference(arguments)
    if arguments.json is not None:
        write_json(arguments.json, result)


def _inference(arguments: Inference) -> object:
    from pizero.engine.ablation import OPTIMIZATIONS
    from pizero.report.bench import print_bench, print_sweep, sweep_picture
    from pizero.workflows.bench_inference import BenchConfig, bench, model_config, sweep

    if arguments.rounds < 1 or not arguments.paths:
        raise UserError(f"rounds must be at least 1 and a path named, got {arguments.rounds} and {arguments.paths}")
    config = model_config(arguments.model, arguments.horizon)
    settings = BenchConfig(
        arguments.model, arguments.dtype, len(config.cameras) if arguments.cameras is None else arguments.cameras,
        config.prompt_length if arguments.prompt is None else arguments.prompt, arguments.num_steps, arguments.batch,
        config.action_horizon, arguments.threads, arguments.rounds, arguments.device,
    )  # fmt: skip
    if arguments.sweep:
        rows = sweep(settings)
        print_sweep(settings, rows)
        if arguments.json is not None:
            sweep_picture(settings, rows, arguments.json.with_suffix(".png"))
        return rows
    result = bench(settings, arguments.paths, OPTIMIZATIONS if arguments.ablation else ())
    print_bench(result)
    return result


def _tokens(arguments: Tokens) -> object:
    from pizero.workflows.bench_tokens import TokensConfig, bench_tokens
    from pizero.workflows.progress import console

    config = TokensConfig(arguments.observations, arguments.rounds, arguments.threads)
    result = bench_tokens(arguments.checkpoint, arguments.dataset, config)
    names = {"plain": "plain", "fast": "fast", "free": "fast, unconstrained"}
    for name, row in result["paths"].items():
        console.print(
            f"{names[name]:<20} {row['median_ms']:8.1f} ms a chunk ({row['cpu_ms']:.1f} of CPU), "
            f"{row['tokens']:.1f} tokens, {100 * row['malformed']:.1f} % malformed",
            soft_wrap=True,
        )
    console.print(f"actions of plain and fast at most {result['apart']:.2g} apart; {result['threads']} threads")
    return result


def _int8(arguments: Int8) -> object:
    from pizero.report.bench import print_errors
    from pizero.workflows.bench_int8 import bench_int8

    result = bench_int8(
        arguments.checkpoint, arguments.dataset, arguments.observations, arguments.dtype, arguments.worst
    )  # fmt: skip
    print_errors(result)
    return result
