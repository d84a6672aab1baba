"""A policy from a LeRobot dataset, or from several: statistics, tokenizer, frames, training, checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pizero.checkpoints.load import read_checkpoint
from pizero.checkpoints.models import Network, empty_model, usable_device
from pizero.checkpoints.native.example import Example, make_example
from pizero.configs.presets import Preset
from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.frames import FrameStore
from pizero.data.mark import data_marks
from pizero.data.pipeline import Pipeline
from pizero.data.tokenizer import PaligemmaTokenizer
from pizero.model.pi0 import Pi0
from pizero.processes import usable_cores, usual_threads
from pizero.train.activations import check_compiler, checkpoint_activations, compile_blocks
from pizero.train.distributed import Ranks, Sharding, torchrun_ranks
from pizero.train.metrics import TRACKERS, Tracker, read_metrics
from pizero.train.run_folder import list_checkpoints
from pizero.train.run_lock import only_training
from pizero.train.trainer import Progress, Trainer
from pizero.types import UserError
from pizero.workflows.measures import MeasureConfig, make_measures
from pizero.workflows.memory import keep_freed_memory
from pizero.workflows.progress import console, progress_bar
from pizero.workflows.replay import recorded_observation
from pizero.workflows.run_settings import check_settings, is_finished, write_settings
from pizero.workflows.sizes import as_started, chosen, model_cameras, sized, with_prompts
from pizero.workflows.start import initial_model, open_start
from pizero.workflows.training_data import (
    Source,
    build_pipelines,
    load_pipelines,
    make_loaders,
    make_tokenizer,
    open_sources,
)


@dataclass(frozen=True)
class TrainResult:
    checkpoint: Path
    parameters: int
    loss: float
    samples_per_second: float


def train_policy(
    dataset_root: Path,
    folder: Path,
    preset: Preset,
    *,
    resume: bool = False,
    start: str | Path | None = None,
    tokenizer: Path | None = None,
    stats: str | Path | None = None,
    device: str = "cpu",
    episodes: Sequence[int] | None = None,
    skip_bad_episodes: bool = False,
    frames: FrameStore = "auto",
    workers: int | None = None,
    measure: MeasureConfig | None = None,
    track: Sequence[str] = (),
    sharding: Sharding = "ddp",
    recompute: bool = False,
    compiled: bool = False,
) -> TrainResult:
    """Trains `preset` on the dataset, or on some of its episodes, into `folder`; on a mixture that a .toml file lists.

    frames: where decoded frames are kept. workers: processes that read ahead; None takes none on the CPU, else up to 4.
    start: a checkpoint of any format whose weights are fine-tuned, or a PaliGemma for the prefix of a π0.
    stats: norm statistics in the place of the dataset's own, as for `read_norm_stats`.
    skip_bad_episodes: those with missing, damaged or contradictory files are skipped with one warning.
    measure: what is measured during the training beside the loss. track: names of `train.metrics.TRACKERS`.
    sharding: how the ranks that torchrun starts share the work. recompute: activation checkpointing. compiled: blocks
    through torch.compile, π0 and π0.5 in one process alone.
    """
    options = _Options(
        resume, start, tokenizer, stats, episodes, skip_bad_episodes, frames, workers, measure or MeasureConfig(),
        track, sharding, recompute, compiled,
    )  # fmt: skip
    with torchrun_ranks(device) as (ranks, own_device):
        torch.set_num_threads(preset.train.threads or usual_threads(ranks.local_count))
        console.quiet = not ranks.is_first
        with ExitStack() as stack:
            ranks.by_first(lambda: stack.enter_context(only_training(folder)))
            ranks.by_first(options.measure.check)
            return _train(dataset_root, folder, preset, ranks, own_device, options)


@dataclass(frozen=True)
class _Options:
    """As for `train_policy`."""

    resume: bool
    start: str | Path | None
    tokenizer: Path | None
    stats: str | Path | None
    episodes: Sequence[int] | None
    skip_bad_episodes: bool
    frames: FrameStore
    workers: int | None
    measure: MeasureConfig
    track: Sequence[str]
    sharding: Sharding
    recompute: bool
    compiled: bool


def _train(
    dataset_root: Path, folder: Path, preset: Preset, ranks: Ranks, device: str, options: _Options
) -> TrainResult:
    usable_device(device)
    found = ranks.from_first(lambda: list_checkpoints(folder))
    step = int(found[-1].name) if found else None
    if step is not None and not options.resume:
        raise UserError(f"{folder} holds checkpoints up to step {step}; give --resume or another folder")
    if step is not None and is_finished(folder, step, preset.train):
        return _result(folder, found[-1], empty_model(read_checkpoint(found[-1]).config))
    start = None if options.start is None else open_start(options.start, preset)
    sources = open_sources(
        dataset_root, preset.embodiment, episodes=options.episodes, norm_stats=options.stats,
        skip_bad_episodes=options.skip_bad_episodes, cameras=model_cameras(preset, start),
    )  # fmt: skip
    preset, tokenizer = ranks.from_first(lambda: _fitted(preset, sources, found, options))
    model, facts, adapters = initial_model(preset, start, resume=bool(found))
    preset = replace(preset, model=model.config)
    _change_blocks(model, device, ranks, options)
    ranks.from_first(lambda: check_settings(folder, preset, step))
    pipelines = ranks.from_first(
        lambda: load_pipelines(found[-1], sources) if found else build_pipelines(sources, preset, tokenizer, facts)
    )
    pipeline, *robots = pipelines.values()
    with progress_bar() as bars:
        loader, validation = ranks.after_first(  # frames on the disk are decoded once
            lambda: make_loaders(
                sources, pipelines, preset, bars, frames=options.frames, workers=_workers(options, device),
                skip_bad_episodes=options.skip_bad_episodes, rank=ranks.index, num_ranks=ranks.count,
            )
        )  # fmt: skip
        trainer = Trainer(
            model, pipeline, preset.train, loader, validation, folder,
            make_example=_example_maker(sources[0].dataset, pipeline, preset.model.action_horizon), robots=robots,
            measures=make_measures(
                options.measure, preset.train, pipeline, validation, preset.execution_horizon
            ),
            trackers=[_tracker(name, folder) for name in options.track if ranks.is_first],
            start_adapters=adapters, device=device, ranks=ranks, sharding=options.sharding,
            data=data_marks(loader.members),
        )  # fmt: skip
        if options.resume and trainer.resume():
            console.print(_resumed(trainer))
        ranks.by_first(lambda: write_settings(folder, preset))
        _run(trainer, bars)
    return _result(folder, ranks.from_first(lambda: list_checkpoints(folder)[-1]), model)


def _fitted(
    preset: Preset, sources: Sequence[Source], found: Sequence[Path], options: _Options
) -> tuple[Preset, PaligemmaTokenizer | None]:
    """The preset with the sizes that come from the data, and the tokenizer of a training that begins. A run that goes
    on keeps its own.
    """
    if found:
        return as_started(preset, read_checkpoint(found[-1]).config), None
    preset = sized(preset, sources)
    if options.start is not None:
        tokenizer = None if options.tokenizer is None else PaligemmaTokenizer(options.tokenizer)
    else:
        tokenizer = make_tokenizer(sources, preset, options.tokenizer)
        preset = preset if tokenizer is None else with_prompts(preset, sources, tokenizer)
    for line in chosen(preset, sources, from_scratch=options.start is None):
        console.print(line)
    return preset, tokenizer


def _resumed(trainer: Trainer) -> str:
    if trainer.selection.ended:
        return (
            f"{trainer.folder} is finished: it ended at step {trainer.step:,}, after "
            f"{trainer.selection.worse_since} measurements without an improvement. A larger --patience continues it."
        )
    return f"resuming from step {trainer.step:,} of {trainer.config.steps:,}"


def _result(folder: Path, checkpoint: Path, model: Network) -> TrainResult:
    """With the loss and the speed of the last line of metrics.jsonl that has them."""
    lines = [line for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]
    last: dict[str, Any] = lines[-1] if lines else {}
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return TrainResult(checkpoint, parameters, last.get("loss", float("nan")), last.get("samples_per_second", 0.0))


def _workers(options: _Options, device: str) -> int:
    if options.workers is not None:
        return options.workers
    return 0 if torch.device(device).type == "cpu" else min(4, usable_cores())


def _change_blocks(model: Network, device: str, ranks: Ranks, options: _Options) -> None:
    if options.compiled:
        if ranks.count > 1 or not isinstance(model, Pi0):
            raise UserError("--compile is for π0 and π0.5 in one process, not for several ranks or the baseline")
        check_compiler(device)
        compile_blocks(model)
    if options.recompute:
        checkpoint_activations(model)


def _tracker(name: str, folder: Path) -> Tracker:
    if name not in TRACKERS:
        raise UserError(f"unknown tracker {name!r}; expected one of {', '.join(TRACKERS)}")
    return TRACKERS[name](folder)


def _run(trainer: Trainer, bars: Any) -> None:
    bar = bars.add_task("training", total=trainer.config.steps, completed=trainer.step, note="")

    def show(progress: Progress) -> None:
        data = f" · data-bound: {100 * progress.data_share:.0f} %" if progress.data_share > 0.1 else ""
        note = f"loss {progress.loss:.4f} · {progress.samples_per_second:.0f} samples/s{data}"
        bars.update(bar, completed=progress.step, note=note)

    if trainer.device.type == "cpu":
        keep_freed_memory()
    trainer.run(show)


def _example_maker(dataset: LeRobotDataset, pipeline: Pipeline, horizon: int) -> Callable[[Network], Example]:
    """The dataset's first frame, or as many as a history has, with fixed noise, for the checkpoint's stored example."""
    observation = recorded_observation(dataset, pipeline, min(pipeline.num_history, dataset.num_frames) - 1)
    noise = np.random.default_rng(0).standard_normal((horizon, pipeline.action_dim)).astype(np.float32)

    def make(model: Network) -> Example:
        training = model.training
        example = make_example(model.eval(), pipeline, observation, noise)
        model.train(training)
        return example

    return make
