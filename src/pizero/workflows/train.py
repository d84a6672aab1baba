"""A policy from a LeRobot dataset, or from several: statistics, tokenizer, frames, training, checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pizero.checkpoints.facts import language_of, writes_actions
from pizero.checkpoints.files.remote import paligemma_tokenizer
from pizero.checkpoints.format import Facts
from pizero.checkpoints.load import read_checkpoint
from pizero.checkpoints.models import Network, NetworkConfig, empty_model, usable_device
from pizero.checkpoints.native.example import Example, make_example
from pizero.configs.one_step import with_one_step_of
from pizero.configs.presets import Preset
from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.mark import data_marks
from pizero.data.norm_stats import NormStats
from pizero.data.pipeline import Pipeline
from pizero.data.tokenizer import PaligemmaTokenizer
from pizero.model.pi0 import Pi0
from pizero.model.pi0_fast import Pi0Fast, Pi0FastConfig
from pizero.processes import usual_threads
from pizero.train.activations import checkpoint_activations
from pizero.train.compile import check_compiler, compile_blocks
from pizero.train.distributed import Placement, Sharding, torchrun_ranks
from pizero.train.metrics import TRACKERS, read_metrics
from pizero.train.run_folder import list_checkpoints
from pizero.train.run_lock import only_training
from pizero.train.saving import RunOutput
from pizero.train.trainer import Progress, Trainer
from pizero.types import UserError
from pizero.workflows.measures import MeasureConfig, make_measures
from pizero.workflows.memory import freed_memory_kept
from pizero.workflows.progress import console, progress_bar
from pizero.workflows.replay import recorded_observation
from pizero.workflows.run_settings import check_settings, is_finished, write_settings
from pizero.workflows.sizes import (
    as_started,
    model_cameras,
    print_choices,
    robot_cameras,
    sized,
    with_cameras,
    with_language_of,
    with_prompts,
    with_text,
)
from pizero.workflows.start import Initialization, Start, initial_model, open_start
from pizero.workflows.threads import torch_threads
from pizero.workflows.training_codec import fit_actions
from pizero.workflows.training_data import (
    DataOptions,
    Source,
    build_pipelines,
    load_pipelines,
    make_loaders,
    make_tokenizer,
    open_sources,
)


@dataclass(frozen=True)
class Runtime:
    """Where and how a training computes.

    sharding: how the ranks that torchrun starts share the work. recompute: activation checkpointing. compiled: blocks
    through torch.compile, of π0, π0.5 and π0-FAST in one process alone.
    """

    device: str = "cpu"
    sharding: Sharding = "ddp"
    recompute: bool = False
    compiled: bool = False


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
    initial: Initialization = Initialization(),
    data: DataOptions = DataOptions(),
    runtime: Runtime = Runtime(),
    measure: MeasureConfig = MeasureConfig(),
) -> TrainResult:
    """Trains `preset` on the dataset into `folder`; on a mixture that a .toml file lists.

    resume: continues from the folder's newest checkpoint. measure: what is measured beside the loss. Threads, random
    numbers and warnings of this process are afterwards as they were.
    """
    with ExitStack() as stack:
        ranks, device = stack.enter_context(torchrun_ranks(runtime.device))
        usable_device(device)
        placement = Placement(torch.device(device), ranks, runtime.sharding)
        stack.enter_context(_process_settings(placement, preset.train.threads))
        ranks.by_first(lambda: stack.enter_context(only_training(folder)))
        ranks.by_first(measure.check)
        found = ranks.from_first(lambda: list_checkpoints(folder))
        step = int(found[-1].name) if found else None
        if step is not None and not resume:
            raise UserError(f"{folder} holds checkpoints up to step {step}; give --resume or another folder")
        own = read_checkpoint(found[-1]).config if found else None
        if step is not None and own is not None and is_finished(folder, step, _asked_again(preset, own, initial)):
            if initial.checkpoint is not None:
                console.print(f"{initial.checkpoint} is not read: its weights begin another run, in a new folder")
            return _result(folder, found[-1], empty_model(own))
        start = None if initial.checkpoint is None else open_start(initial.checkpoint, preset)
        preset = _as_before(preset, own, start)
        sources = open_sources(
            dataset_root, preset.embodiment, episodes=data.episodes, norm_stats=initial.norm_stats,
            skip_bad_episodes=data.skip_bad_episodes, cameras=model_cameras(preset, start), subtasks=data.subtasks,
        )  # fmt: skip
        preset, fitted, stats = ranks.from_first(lambda: fit_to_data(preset, sources, found, initial, start))
        model, facts, adapters = initial_model(preset, start, robot_cameras(sources), resume=bool(found))
        preset = replace(preset, model=model.config)
        _change_blocks(model, placement, runtime)
        ranks.from_first(lambda: check_settings(folder, preset, step))
        pipelines = ranks.from_first(
            lambda: (
                load_pipelines(found[-1], sources)
                if found
                else build_pipelines(sources, preset, with_fitted(facts, fitted), stats)
            )
        )
        bars = stack.enter_context(progress_bar())
        loader, validation = ranks.after_first(  # frames on the disk are decoded once
            lambda: make_loaders(sources, pipelines, preset, bars, data, placement)
        )
        pipeline, *robots = pipelines.values()
        output = RunOutput(
            folder, pipeline, robots, _example_maker(sources[0].dataset, pipeline, preset.model.action_horizon),
            data_marks(loader.members), [TRACKERS[name](folder) for name in measure.track if ranks.is_first],
        )  # fmt: skip
        measures = make_measures(measure, preset.train, pipeline, validation, preset.execution_horizon)
        trainer = Trainer(
            model, preset.train, loader, validation, output, measures=measures, adapters=adapters, placement=placement
        )
        if resume and trainer.resume():
            console.print(_resumed(trainer))
        ranks.by_first(lambda: write_settings(folder, preset))
        _run(trainer, bars)
        return _result(folder, ranks.from_first(lambda: list_checkpoints(folder)[-1]), model)


@contextmanager
def _process_settings(placement: Placement, threads: int) -> Iterator[None]:
    """Threads as the training has them, and a terminal that the first rank alone writes to; undone at the end, as what
    the training does to PyTorch's random numbers.
    """
    quiet, devices = console.quiet, [placement.device] if placement.device.type == "cuda" else []
    count = threads or usual_threads(placement.ranks.local_count)
    with torch.random.fork_rng(devices), torch_threads(count):
        console.quiet = quiet or not placement.ranks.is_first
        try:
            yield
        finally:
            console.quiet = quiet


def _as_before(preset: Preset, own: NetworkConfig | None, start: Start | None) -> Preset:
    """The preset with what the model that it continues learns to write, and its single step. own: of the run's own
    model, where there is one; else the start's is continued.
    """
    config = own
    if config is None and start is not None and start.source is not None:
        config = start.source.config
    if config is None:
        return preset
    return with_language_of(with_one_step_of(preset, config), config)


def _asked_again(preset: Preset, own: NetworkConfig, initial: Initialization) -> Preset:
    """The preset as run.json would have it, without a look at the data: with what the run's own model took from there,
    or all of that model where it began with a checkpoint's.
    """
    if initial.checkpoint is not None:
        return replace(preset, model=own)
    return as_started(_as_before(preset, own, None), own)


def fit_to_data(
    preset: Preset, sources: Sequence[Source], found: Sequence[Path], initial: Initialization, start: Start | None
) -> tuple[Preset, Facts, Mapping[str, NormStats] | None]:
    """The preset with the sizes that come from the data; the tokenizer and the codec of a training that begins; the
    robots' statistics where the codec is fitted with them. A resumed run keeps its own.
    """
    if initial.codec is not None and not writes_actions(preset.model):
        raise UserError("a codec is for --model pi0-fast, or for --fast; this model writes no tokens")
    if found:
        started = as_started(preset, read_checkpoint(found[-1]).config)
        return (started if preset.from_data else with_cameras(started, sources)), Facts(), None
    preset = with_cameras(sized(preset, sources), sources)
    if initial.checkpoint is not None:
        tokenizer = None if initial.tokenizer is None else PaligemmaTokenizer(initial.tokenizer)
    else:
        tokenizer = make_tokenizer(sources, preset, initial.tokenizer)
        if tokenizer is not None and not isinstance(preset.model, Pi0FastConfig):
            preset = with_prompts(preset, sources, tokenizer)
    fitted, stats = Facts(tokenizer=tokenizer), None
    facts = with_fitted(None if start is None or start.source is None else start.source.facts, fitted)
    if language_of(preset.model) is not None:
        preset = with_text(preset, sources, facts.tokenizer or PaligemmaTokenizer(paligemma_tokenizer()))
    if writes_actions(preset.model):
        preset, codec, stats = fit_actions(preset, sources, facts, start, initial.codec)
        fitted = replace(fitted, codec=codec)
    print_choices(preset, sources, from_scratch=initial.checkpoint is None)
    return preset, fitted, stats


def with_fitted(start: Facts | None, fitted: Facts) -> Facts:
    """A start's facts, with the tokenizer and the codec of this training in place of its own."""
    start = start or Facts()
    return replace(start, tokenizer=fitted.tokenizer or start.tokenizer, codec=fitted.codec or start.codec)


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


def _change_blocks(model: Network, placement: Placement, runtime: Runtime) -> None:
    if runtime.compiled:
        if placement.ranks.count > 1 or not isinstance(model, Pi0 | Pi0Fast):
            raise UserError(
                "--compile is for π0, π0.5 and π0-FAST in one process, not for several ranks or the baseline"
            )
        check_compiler(placement.device)
        compile_blocks(model)
    if runtime.recompute:
        checkpoint_activations(model)


def _run(trainer: Trainer, bars: Any) -> None:
    bar = bars.add_task("training", total=trainer.config.steps, completed=trainer.step, note="")

    def show(progress: Progress) -> None:
        data = f" · data-bound: {100 * progress.data_share:.0f} %" if progress.data_share > 0.1 else ""
        note = f"loss {progress.loss:.4f} · {progress.samples_per_second:.0f} samples/s{data}"
        bars.update(bar, completed=progress.step, note=note)

    with freed_memory_kept() if trainer.device.type == "cpu" else nullcontext():
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
