"""The model and the pipeline that a training begins with, for a loop that is not ours."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pizero.configs.preset import OWN, Pi0Name
from pizero.configs.presets import small
from pizero.data.pipeline import Pipeline
from pizero.model.config import Pi0Config
from pizero.model.pi0 import Pi0
from pizero.types import UserError
from pizero.workflows.sizes import model_cameras, robot_cameras
from pizero.workflows.start import Initialization, initial_model, open_start
from pizero.workflows.train import fit_to_data, with_fitted
from pizero.workflows.training_data import build_pipelines, open_sources


def untrained(
    dataset: Path,
    model: Pi0Name,
    horizon: int,
    checkpoint: str | Path | None = None,
    embodiment: str | None = None,
    norm_stats: str | Path | None = None,
    tokenizer: str | Path | None = None,
) -> tuple[Pi0, Pipeline]:
    """As `pizero train DATASET --preset small` begins, with chunks of `horizon` actions; or with the weights of a
    checkpoint, whose sizes then hold. Robot and statistics are the dataset's, unless they are given.
    """
    preset = replace(small(model), embodiment=embodiment or OWN)
    initial = Initialization(
        checkpoint, tokenizer=None if tokenizer is None else Path(tokenizer), norm_stats=norm_stats
    )
    start = None
    if checkpoint is not None:
        start = open_start(checkpoint, preset)
        if start.source is None or not isinstance(start.source.config, Pi0Config):
            raise UserError(f"{checkpoint} is no π0 and no π0.5")
        preset = replace(preset, model=start.source.config, from_data=False)
    sources = open_sources(
        dataset, preset.embodiment, norm_stats=initial.norm_stats, cameras=model_cameras(preset, start)
    )
    preset, found, stats = fit_to_data(preset, sources, (), initial, start)
    if preset.model.action_horizon != horizon:
        preset = replace(preset, model=replace(preset.model, action_horizon=horizon))
    network, facts, _ = initial_model(preset, start, robot_cameras(sources), resume=False)
    assert isinstance(network, Pi0)
    pipelines = build_pipelines(sources, replace(preset, model=network.config), with_fitted(facts, found), stats)
    return network, next(iter(pipelines.values()))
