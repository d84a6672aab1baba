"""PaliGemma as initial weights of the prefix: vision tower, token table and Gemma 2B. The action expert stays fresh;
a π0-FAST is a PaliGemma as a whole.

Two sources: Transformers' folders (config.json of model_type "paligemma", safetensors in any number of shards, three
styles of names), and big_vision's `.npz`, which the reference starts from (openpi src/openpi/training/
weight_loaders.py). The array file is read array by array and never unpickled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pizero.checkpoints.files.json_file import peek
from pizero.checkpoints.files.keymap import is_finite, listed, renamed
from pizero.checkpoints.files.safetensors_file import SafetensorsWeights
from pizero.checkpoints.openpi import jax as openpi_jax
from pizero.checkpoints.openpi.torch import key_table
from pizero.model.config import Pi0Config
from pizero.model.pi0 import Pi0
from pizero.model.pi0_fast import Pi0Fast, Pi0FastConfig
from pizero.types import UserError

_PREFIX = ("vision_tower.", "token_embedding.", "transformer.prefix_norm.", ".prefix.")
"""Parts of the names of our tensors that PaliGemma has."""
_PORT = "paligemma_with_expert.paligemma."
_LANGUAGE = _PORT + "model.language_model."
_TABLE = _LANGUAGE + "embed_tokens.weight"
_STYLES = {
    "model.language_model.norm.weight": {_PORT: ""},
    "model.language_model.model.norm.weight": {_LANGUAGE: "model.language_model.model.", _PORT: ""},
    "language_model.model.norm.weight": {_LANGUAGE: "language_model.model.", _PORT + "model.": ""},
}  # fmt: skip
"""By a name of each style: what stands in place of the starts in openpi's port. The modules' names, those that
Transformers 5.5 saves, and the released ones."""
_HEADS = {"lm_head.weight", "language_model.lm_head.weight", "model.language_model.lm_head.weight"}
_NPZ = "params/"


def detect(path: Path) -> bool:
    """A folder of Transformers, an `.npz` file, or a folder with one."""
    return peek(path / "config.json").get("model_type") == "paligemma" or _npz_file(path) is not None


def start_from_paligemma(path: Path, model: Pi0 | Pi0Fast) -> tuple[str, ...]:
    """Fills the prefix of a fresh model, strictly; returns warnings for the user.

    Rows of the token table beyond the model's vocabulary are dropped. UserError lists names that are missing or left
    over, other shapes, NaN and Inf; the model must then not be used.
    """
    file = _npz_file(path)
    whole = isinstance(model, Pi0Fast)
    config = prefix_config(model.config) if isinstance(model.config, Pi0FastConfig) else model.config
    tensors = _npz_tensors(file, config) if file is not None else _safetensors(path, config)
    expected = {name: value for name, value in model.state_dict().items() if whole or is_prefix(name)}
    wrong: list[str] = []
    notes: list[str] = []
    filled: set[str] = set()
    for given, tensor in tensors:
        name = name_in_fast(given) if whole else given
        target = expected[name]
        extra = tensor.shape[0] - target.shape[0] if tensor.ndim else 0
        if name == "token_embedding.weight" and extra > 0 and tensor.shape[1:] == target.shape[1:]:
            notes.append(f"PaliGemma's token table has {extra} rows more than the model's vocabulary; they are dropped")
            tensor = tensor[: target.shape[0]]
        if tensor.shape != target.shape:
            wrong.append(f"{name}: {tuple(tensor.shape)} instead of {tuple(target.shape)}")
        elif not is_finite(tensor):
            wrong.append(f"{name}: NaN or Inf")
        else:
            with torch.no_grad():
                target.copy_(tensor)
            filled.add(name)
    missing = sorted(set(expected) - filled) if not wrong else []
    if wrong or missing:
        raise UserError(f"{path} does not fit this model: {listed('wrong', wrong)}; {listed('missing', missing)}")
    fresh = "" if whole else "the prefix starts from PaliGemma, the action expert and the projections are fresh"
    return (*notes, fresh or "the whole model starts from PaliGemma, which does not know the action tokens yet")


def prefix_config(config: Pi0FastConfig) -> Pi0Config:
    """Of a π0 whose prefix is this model; its expert does not matter."""
    return Pi0Config(
        config.vision, config.prefix, replace(config.prefix, width=2), config.vocab_size, config.cameras,
        config.image_size,
    )  # fmt: skip


def name_in_fast(name: str) -> str:
    """Of a tensor of π0's prefix."""
    return name.replace("transformer.prefix_norm.", "norm.").replace("transformer.", "").replace(".prefix.", ".")


def is_prefix(name: str) -> bool:
    return any(name.startswith(part) or (part.startswith(".") and part in name) for part in _PREFIX)


def _safetensors(folder: Path, config: Pi0Config) -> Iterator[tuple[str, Tensor]]:
    weights = SafetensorsWeights(folder)
    style = next((starts for mark, starts in _STYLES.items() if mark in weights), None)
    if style is None:
        raise UserError(f"{folder} has no language model of PaliGemma in its weights; copy the checkpoint again")
    rows = [row for row in renamed(key_table(config, _TABLE), style) if is_prefix(row.ours)]
    _check_names(folder, {row.theirs for row in rows}, set(weights), _HEADS)
    for row in rows:
        tensor = weights[row.theirs]
        yield row.ours, row.to_ours(tensor) if row.to_ours else tensor


def _npz_tensors(file: Path, config: Pi0Config) -> Iterator[tuple[str, Tensor]]:
    rows = [row for row in openpi_jax.table(config) if is_prefix(row.ours[0])]
    theirs = {row.theirs: row.theirs.replace("PaliGemma/", _NPZ, 1) for row in rows}
    try:
        with np.load(file, allow_pickle=False) as arrays:
            _check_names(file, set(theirs.values()), set(arrays.files), set())
            for row in rows:
                stored = _tensor(arrays[theirs[row.theirs]])
                shape = row.stored_shape
                if row.ours[0] == "token_embedding.weight" and stored.ndim == 2:
                    shape = (max(stored.shape[0], shape[0]), shape[1])
                if tuple(stored.shape) != shape:
                    raise UserError(f"{file}: {theirs[row.theirs]} is {tuple(stored.shape)} instead of {shape}")
                if row.ours[0] == "token_embedding.weight":
                    yield row.ours[0], stored
                    continue
                for index, layer in enumerate(stored if row.depth else stored[None]):
                    for name, tensor in zip(row.ours, row.to_ours(layer), strict=True):
                        yield name.format(index), tensor
    except UserError:
        raise
    except Exception as error:  # zip, zlib and NumPy have a dozen kinds for damaged files
        raise UserError(f"{file} cannot be read ({str(error)[:200]}); download it again") from error


def _tensor(array: np.ndarray) -> Tensor:
    """bfloat16 is stored as two bytes without a name."""
    if array.dtype.kind == "V" and array.dtype.itemsize == 2:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)  # pyright: ignore[reportUnknownMemberType]
    return torch.from_numpy(np.ascontiguousarray(array))  # pyright: ignore[reportUnknownMemberType]


def _check_names(path: Path, expected: set[str], found: set[str], ignored: set[str]) -> None:
    missing, extra = sorted(expected - found), sorted(found - expected - ignored)
    if missing or extra:
        raise UserError(
            f"{path} does not fit this model: {listed('missing', missing)}; {listed('left over', extra)}; "
            "it must be a PaliGemma, and the model have its sizes"
        )


def _npz_file(path: Path) -> Path | None:
    if path.suffix == ".npz" and path.is_file():
        return path
    found = sorted(path.glob("*.npz")) if path.is_dir() and not (path / "config.json").is_file() else []
    return found[0] if len(found) == 1 else None


def key_names(config: Pi0Config) -> Mapping[str, str]:
    """Our name of every tensor of PaliGemma, by that of Transformers' modules."""
    rows = renamed(key_table(config, _TABLE), next(iter(_STYLES.values())))
    return {row.theirs: row.ours for row in rows if is_prefix(row.ours)}
