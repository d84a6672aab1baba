"""Converts between checkpoint formats, verified by an action chunk before the result gets its name."""

from __future__ import annotations

import gc
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pizero.checkpoints.facts import GivenFacts, make_pipeline, needed_options, unknown
from pizero.checkpoints.format import SIZES, Arch, Facts, Format, StoredCheckpoint
from pizero.checkpoints.load import FORMATS, find_format, open_checkpoint, read_checkpoint, record_sizes
from pizero.checkpoints.models import Network, NetworkConfig
from pizero.checkpoints.native import checkpoint as native
from pizero.checkpoints.native.checkpoint import torch_dtype
from pizero.checkpoints.native.example import TOLERANCE, TOLERANCE_LOW_PRECISION, make_example
from pizero.data.pipeline import Pipeline
from pizero.files import new_folder
from pizero.model.pi0_fast import Pi0Fast
from pizero.model.precision import cast_weights
from pizero.types import Observation, RobotDict, UserError

SEED = 0
"""Of the fixed observation and its noise."""
_WORDS = 16
SIZES_BESIDE = f"the format has no place for all of its sizes: {SIZES} holds them, keep it beside the weights"


@dataclass(frozen=True)
class Conversion:
    """What was done.

    difference: the greatest between the sampled action chunks of source and result, in the model's units; `largest` is
    the greatest action. known: what the result records of the robot. unknown: what a policy from it needs as options.
    """

    source: str
    target: str
    parameters: int
    num_bytes: int
    dtypes: tuple[str, ...]
    difference: float
    largest: float
    known: tuple[str, ...]
    unknown: tuple[str, ...]
    notes: tuple[str, ...]


def convert(
    source: str | Path,
    target: str | Path,
    to: str,
    *,
    dtype: str | None = None,
    arch: Arch | str | Path | None = None,
    given: GivenFacts | None = None,
    merge_lora: str | Path | None = None,
    on_step: Callable[[str], None] = lambda text: None,
) -> Conversion:
    """Writes the checkpoint `source` (as for `load_model`) as a new folder `target` of the format `to`.

    dtype: of the large matrices; None keeps every tensor's own. given: what the source does not record, or records
    otherwise. merge_lora: adapters that were trained from the source, as for `load_policy`; they are merged. on_step
    hears what is being done. One model is in memory at a time.

    The result is written under a temporary name, read again strictly, and asked for the same action chunk; only then
    it is renamed. UserError when anything on this way fails; nothing is left behind then.
    """
    writer = find_format(to)
    (folder, opened), target = open_checkpoint(source, arch, merge_lora), Path(target).absolute()
    facts = (given or GivenFacts()).over(opened.facts, opened.config)
    if folder.absolute() in (target, *target.parents):
        raise UserError(f"{target} lies in the source {folder}; choose a folder elsewhere")
    with new_folder(target) as partial:
        on_step(f"reading {opened.format}")
        model = opened.build()
        parameters, dtypes = sum(p.numel() for p in model.parameters()), _dtypes(model)
        on_step("sampling from the source")
        expected = _sample(model)
        tolerance = TOLERANCE if dtypes == ("float32",) and dtype in (None, "float32") else TOLERANCE_LOW_PRECISION
        if dtype is not None:
            model = cast_weights(model, torch_dtype(dtype))
        _check_room(model, target)
        on_step(f"writing {to}")
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            writer.write(partial, model, facts)
        del model
        gc.collect()
        on_step("reading the result")
        again, notes = _read_again(partial, writer, opened.config)
        model = again.build()
        on_step("sampling from the result")
        difference, largest = _difference(expected, _sample(model), tolerance)
        if writer is native and not unknown(again.facts, again.config):
            on_step("writing an example")
            _add_example(partial, model, again.facts)
        return Conversion(
            source=opened.format, target=to, parameters=parameters,
            num_bytes=sum(path.stat().st_size for path in partial.rglob("*") if path.is_file()),
            dtypes=_dtypes(model), difference=difference, largest=largest,
            known=_known(again.facts), unknown=needed_options(again.facts, again.config),
            notes=(*opened.notes, *(str(warning.message) for warning in told), *notes),
        )  # fmt: skip


def fixed_observation(config: NetworkConfig) -> Observation:
    """The same for every model of these sizes: one sample, all cameras, random pixels, state and tokens."""
    generator = torch.Generator().manual_seed(SEED)
    history = (config.num_history,) if config.num_history > 1 else ()
    shape, length = config.image_shape, config.prompt_length
    images = {name: torch.rand(1, *history, *shape, 3, generator=generator) * 2 - 1 for name in config.cameras}
    return Observation(
        images=images,
        image_masks={name: torch.ones(1, dtype=torch.bool) for name in images},
        state=None if config.state_input in ("prompt", "none")
        else torch.rand(1, *history, config.state_dim, generator=generator) * 2 - 1,
        prompt_tokens=torch.randint(0, config.vocab_size, (1, length), generator=generator),
        prompt_mask=torch.arange(length)[None] < max(length // 2, 1),
    )  # fmt: skip


def _sample(model: Network) -> Tensor:
    """[H, D] for the fixed observation and noise. Of a π0-FAST, which needs no codec here, the logits of the last words
    of a fixed prompt [_WORDS, V]: one that rounds differently may choose another token, and then all others differ.
    """
    config = model.config
    if isinstance(model, Pi0Fast):
        return _word_logits(model)
    generator = torch.Generator().manual_seed(SEED)
    noise = torch.randn(1, config.action_horizon, config.action_dim, generator=generator)
    actions = model.sample_actions(
        fixed_observation(config), num_steps=config.default_num_steps, noise=noise, generator=generator
    )
    if not bool(torch.isfinite(actions).all()):
        raise UserError("the model gives NaN or Inf actions: its weights are broken, or too large for this dtype")
    return actions[0].float()


@torch.no_grad()
def _word_logits(model: Pi0Fast) -> Tensor:
    observation = fixed_observation(model.config)
    observation = replace(observation, prompt_mask=torch.ones_like(observation.prompt_mask))
    causal = torch.arange(model.config.prompt_length)[None] >= model.config.prompt_length // 2
    logits = model.logits(model.hidden(observation, causal)[0, -_WORDS:])
    if not bool(torch.isfinite(logits).all()):
        raise UserError("the model gives NaN or Inf: its weights are broken, or too large for this dtype")
    return logits


def _difference(expected: Tensor, actual: Tensor, tolerance: float) -> tuple[float, float]:
    """(greatest difference, greatest action); UserError when the first is above `tolerance` of the second."""
    difference, largest = float((expected - actual).abs().max()), float(expected.abs().max())
    if difference > tolerance * max(largest, 1.0):
        raise UserError(
            f"the result samples other actions than the source: {difference:.2g} apart where the greatest is "
            f"{largest:.2g}, at most {tolerance:g} of it allowed; nothing was written"
        )
    return difference, largest


def _read_again(folder: Path, writer: Format, config: NetworkConfig) -> tuple[StoredCheckpoint, tuple[str, ...]]:
    """As a user would read it: detected, and without `arch`."""
    detected = next((name for name, format in FORMATS.items() if format.detect(folder)), None)
    if detected is None or FORMATS[detected] is not writer:
        raise UserError(f"the result is recognised as {detected}, which is not what was written; nothing is left of it")
    recorded = record_sizes(folder, writer, config)
    return read_checkpoint(folder), (SIZES_BESIDE,) if recorded else ()


def _add_example(folder: Path, model: Network, facts: Facts) -> None:
    """A native checkpoint that knows its robot gets an example: random images, the mean state."""
    pipeline = make_pipeline(model.config, facts)
    config = model.config
    observation = random_observation(config, pipeline, SEED)
    shape = config.action_horizon, config.action_dim
    noise = np.random.default_rng(SEED).standard_normal(shape).astype(np.float32)
    make_example(model, pipeline, observation, noise).save(folder / native.EXAMPLE)


def random_observation(config: NetworkConfig, pipeline: Pipeline, seed: int) -> RobotDict:
    """Random images of every camera, the mean state."""
    generator = np.random.default_rng(seed)
    history = (config.num_history,) if config.num_history > 1 else ()
    state = pipeline.norm_stats.state.mean[: pipeline.robot_state_dim]
    shape = (*history, *config.image_shape, 3)
    cameras = pipeline.embodiment.cameras.values()
    return {
        "state": np.broadcast_to(state, (*history, len(state))).astype(np.float32),
        "images": {name: generator.integers(0, 256, shape, dtype=np.uint8) for name in cameras},
        "prompt": "go",
    }


def _check_room(model: Network, target: Path) -> None:
    needed = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    free = shutil.disk_usage(target.parent).free
    if needed > free:
        raise UserError(f"{target} needs {needed / 1e9:.1f} GB and the disk has {free / 1e9:.1f} GB free")


def _dtypes(model: Network) -> tuple[str, ...]:
    return tuple(sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()}))


def _known(facts: Facts) -> tuple[str, ...]:
    return tuple(
        name for name in ("embodiment", "norm_stats", "tokenizer", "codec") if getattr(facts, name) is not None
    )
