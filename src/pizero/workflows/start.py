"""What a training begins with: fresh weights, those of a checkpoint, or a PaliGemma's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from pizero.checkpoints.files.remote import local_folder
from pizero.checkpoints.format import Facts, StoredCheckpoint
from pizero.checkpoints.load import read_checkpoint
from pizero.checkpoints.models import Network, NetworkConfig, make_model, model_name
from pizero.checkpoints.openpi import jax as openpi_jax
from pizero.checkpoints.transformers import paligemma
from pizero.configs.one_step import WITHOUT_BASE, takes_one_step
from pizero.configs.presets import Preset
from pizero.model.config import Pi0Config
from pizero.model.pi0 import Pi0
from pizero.model.pi0_fast import Pi0Fast, Pi0FastConfig
from pizero.train.config import LoraConfig
from pizero.types import UserError
from pizero.workflows.progress import console

Adapters = Mapping[str, Tensor] | None


@dataclass(frozen=True)
class Initialization:
    """What a training begins with in the place of fresh weights, a tokenizer and statistics of its own.

    checkpoint: of any format, whose weights are fine-tuned, or a PaliGemma for the prefix of a π0. tokenizer:
    SentencePiece model. norm_stats: as for `read_norm_stats`. codec: folder or hub id, for π0-FAST.
    """

    checkpoint: str | Path | None = None
    tokenizer: Path | None = None
    norm_stats: str | Path | None = None
    codec: str | Path | None = None


@dataclass(frozen=True)
class Start:
    """Trained weights in a folder. source: None for a PaliGemma. adapters: LoRA's, to be trained further."""

    folder: Path
    source: StoredCheckpoint | None
    adapters: Adapters


def open_start(path: str | Path, preset: Preset) -> Start:
    """Reads no weights yet. UserError when it holds another model than the preset's."""
    folder = local_folder(path)
    if paligemma.detect(folder):
        return Start(folder, None, None)
    source, adapters = _read_start(folder, preset.train.parts.lora)
    for note in source.notes:
        console.print(note)
    check_kind(path, source.config, preset)
    return Start(folder, source, adapters)


def check_kind(path: str | Path, config: NetworkConfig, preset: Preset) -> None:
    """UserError where a checkpoint of this config is of another model than the one that is to be trained."""
    name, wanted = _option(config), _option(preset.model)
    if name != wanted:
        raise UserError(f"{path} holds a model {name!r}, but {wanted!r} is to be trained; give --model {name}")


def _option(config: NetworkConfig) -> str:
    """What --model calls it."""
    return "pi05" if isinstance(config, Pi0Config) and config.adaptive else model_name(config)


def initial_model(
    preset: Preset, start: Start | None, cameras: Sequence[str], resume: bool
) -> tuple[Network, Facts | None, Adapters]:
    """With fresh weights, which the seed gives, or with the initial checkpoint's, what that one records of its inputs,
    and the LoRA adapters that it has and that are trained further. cameras: the robots'.
    """
    if start is not None and start.source is not None:
        source = replace(start.source, config=_with_free_fields(start.source.config, preset.model, cameras))
        model = source.build(dtype=torch.float32)
        if isinstance(model, Pi0) and takes_one_step(preset.model):
            torch.manual_seed(preset.train.seed)
            model.expect_one_step()
        return model, source.facts, start.adapters
    if takes_one_step(preset.model) and not resume:
        raise UserError(WITHOUT_BASE)
    if start is None and preset.train.parts.lora is not None and not resume:
        raise UserError("LoRA adapts trained weights; give them with --checkpoint")
    torch.manual_seed(preset.train.seed)
    model = make_model(preset.model)
    if start is None:
        return model, None, None
    if not isinstance(model, Pi0 | Pi0Fast):
        raise UserError(f"{start.folder} holds PaliGemma, from which only π0, π0.5 and π0-FAST can start")
    for note in paligemma.start_from_paligemma(start.folder, model):
        console.print(note)
    return model, Facts(), None


def _read_start(folder: Path, lora: LoraConfig | None) -> tuple[StoredCheckpoint, Adapters]:
    """A checkpoint; one of openpi with LoRA adapters is taken apart where adapters are trained."""
    source = read_checkpoint(folder)
    if lora is None or source.format != openpi_jax.NAME:
        return source, None
    unmerged, adapters = openpi_jax.read_unmerged(folder)
    if not adapters:
        return source, None
    if (lora.prefix_rank and lora.prefix_rank != lora.prefix_alpha) or (
        lora.expert_rank and lora.expert_rank != lora.expert_alpha
    ):
        raise UserError(f"{folder} has adapters of scale 1; alphas must equal the ranks to continue with them")
    return unmerged, adapters


def _with_free_fields(config: NetworkConfig, wanted: NetworkConfig, cameras: Sequence[str]) -> NetworkConfig:
    """What no weight depends on: horizon, delays, whether the prompt holds the state, and what text is learnt if the
    preset learns any, are the preset's choice; cameras that the checkpoint does not have come after its own.
    """
    if isinstance(config, Pi0FastConfig) and isinstance(wanted, Pi0FastConfig):
        return _with_free_fast_fields(config, wanted, cameras)
    if not isinstance(config, Pi0Config) or not isinstance(wanted, Pi0Config):
        return config
    state_input = config.state_input if "token" in (config.state_input, wanted.state_input) else wanted.state_input
    more = tuple(name for name in cameras if name not in config.cameras)
    changed = replace(
        config, action_horizon=wanted.action_horizon, state_input=state_input, cameras=(*config.cameras, *more),
        max_delay=wanted.max_delay,
    )  # fmt: skip
    if more:
        console.print(f"cameras: {', '.join(more)} beside the checkpoint's {', '.join(config.cameras)}")
    if wanted.language is not None:
        tied = config.language is None or config.language.tied_head
        changed = replace(changed, language=replace(wanted.language, tied_head=tied))
    for name in ("action_horizon", "state_input"):
        new, old = getattr(changed, name), getattr(config, name)
        if new != old:
            console.print(f"{name}: {new}, from the preset, in place of the checkpoint's {old}")
    return changed


def _with_free_fast_fields(config: Pi0FastConfig, wanted: Pi0FastConfig, cameras: Sequence[str]) -> Pi0FastConfig:
    """A π0-FAST has the robot's sizes in no weight: all of them are the preset's, and so is how it decodes."""
    more = tuple(name for name in cameras if name not in config.cameras)
    kept = {name: getattr(config, name) for name in ("vision", "prefix", "vocab_size", "image_size", "positions")}
    return replace(wanted, **kept, cameras=(*config.cameras, *more))
