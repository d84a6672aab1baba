"""What a training measures beside its loss: the error of replayed actions, and success in a simulator."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pizero.checkpoints.models import Network
from pizero.data.doctor.open_loop import summarize
from pizero.data.loader import Loader
from pizero.data.pipeline import Pipeline
from pizero.envs.env import make_env
from pizero.evaluation.benchmark import RolloutConfig, evaluate
from pizero.policy.policy import ModelPolicy
from pizero.train.config import TrainConfig
from pizero.train.metrics import TRACKERS
from pizero.train.trainer import Measure
from pizero.types import UserError
from pizero.workflows.replay import replay, spread_over


@dataclass(frozen=True)
class MeasureConfig:
    """open_loop_chunks: of the held-out episodes of each dataset, replayed at every validation; 0 for none. env: the
    simulator in which `episodes` of each task are run every `evaluate_every` steps. track: where the numbers go beside
    metrics.jsonl, names of `train.metrics.TRACKERS`.
    """

    open_loop_chunks: int = 0
    env: str | None = None
    evaluate_every: int = 5_000
    episodes: int = 10
    track: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        unknown = next((name for name in self.track if name not in TRACKERS), None)
        if unknown is not None:
            raise UserError(f"unknown tracker {unknown!r}; expected one of {', '.join(TRACKERS)}")
        if self.open_loop_chunks < 0 or min(self.evaluate_every, self.episodes) < 1:
            raise UserError(f"steps, episodes and chunks of measurements must be positive, got {self}")

    def check(self) -> None:
        """Makes the simulator once: UserError now, and not after thousands of steps, where that fails."""
        if self.env is not None:
            make_env(self.env).close()


def make_measures(
    config: MeasureConfig, train: TrainConfig, pipeline: Pipeline, held_out: Loader | None, execution_horizon: int
) -> list[Measure]:
    """Those that the config asks for; UserError for a replay where no episode is held out."""
    measures: list[Measure] = []
    if config.open_loop_chunks:
        if held_out is None:
            raise UserError("open-loop errors need held-out episodes; raise validation_fraction")
        measures.append(_open_loop(config, train.validate_every, held_out))
    if config.env is not None:
        measures.append(_simulator(config, config.env, pipeline, execution_horizon))
    return measures


def _open_loop(config: MeasureConfig, every: int, held_out: Loader) -> Measure:
    """open_loop_error: mean absolute error over the moving dimensions, in standard deviations of the recorded actions.

    open_loop_constant: what always giving the median action would reach; a policy must be below.
    """

    def run(model: Network) -> dict[str, float]:
        errors: list[float] = []
        constants: list[float] = []
        for member in held_out.members:
            policy = ModelPolicy(model, member.pipeline, fast=False)
            found = summarize(replay(member.dataset, policy, spread_over(member.frames, config.open_loop_chunks)))
            errors += [error for error in found["relative_error"] if error is not None]
            constants += [error for error in found["constant_error"] if error is not None]
        return {"open_loop_error": float(np.mean(errors)), "open_loop_constant": float(np.mean(constants))}

    return Measure(every, ("open_loop_error", "open_loop_constant"), run)


def _simulator(config: MeasureConfig, env: str, pipeline: Pipeline, execution_horizon: int) -> Measure:
    """success_rate over the episodes of all tasks; UserError when the simulator fails in one of them."""

    def run(model: Network) -> dict[str, float]:
        policy = ModelPolicy(model, pipeline, fast=False)
        results = evaluate(
            policy,
            RolloutConfig(env, config.episodes, execution_horizon=execution_horizon, image_size=pipeline.image_size[0]),
        )
        if results["errors"]:
            raise UserError(f"{results['errors']} episodes in {env} ended by an error: {results['error_texts']}")
        return {"success_rate": float(results["success_rate"])}

    return Measure(config.evaluate_every, ("success_rate",), run)
