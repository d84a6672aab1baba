"""Any known checkpoint format in, a model out."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch

from pizero.checkpoints import lerobot, openpi_jax, openpi_torch
from pizero.checkpoints.keymap import fill
from pizero.checkpoints.models import Network
from pizero.checkpoints.native import is_native, load_checkpoint, save_checkpoint, torch_dtype
from pizero.checkpoints.openpi_torch import config_from_arch
from pizero.checkpoints.source import Arch, Format, Source
from pizero.data.pipeline import Pipeline, PromptFormat
from pizero.data.tokenizer import PaligemmaTokenizer
from pizero.model.config import Pi0Config, StateInput
from pizero.model.pi0 import Pi0
from pizero.types import UserError

FORMATS: dict[str, Format] = {"lerobot": lerobot, "openpi-torch": openpi_torch, "openpi-jax": openpi_jax}
"""Foreign formats by the name that users type, in the order in which they are tried."""
_PROMPT_FORMATS: dict[StateInput, PromptFormat] = {"token": "pi0", "prompt": "pi05", "none": "none"}


def load_model(
    path: str | Path,
    device: str | torch.device = "cpu",
    dtype: str = "float32",
    arch: Arch | str | Path | None = None,
) -> Pi0:
    """The π0 of a checkpoint folder of any known format, strictly; the format is told by the content.

    dtype: "float32", "bfloat16" or "float16", for the large matrices. arch: sizes for a checkpoint whose own config
    does not tell them, as a Pi0Config, a dictionary, or the path of a JSON file; the weights' shapes must agree.
    """
    model = load_network(path, device, dtype, arch)
    if not isinstance(model, Pi0):
        raise UserError(f"{path} holds a {type(model).__name__}, not a π0; load_policy runs it")
    return model


def load_network(
    path: str | Path,
    device: str | torch.device = "cpu",
    dtype: str | None = "float32",
    arch: Arch | str | Path | None = None,
) -> Network:
    """The same for a checkpoint of any model; arch is for a π0 alone. dtype None: as stored."""
    folder, kind = Path(path), None if dtype is None else torch_dtype(dtype)
    arch = None if arch is None else _arch(arch)
    if is_native(folder):
        model = load_checkpoint(folder, device, dtype).model
        if arch is not None and (arch if isinstance(arch, Pi0Config) else config_from_arch(arch)) != model.config:
            raise UserError(f"{folder} knows its own sizes and they differ from arch; leave arch out")
        return model
    source = read_source(folder, arch)
    for note in source.notes:
        warnings.warn(note, stacklevel=2)
    return _model_of(source, device, kind)


def load_with_pipeline(
    path: str | Path,
    device: str | torch.device = "cpu",
    dtype: str = "float32",
    arch: Arch | str | Path | None = None,
    tokenizer: str | Path | PaligemmaTokenizer | None = None,
) -> tuple[Pi0, Pipeline]:
    """The π0 of a checkpoint that is not native, and the pipeline that it tells of.

    tokenizer: a vocabulary, or its SentencePiece file, for a checkpoint without. UserError, before any weights are
    read, when what a policy needs stays unknown.
    """
    folder = Path(path)
    source = read_source(folder, None if arch is None else _arch(arch))
    if tokenizer is not None:
        known = tokenizer if isinstance(tokenizer, PaligemmaTokenizer) else PaligemmaTokenizer(tokenizer)
        source = dataclasses.replace(source, facts=dataclasses.replace(source.facts, tokenizer=known))
    pipeline = pipeline_of(source, folder)
    for note in source.notes:
        warnings.warn(note, stacklevel=2)
    return _model_of(source, device, torch_dtype(dtype)), pipeline


def pipeline_of(source: Source, folder: Path) -> Pipeline:
    """UserError that names what the checkpoint in `folder` does not tell."""
    facts, config = source.facts, source.config
    embodiment, norm_stats, tokenizer, convention = (
        facts.embodiment, facts.norm_stats, facts.tokenizer, facts.convention
    )  # fmt: skip
    if embodiment is None or norm_stats is None or tokenizer is None or convention is None:
        missing = [
            *["the robot (cameras and dims)"] * (embodiment is None),
            *["the norm stats"] * (norm_stats is None),
            *["the vocabulary (give its SentencePiece file as tokenizer)"] * (tokenizer is None),
            *["how images and prompts are prepared"] * (convention is None),
        ]
        notes = f" ({'; '.join(source.notes)})" if source.notes else ""
        raise UserError(f"{folder} does not tell what a policy needs: {', '.join(missing)}{notes}")
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} pieces, the model's table {config.vocab_size}; "
            "give the one that the model was trained with"
        )
    return Pipeline(
        embodiment,
        norm_stats,
        tokenizer,
        cameras=config.cameras,
        prompt_format=_PROMPT_FORMATS[config.state_input],
        prompt_length=config.prompt_length,
        image_size=(config.image_size, config.image_size),
        state_dim=config.state_dim,
        action_dim=config.action_dim,
        convention=convention,
    )


def read_source(folder: Path, arch: Arch | None = None) -> Source:
    """The reader's answer for a checkpoint that is not native; UserError when no format knows it."""
    for format in FORMATS.values():
        if format.detect(folder):
            return format.read(folder, arch)
    raise UserError(f"{folder} holds no checkpoint of a known format (native, {', '.join(FORMATS)}): {_found(folder)}")


def save_model(model: Network, folder: str | Path, format: str = "native") -> None:
    """Writes the model alone, without transforms or an example; an older checkpoint in `folder` is replaced."""
    if format != "native":
        raise UserError(f"saving as {format!r} is not supported yet; expected 'native'")
    save_checkpoint(Path(folder), model)


def _model_of(source: Source, device: str | torch.device, dtype: torch.dtype | None) -> Pi0:
    with torch.device("meta"):
        model = Pi0(source.config)
    fill(model, source.tensors(), device, dtype)
    return model.eval()


def _arch(arch: Arch | str | Path) -> Arch:
    if isinstance(arch, Pi0Config | Mapping):
        return arch
    try:
        return json.loads(Path(arch).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"arch {arch} cannot be read as JSON: {error}") from error


def _found(folder: Path, shown: int = 8) -> str:
    if not folder.exists():
        return "there is nothing at this path"
    if not folder.is_dir():
        return "it is a file; give the folder"
    names = sorted(entry.name for entry in folder.iterdir())
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return f"found {', '.join(names[:shown])}{more}" if names else "the folder is empty"
