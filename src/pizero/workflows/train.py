"""A policy from a LeRobot dataset: statistics, tokenizer, frames into memory, training, checkpoints."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pizero.checkpoints import paligemma
from pizero.checkpoints.example import Example, make_example
from pizero.checkpoints.facts import PALIGEMMA_VOCABULARY, make_pipeline
from pizero.checkpoints.load import read_source
from pizero.checkpoints.models import Network, make_model, model_name
from pizero.checkpoints.remote import local_folder
from pizero.checkpoints.source import Facts
from pizero.configs.presets import Preset
from pizero.data.datasets.layout import BadEpisodeError
from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.embodiments import get_embodiment
from pizero.data.loader import FrameCache, Loader, split_episodes
from pizero.data.norm_stats import NormStats, near_constant_dimensions
from pizero.data.pipeline import Pipeline
from pizero.data.tokenizer import PaligemmaTokenizer, train_tokenizer
from pizero.files import write_bytes
from pizero.model.pi0 import Pi0
from pizero.train.trainer import Progress, Trainer, list_checkpoints
from pizero.types import RobotDict, UserError
from pizero.workflows.norm_stats import dataset_norm_stats
from pizero.workflows.progress import console, progress_bar


@dataclass(frozen=True)
class TrainResult:
    checkpoint: Path
    parameters: int
    loss: float
    samples_per_second: float


def build_pipeline(
    dataset: LeRobotDataset,
    preset: Preset,
    folder: Path,
    tokenizer: Path | None = None,
    stats: Path | None = None,
    start: Facts | None = None,
) -> Pipeline:
    """Statistics of this dataset, unless a file is given, and a tokenizer that fits the model.

    start: of the checkpoint whose weights are trained further; its tokenizer and its way of preparing images stay.
    """
    config, embodiment = preset.model, get_embodiment(preset.embodiment)
    norm_stats = (
        NormStats.load(stats, preset.norm_mode)
        if stats is not None
        else dataset_norm_stats(dataset, embodiment, preset.norm_mode, config.action_horizon)
    )
    for warning in near_constant_dimensions(norm_stats):
        console.print(f"[yellow]warning[/] {warning}")
    folder.mkdir(parents=True, exist_ok=True)
    facts = replace(start or Facts(), embodiment=embodiment, norm_stats=norm_stats)
    if tokenizer is not None:
        facts = replace(facts, tokenizer=PaligemmaTokenizer(tokenizer))
    elif start is None and config.vocab_size != PALIGEMMA_VOCABULARY:
        texts = dataset.tasks
        if embodiment.prompt_key != "task" or embodiment.default_prompt:
            frames = np.arange(dataset.num_frames)
            texts = dataset.prompts(frames, embodiment.prompt_key, embodiment.default_prompt)
        own = train_tokenizer(sorted(set(texts)), folder / "tokenizer.model", preset.tokenizer_size)
        facts = replace(facts, tokenizer=own)
    return make_pipeline(config, facts)


def train_policy(
    dataset_root: Path,
    folder: Path,
    preset: Preset,
    *,
    resume: bool = False,
    start: str | Path | None = None,
    tokenizer: Path | None = None,
    stats: Path | None = None,
    device: str = "cpu",
    episodes: Sequence[int] | None = None,
    skip_bad_episodes: bool = False,
) -> TrainResult:
    """Trains `preset` on the dataset, or on some of its episodes, into `folder`.

    start: a checkpoint of any format whose weights are fine-tuned, or a PaliGemma for the prefix of a π0.
    skip_bad_episodes: those with missing or damaged files or gaps are left out with a warning each.
    """
    torch.set_num_threads(preset.train.threads or os.cpu_count() or 1)
    found = list_checkpoints(folder)
    if found and not resume:
        raise UserError(f"{folder} holds checkpoints up to step {int(found[-1].name)}; give --resume or another folder")
    dataset = LeRobotDataset(
        local_folder(dataset_root, "dataset"), episodes=episodes, skip_bad_episodes=skip_bad_episodes
    )
    model, facts = _initial_model(preset, start)
    preset = replace(preset, model=model.config)
    _check_run_settings(folder, preset, resume)
    pipeline = Pipeline.load(found[-1]) if found else build_pipeline(dataset, preset, folder, tokenizer, stats, facts)
    config = preset.train
    with progress_bar() as bars:
        dataset, cache = _load_frames(dataset, pipeline, bars, skip_bad_episodes)
        split = split_episodes(dataset, config.validation_fraction, config.seed)
        loaders = [
            Loader(
                dataset, pipeline, cache, frames,
                horizon=preset.model.action_horizon, batch_size=config.batch_size, seed=config.seed,
                early_frames=config.early_frames,
            )
            if len(frames) else None
            for frames in split
        ]  # fmt: skip
        assert loaders[0] is not None
        trainer = Trainer(
            model, pipeline, config, loaders[0], loaders[1], folder,
            make_example=_example_maker(dataset, pipeline, preset.model.action_horizon), device=device,
        )  # fmt: skip
        if resume and trainer.resume():
            console.print(f"resuming from step {trainer.step} of {config.steps}")
        last = _run(trainer, bars)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return TrainResult(list_checkpoints(folder)[-1], parameters, last.loss, last.samples_per_second)


def _initial_model(preset: Preset, start: str | Path | None) -> tuple[Network, Facts | None]:
    """With fresh weights, which the seed gives, or with a checkpoint's, and what that one tells of its inputs."""
    folder = None if start is None else local_folder(start)
    if folder is None or paligemma.detect(folder):
        torch.manual_seed(preset.train.seed)
        model = make_model(preset.model)
        if folder is None:
            return model, None
        if not isinstance(model, Pi0):
            raise UserError(f"{folder} holds PaliGemma, which is a start for π0 and π0.5 alone")
        for note in paligemma.start_from_paligemma(folder, model):
            console.print(note)
        return model, Facts()
    source = read_source(folder)
    for note in source.notes:
        console.print(note)
    name, wanted = model_name(source.config), model_name(preset.model)
    if name != wanted:
        raise UserError(f"{start} holds a model {name!r}, but {wanted!r} is to be trained; give --model {name}")
    return source.build(dtype=torch.float32), source.facts


def _run(trainer: Trainer, bars: Any) -> Progress:
    reached = Progress(trainer.step, float("nan"), 0.0, 0.0)
    bar = bars.add_task("training", total=trainer.config.steps, completed=trainer.step, note="")

    def show(progress: Progress) -> None:
        nonlocal reached
        reached = progress
        data = f" · data {progress.data_share:.0%}" if progress.data_share > 0.1 else ""
        note = f"loss {progress.loss:.4f} · {progress.samples_per_second:.0f} samples/s{data}"
        bars.update(bar, completed=progress.step, note=note)

    trainer.run(show)
    return reached


def _load_frames(
    dataset: LeRobotDataset, pipeline: Pipeline, bars: Any, skip_bad_episodes: bool
) -> tuple[LeRobotDataset, FrameCache]:
    """The frames, and the dataset without the episodes whose images cannot be decoded."""
    bar = bars.add_task("reading frames", total=None, note="")
    report: Callable[[int, int], None] = lambda done, total: bars.update(bar, completed=done, total=total)  # noqa: E731
    cameras = list(pipeline.embodiment.cameras.values())
    while True:
        try:
            return dataset, FrameCache(dataset, cameras, pipeline.image_size, report, convention=pipeline.convention)
        except BadEpisodeError as error:
            good = [int(episode) for episode in dataset.episodes if episode not in error.episodes]
            if not skip_bad_episodes or not good:
                raise
            console.print(f"[yellow]left out[/] {error}")
            dataset = LeRobotDataset(dataset.root, episodes=good, tolerance=None)


def recorded_observation(dataset: LeRobotDataset, pipeline: Pipeline, frame: int) -> RobotDict:
    """What the robot saw at a frame, with the history that the pipeline asks for."""
    embodiment, history = pipeline.embodiment, pipeline.num_history
    frames = dataset.history([frame], history)[0]  # [T]
    state = dataset.column(embodiment.state_key)[frames]
    images = {camera: dataset.images(camera, frames) for camera in embodiment.cameras.values()}
    if history == 1:  # has no axis of its own
        state, images = state[0], {camera: image[0] for camera, image in images.items()}
    prompts = dataset.prompts([frame], embodiment.prompt_key, embodiment.default_prompt)
    return {"state": state, "images": images, "prompt": prompts[0]}


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
