"""How fast a π0-FAST writes chunks on recorded observations: plain and fast path in turns, and malformed chunks."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pizero.checkpoints.facts import make_pipeline
from pizero.checkpoints.files.remote import local_folder
from pizero.checkpoints.load import read_checkpoint
from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.pipeline import Pipeline
from pizero.engine.fast_writer import FastWriter
from pizero.model.pi0_fast import Pi0Fast, Pi0FastConfig
from pizero.policy.sampling import sample_chunks
from pizero.policy.token_sampler import TokenSampler
from pizero.types import RobotDict, UserError
from pizero.workflows.replay import recorded_observation, spread_over
from pizero.workflows.threads import torch_threads


@dataclass(frozen=True)
class TokensConfig:
    """observations: of the dataset, one a call. threads: 0 takes what PyTorch does."""

    observations: int = 16
    rounds: int = 3
    threads: int = 0

    def __post_init__(self) -> None:
        if min(self.observations, self.rounds) < 1:
            raise UserError(f"observations and rounds must be at least 1, got {self.observations} and {self.rounds}")


def bench_tokens(checkpoint: str | Path, root: Path, config: TokensConfig) -> dict[str, Any]:
    """By path, "plain" and "fast", with decoding constrained, and "free", the fast path without the constraint:
    milliseconds of a chunk (median over the observations, the best of the rounds each), of the clock for the model
    alone and of CPU time with the inputs; tokens of a chunk, malformed chunks. apart: the greatest difference between
    the actions of plain and fast, in the robot's units.
    """
    source = read_checkpoint(local_folder(checkpoint))
    if not isinstance(source.config, Pi0FastConfig):
        raise UserError(
            f"{checkpoint} holds no π0-FAST: only that writes tokens; for another see pizero bench inference"
        )
    pipeline = make_pipeline(source.config, source.facts)
    dataset = LeRobotDataset(local_folder(root, "dataset"))
    frames = spread_over(np.arange(dataset.num_frames), config.observations)
    observations = [recorded_observation(dataset, pipeline, int(frame)) for frame in frames]
    model = source.build(dtype=torch.float32)
    assert isinstance(model, Pi0Fast)
    with torch_threads(config.threads):
        model.config = replace(model.config, constrained=True)
        samplers = {"plain": TokenSampler(model, pipeline), "fast": TokenSampler(FastWriter(model), pipeline)}
        free = FastWriter(model)
        free.config = replace(model.config, constrained=False)
        samplers["free"] = TokenSampler(free, pipeline)
        best, busy, actions = _times(samplers, pipeline, observations, config.rounds)
        rows = {
            name: {
                "median_ms": float(np.median(best[name])),
                "cpu_ms": float(np.median(busy[name])),
                "tokens": sampler.tokens / sampler.chunks,
                "malformed": sampler.malformed / sampler.chunks,
            }
            for name, sampler in samplers.items()
        }
        return {
            "checkpoint": str(checkpoint), "observations": len(observations), "rounds": config.rounds,
            "threads": torch.get_num_threads(), "torch": torch.__version__, "paths": rows,
            "apart": float(np.abs(actions["plain"] - actions["fast"]).max()),
        }  # fmt: skip


def _times(
    samplers: Mapping[str, TokenSampler], pipeline: Pipeline, observations: list[RobotDict], rounds: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Best milliseconds of each observation, by the clock and of CPU time, and its actions; the paths take turns."""
    noise = np.zeros((1, pipeline.norm_stats.actions.dim, 1), np.float32)
    best = {name: np.full(len(observations), np.inf) for name in samplers}
    busy = {name: np.full(len(observations), np.inf) for name in samplers}
    actions = dict[str, np.ndarray]()
    for _ in range(rounds):
        found: dict[str, list[Any]] = {name: [] for name in samplers}
        for number, observation in enumerate(observations):
            for name, sampler in samplers.items():
                timing, started = dict[str, float](), time.process_time()
                found[name].append(sample_chunks(sampler, pipeline, [observation], noise, 1, "cpu", timing)[0])
                best[name][number] = min(best[name][number], timing["model_ms"])
                busy[name][number] = min(busy[name][number], 1000 * (time.process_time() - started))
        actions = {name: np.stack(chunks) for name, chunks in found.items()}
    return best, busy, actions
