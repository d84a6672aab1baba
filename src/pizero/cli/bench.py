"""`pizero bench`: how fast this machine runs a π0."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pizero.types import UserError


@dataclass(frozen=True)
class Arguments:
    """Plain and fast path with random weights, in turns: whole call, stages, and this machine's limit."""

    what: Literal["inference"] = "inference"
    model: Literal["pi0", "pi05", "tiny", "tiny-pi05", "small"] = "pi0"
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    paths: tuple[Literal["plain", "fast", "int8", "float8"], ...] = ("plain", "fast")
    cameras: int | None = None
    """Cameras with an image; all of them if not given."""
    prompt: int | None = None
    """Tokens of the instruction; all slots if not given."""
    num_steps: int = 10
    batch: int = 1
    horizon: int | None = None
    threads: int = 0
    rounds: int = 5
    device: str = "cpu"
    ablation: bool = False
    """Also leaves out each of the facts that make the fast path fast, one at a time."""
    json: Path | None = None
    """Writes the figures there."""


def run(arguments: Arguments) -> None:
    from pizero.report.bench import print_bench
    from pizero.workflows.bench_inference import BenchConfig, all_facts, bench, model_config
    from pizero.workflows.evaluate import write_json

    if arguments.rounds < 1:
        raise UserError(f"rounds must be at least 1, got {arguments.rounds}")
    config = model_config(arguments.model, arguments.horizon)
    settings = BenchConfig(
        arguments.model, arguments.dtype, len(config.cameras) if arguments.cameras is None else arguments.cameras,
        config.prompt_length if arguments.prompt is None else arguments.prompt, arguments.num_steps, arguments.batch,
        arguments.horizon, arguments.threads, arguments.rounds, arguments.device,
    )  # fmt: skip
    result = bench(settings, arguments.paths, all_facts() if arguments.ablation else ())
    print_bench(result)
    if arguments.json is not None:
        write_json(arguments.json, result)
