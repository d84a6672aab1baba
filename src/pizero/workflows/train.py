"""A policy from a LeRobot dataset, or from several: statistics, tokenizer, frames, training, checkpoints."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pizero.checkpoints import openpi_jax, paligemma
from pizero.checkpoints.example import Example, make_example
from pizero.checkpoints.load import read_source
from pizero.checkpoints.models import Network, NetworkConfig, make_model, model_name
from pizero.checkpoints.remote import local_folder
from pizero.checkpoints.source import Facts, Source
from pizero.configs.presets import Preset
from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.frames import FrameStore
from pizero.data.pipeline import Pipeline
from pizero.files import write_bytes
from pizero.model.config import Pi0Config
from pizero.model.pi0 import Pi0
from pizero.train.activations import check_compiler, checkpoint_activations, compile_blocks
from pizero.train.config import LoraConfig
from pizero.train.distributed import Ranks, Sharding, torchrun_ranks
from pizero.train.metrics import TRACKERS, Tracker
from pizero.train.run_folder import list_checkpoints
from pizero.train.trainer import Progress, Trainer
from pizero.types import UserError
from pizero.workflows.measures import MeasureConfig, make_measures
from pizero.workflows.memory import keep_freed_memory
from pizero.workflows.progress import console, progress_bar
from pizero.workflows.replay import recorded_observation
from pizero.workflows.training_data import build_pipelines, load_pipelines, make_loaders, open_sources


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
    skip_bad_episodes: those with missing, damaged or contradictory files are left out with one warning.
    measure: what is measured during the training beside the loss. track: names of `train.metrics.TRACKERS`.
    sharding: how the ranks that torchrun starts share the work. recompute: activation checkpointing. compiled: blocks
    through torch.compile, π0 and π0.5 in one process alone.
    """
    with torchrun_ranks(device) as (ranks, own_device):
        torch.set_num_threads(preset.train.threads or max((os.cpu_count() or 1) // ranks.local_count, 1))
        console.quiet = not ranks.is_first
        return _train(
            dataset_root, folder, preset, ranks, resume=resume, start=start, tokenizer=tokenizer, stats=stats,
            device=own_device, episodes=episodes, skip_bad_episodes=skip_bad_episodes, frames=frames, workers=workers,
            measure=measure or MeasureConfig(), track=track, sharding=sharding, recompute=recompute, compiled=compiled,
        )  # fmt: skip


def _train(
    dataset_root: Path,
    folder: Path,
    preset: Preset,
    ranks: Ranks,
    *,
    resume: bool,
    start: str | Path | None,
    tokenizer: Path | None,
    stats: str | Path | None,
    device: str,
    episodes: Sequence[int] | None,
    skip_bad_episodes: bool,
    frames: FrameStore,
    workers: int | None,
    measure: MeasureConfig,
    track: Sequence[str],
    sharding: Sharding,
    recompute: bool,
    compiled: bool,
) -> TrainResult:
    found = ranks.from_first(lambda: list_checkpoints(folder))
    if found and not resume:
        raise UserError(f"{folder} holds checkpoints up to step {int(found[-1].name)}; give --resume or another folder")
    sources = open_sources(
        dataset_root, preset.embodiment, episodes=episodes, norm_stats=stats, skip_bad_episodes=skip_bad_episodes
    )
    model, facts, adapters = _initial_model(preset, start, resume=bool(found))
    preset = replace(preset, model=model.config)
    _change_blocks(model, device, ranks, recompute, compiled)
    ranks.from_first(lambda: _check_run_settings(folder, preset, resume))
    pipelines = ranks.from_first(
        lambda: (
            load_pipelines(found[-1], sources) if found else build_pipelines(sources, preset, folder, tokenizer, facts)
        )
    )
    pipeline, *robots = pipelines.values()
    workers = (0 if torch.device(device).type == "cpu" else min(4, os.cpu_count() or 1)) if workers is None else workers
    with progress_bar() as bars:
        loader, validation = ranks.after_first(  # frames on the disk are decoded once
            lambda: make_loaders(
                sources, pipelines, preset, bars, frames=frames, workers=workers, skip_bad_episodes=skip_bad_episodes,
                rank=ranks.index, num_ranks=ranks.count,
            )
        )  # fmt: skip
        trainer = Trainer(
            model, pipeline, preset.train, loader, validation, folder,
            make_example=_example_maker(sources[0].dataset, pipeline, preset.model.action_horizon), robots=robots,
            measures=make_measures(
                measure, preset.train, pipeline, validation, preset.execution_horizon, device
            ),
            trackers=[_tracker(name, folder) for name in track if ranks.is_first],
            start_adapters=adapters, device=device, ranks=ranks, sharding=sharding,
        )  # fmt: skip
        if resume and trainer.resume():
            console.print(f"resuming from step {trainer.step} of {preset.train.steps}")
        last = _run(trainer, bars)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    checkpoint = ranks.from_first(lambda: list_checkpoints(folder)[-1])
    return TrainResult(checkpoint, parameters, last.loss, last.samples_per_second)


def _change_blocks(model: Network, device: str, ranks: Ranks, recompute: bool, compiled: bool) -> None:
    if compiled:
        if ranks.count > 1 or not isinstance(model, Pi0):
            raise UserError("--compile is for π0 and π0.5 in one process, not for several ranks or the baseline")
        check_compiler(device)
        compile_blocks(model)
    if recompute:
        checkpoint_activations(model)


Adapters = Mapping[str, Tensor] | None


def _initial_model(preset: Preset, start: str | Path | None, resume: bool) -> tuple[Network, Facts | None, Adapters]:
    """With fresh weights, which the seed gives, or with a checkpoint's, what that one tells of its inputs, and the LoRA
    adapters that it has and that are trained further.
    """
    folder = None if start is None else local_folder(start)
    if folder is None or paligemma.detect(folder):
        if folder is None and preset.train.parts.lora is not None and not resume:
            raise UserError("LoRA adapts trained weights; give them with --checkpoint")
        torch.manual_seed(preset.train.seed)
        model = make_model(preset.model)
        if folder is None:
            return model, None, None
        if not isinstance(model, Pi0):
            raise UserError(f"{folder} holds PaliGemma, which is a start for π0 and π0.5 alone")
        for note in paligemma.start_from_paligemma(folder, model):
            console.print(note)
        return model, Facts(), None
    source, adapters = _read_start(folder, preset.train.parts.lora)
    for note in source.notes:
        console.print(note)
    name, wanted = model_name(source.config), model_name(preset.model)
    if name != wanted:
        raise UserError(f"{start} holds a model {name!r}, but {wanted!r} is to be trained; give --model {name}")
    source = replace(source, config=_with_free_fields(source.config, preset.model))
    return source.build(dtype=torch.float32), source.facts, adapters


def _read_start(folder: Path, lora: LoraConfig | None) -> tuple[Source, Adapters]:
    """A checkpoint; one of openpi with LoRA adapters is taken apart where adapters are trained."""
    source = read_source(folder)
    if lora is None or source.format != openpi_jax.NAME:
        return source, None
    unmerged, adapters = openpi_jax.read_unmerged(folder)
    if not adapters:
        return source, None
    if (lora.prefix_rank and lora.prefix_rank != lora.prefix_alpha) or (
        lora.expert_rank and lora.expert_rank != lora.expert_alpha
    ):
        raise UserError(f"{folder} has adapters of scale 1; alphas must equal the ranks to go on with them")
    return unmerged, adapters


def _with_free_fields(config: NetworkConfig, wanted: NetworkConfig) -> NetworkConfig:
    """What no weight depends on is the preset's choice: the action horizon, and whether the prompt tells the state."""
    if not isinstance(config, Pi0Config) or not isinstance(wanted, Pi0Config):
        return config
    state_input = config.state_input if "token" in (config.state_input, wanted.state_input) else wanted.state_input
    changed = replace(config, action_horizon=wanted.action_horizon, state_input=state_input)
    for name in ("action_horizon", "state_input"):
        new, old = getattr(changed, name), getattr(config, name)
        if new != old:
            console.print(f"{name}: {new}, as the preset says, in the place of the checkpoint's {old}")
    return changed


def _tracker(name: str, folder: Path) -> Tracker:
    if name not in TRACKERS:
        raise UserError(f"unknown tracker {name!r}; expected one of {', '.join(TRACKERS)}")
    return TRACKERS[name](folder)


def _run(trainer: Trainer, bars: Any) -> Progress:
    reached = Progress(trainer.step, float("nan"), 0.0, 0.0)
    bar = bars.add_task("training", total=trainer.config.steps, completed=trainer.step, note="")

    def show(progress: Progress) -> None:
        nonlocal reached
        reached = progress
        data = f" · data-bound: {100 * progress.data_share:.0f} %" if progress.data_share > 0.1 else ""
        note = f"loss {progress.loss:.4f} · {progress.samples_per_second:.0f} samples/s{data}"
        bars.update(bar, completed=progress.step, note=note)

    if trainer.device.type == "cpu":
        keep_freed_memory()
    trainer.run(show)
    return reached


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


def _check_run_settings(folder: Path, preset: Preset, resume: bool) -> None:
    """Writes run.json into the folder of a new run; a resumed run must have the same settings."""
    path = folder / "run.json"
    settings = json.loads(json.dumps({"model": preset.model.to_json(), "train": preset.train.to_json()}))
    if resume and path.is_file():
        stored = json.loads(path.read_text())
        changed = [
            f"{part}.{name}" for part in stored for name in stored[part]
            if stored[part][name] != settings.get(part, {}).get(name)
        ]  # fmt: skip
        if changed:
            raise UserError(f"{folder} was started with other settings ({', '.join(changed)}); give them again")
    write_bytes(path, json.dumps(settings, indent=1).encode())
