"""What a training reads: one LeRobot dataset, or a mixture of several that a TOML file lists."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import torch

from pizero.checkpoints.facts import PALIGEMMA_VOCABULARY, language_of, make_pipeline
from pizero.checkpoints.files.remote import local_folder
from pizero.checkpoints.format import Facts
from pizero.checkpoints.native.checkpoint import load_robots
from pizero.checkpoints.stats import read_norm_stats
from pizero.configs.presets import OWN, Preset
from pizero.data.datasets.faults import ranges
from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.datasets.meta.layout import BadEpisodeError
from pizero.data.embodiments import Embodiment, get_embodiment
from pizero.data.frames import FrameCache, FrameStore
from pizero.data.layouts import Layout
from pizero.data.loader import Loader, Member, split_episodes
from pizero.data.norm_stats import Mode, NormStats, near_constant_dimensions
from pizero.data.pipeline import Pipeline
from pizero.data.recognition.recognise import RobotGuess
from pizero.data.robot_columns import action_names, robot_widths, state_names
from pizero.data.tokenizer import PaligemmaTokenizer, train_tokenizer
from pizero.files import read_toml
from pizero.processes import usable_cores
from pizero.train.distributed import Placement
from pizero.types import UserError, check_least
from pizero.workflows.norm_stats import datasets_norm_stats
from pizero.workflows.own_robot import guess_robot
from pizero.workflows.progress import tell, tell_notes

Pipelines = dict[str, Pipeline]
"""By the embodiment's name; the first is the checkpoint's own."""


@dataclass(frozen=True)
class DataOptions:
    """How a training reads its data.

    episodes: some of a single dataset's. skip_bad_episodes: those with missing, damaged or contradictory files are left
    out with one warning. frames: where decoded frames are kept. workers: processes that read ahead; None takes none on
    the CPU, else up to 4. subtasks: of a single dataset, as for `find_subtasks`.
    """

    episodes: Sequence[int] | None = None
    skip_bad_episodes: bool = False
    frames: FrameStore = "auto"
    workers: int | None = None
    subtasks: str | Path | None = None

    def __post_init__(self) -> None:
        check_least(0, workers=self.workers or 0)

    def workers_beside(self, device: torch.device) -> int:
        if self.workers is not None:
            return self.workers
        return 0 if device.type == "cpu" else min(4, usable_cores())


@dataclass(frozen=True)
class Source:
    """One dataset of a training. weight: as for `loader.Member`. norm_stats: as for `read_norm_stats`, or its own.
    guess: where the robot comes from, if neither a name nor a file describes it.
    """

    dataset: LeRobotDataset
    embodiment: Embodiment
    weight: float | None = None
    norm_stats: str | Path | None = None
    guess: RobotGuess | None = None


def open_sources(
    path: Path,
    embodiment: str,
    *,
    episodes: Sequence[int] | None = None,
    norm_stats: str | Path | None = None,
    skip_bad_episodes: bool = False,
    cameras: Sequence[str] | None = None,
    subtasks: str | Path | None = None,
) -> list[Source]:
    """The dataset at `path` (folder or hub id), or those of a mixture, a .toml file.

    embodiment: name, TOML file or `OWN`, for a dataset that does not record its own. episodes, norm_stats, subtasks: of
    a single dataset. cameras: the model's, for an `own_robot`.
    """
    if path.suffix != ".toml":
        source = _open(
            local_folder(path, "dataset"), embodiment, cameras, episodes=episodes, skip_bad_episodes=skip_bad_episodes,
            subtasks=subtasks,
        )  # fmt: skip
        tell_notes(source.dataset.notes)
        return [replace(source, norm_stats=norm_stats)]
    if episodes is not None or norm_stats is not None or subtasks is not None:
        raise UserError(f"{path} is a mixture: choose norm_stats there, and subtasks, for each dataset")
    sources: list[Source] = []
    for entry in _entries(path):
        folder = local_folder(_beside(path, entry["path"]), "dataset")
        named = entry.get("embodiment", embodiment)
        stats = entry.get("norm_stats")
        opened = _open(
            folder, str(_beside(path, named)) if named.endswith(".toml") else named, cameras,
            skip_bad_episodes=skip_bad_episodes, subtasks=_subtasks_beside(path, entry.get("subtasks")),
        )  # fmt: skip
        source = replace(opened, weight=entry.get("weight"), norm_stats=None if stats is None else _beside(path, stats))
        sources.append(_named_apart(source, sources) if named == OWN else source)
    for source in sources:
        tell_notes(source.dataset.notes, source.dataset.root.name)
        first = next(other for other in sources if other.embodiment.name == source.embodiment.name)
        if first.embodiment != source.embodiment or first.norm_stats != source.norm_stats:
            raise UserError(
                f"{path}: two datasets share the robot {source.embodiment.name!r}, but not its description or its "
                "norm_stats; give one of the robots another name"
            )
    return sources


def _open(folder: Path, embodiment: str, cameras: Sequence[str] | None, **options: Any) -> Source:
    """A dataset, whose faults are those of the robot's cameras and columns, with the robot."""
    if embodiment == OWN:
        dataset = LeRobotDataset(folder, **options)
        guess = guess_robot(dataset, cameras)
        source = Source(dataset, guess.robot, guess=guess)
    else:
        robot = get_embodiment(embodiment)
        dataset = LeRobotDataset(folder, cameras=list(robot.cameras.values()), columns=robot.columns, **options)
        source = Source(dataset, robot)
    _ = dataset.subtasks  # what is wrong with them is reported now
    return source


def _named_apart(source: Source, others: Sequence[Source]) -> Source:
    """Of a mixture, whose datasets have several instructions: robots that the datasets describe differently get
    different names.
    """
    robot = replace(source.embodiment, default_prompt="")
    for number in range(1, len(others) + 2):
        named = replace(robot, name=robot.name if number == 1 else f"{robot.name}_{number}")
        same = [other for other in others if other.embodiment.name == named.name]
        if all((other.embodiment, other.norm_stats) == (named, source.norm_stats) for other in same):
            return replace(source, embodiment=named)
    raise AssertionError("one name more than there are others is free")


def make_tokenizer(sources: Sequence[Source], preset: Preset, given: Path | None = None) -> PaligemmaTokenizer | None:
    """Of a training without an initial checkpoint: the SentencePiece file given, or a small vocabulary trained on all
    prompts; None where the model's table is PaliGemma's.
    """
    if given is not None:
        return PaligemmaTokenizer(given)
    if preset.model.vocab_size == PALIGEMMA_VOCABULARY:
        return None
    language = language_of(preset.model)
    words = [] if language is None else Layout(language.layout, PaligemmaTokenizer.bytes()).words
    prompts = sorted({text for source in sources for text in (*prompts_of(source), *subtasks_of(source))}) + words
    with TemporaryDirectory() as folder:
        return train_tokenizer(prompts, Path(folder) / "tokenizer.model", preset.tokenizer_size)


def build_pipelines(
    sources: Sequence[Source], preset: Preset, facts: Facts | None = None, stats: Mapping[str, NormStats] | None = None
) -> Pipelines:
    """For every robot, with its statistics: `robots_stats` where none are given.

    facts: what they share: tokenizer, codec, and of an initial checkpoint preparation of images and mode of statistics.
    """
    facts = facts or Facts()
    stats = robots_stats(sources, preset, facts) if stats is None else stats
    pipelines: Pipelines = {}
    for source in sources:
        name = source.embodiment.name
        if name not in pipelines:
            known = replace(facts, embodiment=source.embodiment, norm_stats=stats[name])
            pipelines[name] = make_pipeline(preset.model, known)
    return pipelines


def robots_stats(sources: Sequence[Source], preset: Preset, start: Facts) -> dict[str, NormStats]:
    """Of every robot, by its name: of all its datasets together, unless others are given.

    start: of the checkpoint whose weights are trained further; the mode of its statistics stays.
    """
    mode = preset.norm_mode if start.norm_stats is None else start.norm_stats.mode
    found: dict[str, NormStats] = {}
    for source in sources:
        name = source.embodiment.name
        source.embodiment.check_dims(*robot_widths(source.dataset, source.embodiment))
        if name not in found:
            of_robot = [other.dataset for other in sources if other.embodiment.name == name]
            stats = (
                datasets_norm_stats(of_robot, source.embodiment, mode, preset.model.action_horizon)
                if source.norm_stats is None
                else _given_stats(source, source.norm_stats, mode)
            )
            names = (find(source.dataset, source.embodiment) for find in (state_names, action_names))
            for warning in near_constant_dimensions(stats, *names):
                tell("warning", f"{name + ': ' if len(of_robot) < len(sources) else ''}{warning}")
            found[name] = stats
    return found


def prompts_of(source: Source) -> Sequence[str]:
    """All instructions of a dataset; an empty one where there is none."""
    dataset, robot = source.dataset, source.embodiment
    if robot.prompt_key == "task" and not robot.default_prompt:
        return dataset.tasks or [""]
    return dataset.prompts(np.arange(dataset.num_frames), robot.prompt_key, robot.default_prompt)


def subtasks_of(source: Source) -> Sequence[str]:
    """All subtasks of a dataset; none where nothing says them."""
    found = source.dataset.subtasks
    return [] if found is None else sorted({segment.text for segment in found.segments})


def _given_stats(source: Source, stats: str | Path, mode: Mode) -> NormStats:
    robot = source.embodiment
    return read_norm_stats(stats, mode, robot).fitted(*robot_widths(source.dataset, robot))


def load_pipelines(checkpoint: Path, sources: Sequence[Source]) -> Pipelines:
    """Those that a training was started with, to continue it. UserError where robots or columns are others now."""
    first = Pipeline.load(checkpoint)
    pipelines = {first.embodiment.name: first, **load_robots(checkpoint)}
    missing = [source.embodiment.name for source in sources if source.embodiment.name not in pipelines]
    if missing:
        raise UserError(
            f"{checkpoint} knows the robots {', '.join(pipelines)}, but the data is of {missing[0]!r}; "
            "give the datasets that the training was started with"
        )
    for source in sources:
        pipeline, own = pipelines[source.embodiment.name], robot_widths(source.dataset, source.embodiment)
        trained = pipeline.robot_state_dim, pipeline.robot_action_dim
        if own != trained:
            raise UserError(
                f"{checkpoint} is of {trained[0]} state and {trained[1]} action dimensions, {source.dataset.root} has "
                f"{own[0]} and {own[1]}; give the datasets that the training was started with"
            )
        if source.guess is None and source.embodiment != pipeline.embodiment:
            old, new = pipeline.embodiment.to_json(), source.embodiment.to_json()
            changed = [f"{name} was {old[name]}, now {new[name]}" for name in old if old[name] != new[name]]
            raise UserError(
                f"{checkpoint} was trained with another description of the robot {source.embodiment.name!r}: "
                f"{'; '.join(changed)}; give the old one (--embodiment) to continue, or start anew in another folder"
            )
    return pipelines


def make_loaders(
    sources: Sequence[Source],
    pipelines: Pipelines,
    preset: Preset,
    bars: Any,
    options: DataOptions,
    placement: Placement,
) -> tuple[Loader, Loader | None]:
    """Of the training and of the held-out episodes, whose frames are decoded now, or opened; None where none are.

    The first gives this rank's part of each batch, the other one whole batches.
    """
    config, ranks = preset.train, placement.ranks
    train: list[Member] = []
    held_out: list[Member] = []
    for source in sources:
        pipeline = pipelines[source.embodiment.name]
        dataset, cache = _frames(source.dataset, pipeline, bars, options)
        split = split_episodes(dataset, config.validation_fraction, config.seed)
        train.append(Member(dataset, pipeline, cache, split[0], source.weight, preset.task_weights or {}))
        if len(split[1]):
            held_out.append(Member(dataset, pipeline, cache, split[1]))
    _check_tasks(train, preset.task_weights or {})

    def loader(members: Sequence[Member], **settings: Any) -> Loader:
        return Loader(
            members, horizon=preset.model.action_horizon, batch_size=config.batch_size, seed=config.seed,
            early_frames=config.early_frames, **settings,
        )  # fmt: skip

    workers = options.workers_beside(placement.device)
    training = loader(train, workers=workers, rank=ranks.index, num_ranks=ranks.count)
    if training.batch_size < config.batch_size:
        tell(
            "warning",
            f"batches of {training.batch_size} and not of {config.batch_size}: the data has no more frames to train on",
        )
    return training, loader(held_out) if held_out else None


def _check_tasks(members: Sequence[Member], task_weights: Mapping[str, float]) -> None:
    """UserError for an instruction that none has."""
    known = {prompt for member in members if task_weights for prompt in member.prompts(member.frames)}
    for task in task_weights:
        if task not in known:
            near = " or ".join(map(repr, difflib.get_close_matches(task, known, n=1) or sorted(known)[:10]))
            raise UserError(f"task_weights names {task!r}, which no frame to train on has; did you mean {near}?")


def _frames(
    dataset: LeRobotDataset, pipeline: Pipeline, bars: Any, options: DataOptions
) -> tuple[LeRobotDataset, FrameCache]:
    """The frames, and the dataset without the episodes whose images cannot be decoded."""
    bar = bars.add_task("reading frames", total=None, note="")
    report: Callable[[int, int], None] = lambda done, total: bars.update(bar, completed=done, total=total)  # noqa: E731
    cameras = list(pipeline.embodiment.cameras.values())
    while True:
        try:
            cache = FrameCache(
                dataset, cameras, pipeline.image_size, store=options.frames, convention=pipeline.convention,
                on_progress=report, skip_bad_episodes=options.skip_bad_episodes,
            )  # fmt: skip
            break
        except BadEpisodeError as error:
            good = [int(episode) for episode in dataset.episodes if episode not in error.episodes]
            if not options.skip_bad_episodes or not good:
                raise
            tell("skipped", f"episodes {ranges(error.episodes)}: {error}")
            columns = pipeline.embodiment.columns
            dataset = LeRobotDataset(
                dataset.root, episodes=good, cameras=(), columns=columns, subtasks=dataset.subtask_source
            )
    count = dataset.num_frames * len(cameras)
    bars.update(bar, completed=count, total=count)
    if options.frames == "auto" and cache.store == "decode":
        tell(
            "warning",
            f"{cache.num_bytes / 1e9:.0f} GB of decoded frames fit neither into memory nor on the "
            "disk of the cache folder (PIZERO_CACHE): they are decoded again and again, which is slow",
        )
    return dataset, cache


def _entries(path: Path) -> list[dict[str, Any]]:
    """The tables of a mixture; UserError naming what is wrong in the file."""
    values = read_toml(path)
    entries: Any = values.get("datasets")
    if set(values) != {"datasets"} or not isinstance(entries, list) or not entries:
        raise UserError(f"{path}: expected [[datasets]], one table for each dataset, and nothing else")
    kinds: dict[str, Any] = {
        "path": str, "weight": (int, float), "embodiment": str, "norm_stats": str, "subtasks": str
    }  # fmt: skip
    for number, entry in enumerate(cast("list[Any]", entries), 1):
        where = f"{path}: dataset {number}"
        if not isinstance(entry, dict) or "path" not in entry:
            raise UserError(f"{where} has no path")
        table = cast("dict[str, Any]", entry)
        for key, value in table.items():
            if key not in kinds:
                raise UserError(f"{where}: unknown key {key!r}; expected some of {', '.join(kinds)}")
            if not isinstance(value, kinds[key]) or isinstance(value, bool):
                raise UserError(f"{where}: {key} is {value!r}, expected a {'number' if key == 'weight' else 'text'}")
        weight = table.get("weight", 1)
        if not 0 < weight < np.inf:
            raise UserError(f"{where}: weight is {weight}, expected a number above 0")
    return cast("list[dict[str, Any]]", entries)


def _beside(path: Path, name: str) -> str:
    """A path as the file means it, relative to its own folder; a hub id stays what it is."""
    found = path.parent / Path(name).expanduser()
    return str(found) if found.exists() else name


def _subtasks_beside(path: Path, name: str | None) -> str | None:
    """A segments file as the mixture means it; the name of a column stays what it is."""
    return _beside(path, name) if name is not None and name.endswith(".csv") else name
