"""A checkpoint becomes an export: its graphs are written, opened, run on an example, and only then get their name."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from pizero.baseline.config import BaselineConfig
from pizero.baseline.policy import DiffusionPolicy
from pizero.checkpoints.convert import random_observation
from pizero.checkpoints.facts import GivenFacts, make_pipeline
from pizero.checkpoints.load import open_checkpoint
from pizero.checkpoints.models import Network
from pizero.checkpoints.native.checkpoint import load_example, torch_dtype
from pizero.data.example import Example
from pizero.data.pipeline import Pipeline
from pizero.engine.int8 import largest_code
from pizero.engine.quantize import sensitivity
from pizero.export.diffusion import diffusion_step_graph, encode_graph
from pizero.export.graph import Dtype, Graph, Runtime
from pizero.export.openvino import to_openvino
from pizero.export.pi0 import growing_prefix_graph, longest_prefix, prefix_graph, step_graph, vision_graph
from pizero.export.words import write_head, write_words
from pizero.exported.manifest import Manifest, described
from pizero.exported.policy import EXAMPLE, TOLERANCES, ExportedPolicy, load_exported, other_text, reproduce
from pizero.files import new_folder
from pizero.model.config import Pi0Config
from pizero.model.pi0 import Pi0
from pizero.policy.real_time import RealTime, sampling_options
from pizero.policy.sampling import sample_chunks
from pizero.policy.subtasks import with_subtasks
from pizero.types import LARGEST_LENGTH, RobotDict, UserError, check_whole

_SEED = 0
MOST_WEIGHTS = 500_000_000
"""Of a model whose layers are measured in int8 one by one: that takes three of it in memory, and four calls a layer."""


@dataclass(frozen=True)
class Export:
    """num_bytes: of all files. difference: the largest one of the example's chunk from pizero's own, in robot units.
    relative: the same as a part of each action dimension's largest value, of which `tolerance` is allowed. layers: of
    int8, how far each layer alone moves the example's actions (RMS, relative), by the fast path's int8.
    """

    num_bytes: int
    difference: float
    relative: float
    tolerance: float
    layers: dict[str, float]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Settings:
    """to: the runtime. dtype: of the matrices. num_steps: of sampling; None takes the model's own number. threads: of
    the runtime in the proof; None lets it choose.
    """

    to: Runtime
    dtype: Dtype = "float32"
    num_steps: int | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.num_steps is not None:
            check_whole("num_steps", self.num_steps, LARGEST_LENGTH)
        if self.threads is not None:
            check_whole("threads", self.threads)


def export(
    checkpoint: str | Path, folder: Path, *, to: Runtime, dtype: Dtype = "float32", num_steps: int | None = None,
    threads: int | None = None, given: GivenFacts | None = None, on_step: Callable[[str], None] = lambda text: None,
) -> Export:  # fmt: skip
    """Writes `folder`, proved; UserError, and nothing is left of it, where the proof fails.

    num_steps: of sampling, a constant of the export; None takes the model's own number. threads: of the proof. given:
    what the checkpoint has not recorded.
    """
    settings = Settings(to, dtype, num_steps, threads)
    source_folder, source = open_checkpoint(checkpoint)
    facts = source.facts if given is None else given.over(source.facts, source.config)
    pipeline = make_pipeline(source.config, facts)
    kept = torch_dtype("float32") if dtype == "float32" else None  # else as stored
    stored = load_example(source_folder)
    return export_network(lambda: source.build("cpu", kept), pipeline, folder, settings, stored, on_step)


def export_network(
    build: Callable[[], Network], pipeline: Pipeline, folder: Path, settings: Settings, stored: Example | None = None,
    on_step: Callable[[str], None] = lambda text: None,
) -> Export:  # fmt: skip
    """The same for a network that `build` makes: its weights are gone before the export's are opened."""
    to, dtype, num_steps = settings.to, settings.dtype, settings.num_steps
    if pipeline.prompt_format == "fast":
        raise UserError("a π0-FAST writes its actions as tokens and is not exported; π0, π0.5 and the baseline are")
    pipeline = replace(pipeline, fast=None)  # FAST tokens are for training alone
    with new_folder(folder) as partial:
        on_step("reading the weights")
        model = build()
        num_steps = model.config.default_num_steps if num_steps is None else num_steps
        on_step("the example, by pizero")
        examples = _examples(model, pipeline, stored, num_steps)
        layers = _layer_errors(model, pipeline, examples[0], on_step) if dtype == "int8" else {}
        manifest = write_graphs(partial, model, pipeline, to, dtype, num_steps, on_step)
        del model
        gc.collect()  # the runtime needs the room
        pipeline.save(partial)
        examples[0].save(partial / EXAMPLE)
        on_step("hashes")
        files = {path.name: described(path) for path in sorted(partial.iterdir())}
        replace(manifest, files=files).save(partial)
        on_step("the example, by the export")
        policy = load_exported(partial, threads=settings.threads)
        relative, difference = (max(side) for side in zip(*(reproduce(policy, one) for one in examples), strict=True))
        proof = {"difference": difference, "relative": relative, "tolerance": TOLERANCES[dtype]}
        proof |= {f"layer {name}": error for name, error in layers.items()}
        replace(manifest, files=files, proof=proof).save(partial)
        size = sum(size for size, _ in files.values())
        notes = _notes(policy, layers, other_text(policy, examples[0]))
        return Export(size, difference, relative, TOLERANCES[dtype], layers, notes)


def write_graphs(
    folder: Path, model: Network, pipeline: Pipeline, to: Runtime, dtype: Dtype, num_steps: int,
    on_step: Callable[[str], None] = lambda text: None,
) -> Manifest:  # fmt: skip
    """Graphs and token table; the manifest without files and proof."""
    config, words, head = model.config, None, None
    writes_text = isinstance(config, Pi0Config) and config.language is not None and config.language.writes_text
    if isinstance(model, Pi0):
        longest = longest_prefix(model, pipeline.image_size, pipeline.prompt_length)
        prefix = growing_prefix_graph if writes_text else prefix_graph
        makers: dict[str, Callable[[], Graph]] = {
            "vision": lambda: vision_graph(model, pipeline.image_size, dtype, to),
            "prefix": lambda: prefix(model, longest, dtype, to),
            "step": lambda: step_graph(model, num_steps, longest, dtype, to),
        }
    else:
        assert isinstance(model, DiffusionPolicy)  # a π0-FAST was refused
        if dtype == "int8":
            raise UserError("int8 is for π0 and π0.5; export a diffusion policy as float32, bfloat16 or float16")
        makers = {
            "encode": lambda: encode_graph(model, dtype),
            "step": lambda: diffusion_step_graph(model, num_steps, dtype),
        }
    for name, make in makers.items():
        on_step(f"the graph {name}")
        make().save(folder)
        if to == "openvino":
            to_openvino(folder, name)
    if isinstance(model, Pi0):
        words = write_words(folder, model, dtype)
        head = write_head(folder, model, dtype) if writes_text else None
    return Manifest(
        kind="diffusion" if words is None else "pi0", runtime=to, dtype=dtype, num_steps=num_steps,
        action_horizon=config.action_horizon, action_dim=config.action_dim, past_actions=config.past_actions,
        num_history=config.num_history, cameras=config.cameras,
        reads_state=config.has_state_token if isinstance(config, Pi0Config) else bool(config.state_input),
        reads_words=not isinstance(config, BaselineConfig) or config.instruction,
        writes_text=writes_text,
        layers=config.prefix.depth if isinstance(config, Pi0Config) else 0,
        kv_heads=config.prefix.num_kv_heads if isinstance(config, Pi0Config) else 0,
        head_dim=config.prefix.head_dim if isinstance(config, Pi0Config) else 0,
        max_delay=config.max_delay if isinstance(config, Pi0Config) else 0,
        words=words, head=head, proof={}, files={},
    )  # fmt: skip


def _examples(model: Network, pipeline: Pipeline, stored: Example | None, num_steps: int) -> list[Example]:
    """The checkpoint's own observation and noise, or random ones, with the chunk of the plain model; of a model trained
    with delays also one that continues this chunk.
    """
    if stored is None:
        observation = random_observation(model.config, pipeline, _SEED)
        shape = model.config.action_horizon, model.config.action_dim
        noise = np.random.default_rng(_SEED).standard_normal(shape, np.float32)
    else:
        observation, noise = stored.observation, stored.noise
    if pipeline.text_length and isinstance(model, Pi0):
        observation = with_subtasks(model, pipeline, [observation], torch.device("cpu"), {})[0][0]

    def made(observation: RobotDict) -> Example:
        trained, device = RealTime("trained"), torch.device("cpu")
        options = sampling_options([observation], pipeline, model.config, trained, device)
        actions = sample_chunks(model, pipeline, [observation], noise[None], num_steps, **options)[0]
        return Example(observation, noise, actions, num_steps)

    first = made(observation)
    if not isinstance(model, Pi0) or not model.config.max_delay:
        return [first]
    delay = model.config.max_delay
    return [first, made({**observation, "previous_actions": first.actions, "inference_delay": delay})]


def _layer_errors(
    model: Network, pipeline: Pipeline, example: Example, on_step: Callable[[str], None]
) -> dict[str, float]:
    """How far int8 in one layer alone moves the example's chunk, as `pizero bench int8` has it; none where the model is
    too large to be measured beside its copies, or this processor has no exact int8 product.
    """
    weights = sum(parameter.numel() for parameter in model.parameters())
    if not isinstance(model, Pi0) or weights > MOST_WEIGHTS or largest_code() is None:
        return {}
    on_step("int8, layer by layer")
    observation = pipeline.observation(pipeline.robot_inputs([example.observation]), "cpu")
    noise = torch.from_numpy(example.noise[None])  # pyright: ignore[reportUnknownMemberType]
    found = sensitivity(model, observation, noise, example.num_steps)
    return {name: errors.actions for name, errors in found.layers.items()}


def _notes(policy: ExportedPolicy, layers: dict[str, float], texts: tuple[str, str] | None) -> tuple[str, ...]:
    notes: list[str] = []
    if texts:
        notes.append(f"for the example it writes the subtask {texts[0][:80]!r}, pizero {texts[1][:80]!r}")
    if policy.manifest.dtype == "int8" and not layers:
        notes.append("the layers' errors were not measured here; pizero bench int8 does it on recorded observations")
    return tuple(notes)
