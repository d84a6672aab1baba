"""LeRobot's `pi0_fast` policy (version 0.6.1): config.json, model.safetensors with PaliGemma's names, two processors.

It differs from openpi's π0-FAST in its text: capitals stay, and the actions begin with a begin mark of their own, on
which there is no loss (`Convention` "lerobot"). LeRobot's sampler lets the prompt see that mark, which its training
does not; here it never does. It decodes with the codec of `action_tokenizer_name`; one that we know lies in
`fast_codec/`, where LeRobot does not look.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pizero.checkpoints.files.keymap import Entry, equal, matched
from pizero.checkpoints.files.safetensors_file import WEIGHTS, SafetensorsWeights, write_safetensors
from pizero.checkpoints.format import GIVE_SIZES, Arch, Facts, StoredCheckpoint
from pizero.checkpoints.lerobot.processors import (
    Processors,
    image_keys,
    model_cameras,
    prompt_length,
    read_config,
    read_facts,
    read_processors,
    robot_config,
    write_processors,
)
from pizero.checkpoints.lerobot.variants import VARIANTS, check_width, width_of_table
from pizero.checkpoints.openpi.torch import key_table
from pizero.checkpoints.transformers.paligemma import is_prefix, name_in_fast, prefix_config
from pizero.data.fast.codec import FastCodec
from pizero.data.fast.tokens import SKIP
from pizero.data.pipeline import CODEC
from pizero.files import values_of
from pizero.model.config import SO400M
from pizero.model.pi0_fast import Pi0Fast, Pi0FastConfig
from pizero.types import UserError

TYPE, CONFIG, NAME = "pi0_fast", "config.json", "lerobot"
_PREFIX, _PALIGEMMA = "model.", "paligemma_with_expert.paligemma."
_TABLE, _HEAD = _PALIGEMMA + "model.language_model.embed_tokens.weight", _PALIGEMMA + "lm_head.weight"
MARK = _HEAD
"""A tensor by whose name the weights are recognised."""
_FLOAT32 = ("vision_tower", "multi_modal_projector", "input_layernorm", "post_attention_layernorm", "model.norm")
_PUBLISHED = "lerobot/fast-action-tokenizer"


def read(folder: Path, arch: Arch | None = None) -> StoredCheckpoint:
    """What the folder holds, strictly. UserError where the head is not the token table, which π0-FAST has in one."""
    values = read_config(folder / CONFIG)
    weights = SafetensorsWeights(folder)
    start = _PREFIX if any(name.startswith(_PREFIX) for name in weights) else ""
    table = start + (_TABLE if start + _TABLE in weights else _HEAD)
    with values_of(f"{folder}: {CONFIG} or a processor"):
        processors = read_processors(folder, values)
        config = _read_config(values, processors, arch, width_of_table(weights, table))
    if (skip := values.get("fast_skip_tokens", SKIP)) != SKIP:
        raise UserError(f"{folder / CONFIG}: fast_skip_tokens is {skip}; only {SKIP}, the published one, can be read")
    rows = [dataclasses.replace(row, theirs=start + row.theirs) for row in _rows(config, table.removeprefix(start))]
    tensors = matched(weights, rows, ignored=(start + _HEAD,))
    if start + _HEAD in weights and not equal(weights[start + _HEAD], weights[table]):
        raise UserError(
            f"{folder} has a head of its own ({_HEAD} differs from {_TABLE}); π0-FAST reads and writes with one table"
        )
    with values_of(f"{folder}: {CONFIG} or a processor"):
        facts, notes = read_facts(folder, values, processors, config)
    notes[:0] = weights.notes
    if (folder / CODEC).is_dir():
        facts = dataclasses.replace(facts, codec=FastCodec.load(folder / CODEC))
    else:
        named = values.get("action_tokenizer_name", _PUBLISHED)
        notes.append(f"the action codec is unknown: LeRobot takes {named}; give its folder with --codec")
    return StoredCheckpoint(NAME, config, tensors, facts, tuple(notes))


def write(folder: Path, model: Pi0Fast, facts: Facts) -> None:
    """Files that LeRobot 0.6.1 opens strictly; what the robot's facts do not record is the model's own, as for π0.

    Warns where the sizes are none that LeRobot has a name for, where statistics are unknown, where the codec is not the
    published one, and where the model was trained with openpi's text.
    """
    values = written_config(model, facts)
    (folder / CONFIG).write_text(json.dumps(values, indent=4))
    write_safetensors(folder / WEIGHTS, _WrittenTensors(model))
    write_processors(folder, values, facts)
    if facts.codec is not None:
        facts.codec.save(folder / CODEC)
        warnings.warn(
            f"LeRobot takes the action codec {_PUBLISHED}; this model's lies in {CODEC}: put the Python file of "
            "physical-intelligence/fast beside it and its path into action_tokenizer_name, in config.json and "
            "policy_preprocessor.json",
            stacklevel=4,
        )
    if facts.norm_stats is None:
        warnings.warn("the norm stats are unknown, so LeRobot will scale nothing until it is given some", stacklevel=4)
    if facts.convention != "lerobot":
        warnings.warn(
            'LeRobot writes a begin mark before "Action: ", keeps capitals and shrinks images without a filter. '
            "This model was trained otherwise: fine-tune it there before it plays",
            stacklevel=4,
        )


def written_config(model: Pi0Fast, facts: Facts) -> dict[str, Any]:
    config = model.config
    variants = {sizes: name for name, sizes in VARIANTS.items()}
    standard = config.vision == SO400M and config.vocab_size == Pi0FastConfig().vocab_size
    if not standard or config.prefix not in variants:
        warnings.warn("LeRobot has no name for this model's sizes and cannot open it")
    return {
        "type": TYPE,
        "n_obs_steps": 1,
        **robot_config(config, facts),
        "device": None,
        "paligemma_variant": variants.get(config.prefix, "gemma_2b"),
        "dtype": _WrittenTensors(model).dtype,
        "chunk_size": config.action_horizon,
        "n_action_steps": config.action_horizon,
        "max_state_dim": config.state_dim,
        "max_action_dim": config.action_dim,
        "max_action_tokens": 256,
        "image_resolution": [config.image_size, config.image_size],
        "tokenizer_max_length": config.prompt_length,
        "text_tokenizer_name": "google/paligemma-3b-pt-224",
        "action_tokenizer_name": _PUBLISHED,
        "temperature": config.temperature,
        "max_decoding_steps": 256,
        "fast_skip_tokens": SKIP,
    }


class _WrittenTensors(Mapping[str, Tensor]):
    """LeRobot's names and tensors of a model; the table twice, since its strict loader asks for the head."""

    def __init__(self, model: Pi0Fast) -> None:
        self._ours = model.state_dict()
        self._rows = {_PREFIX + row.theirs: row for row in _rows(model.config, _TABLE)}
        self._rows[_PREFIX + _HEAD] = Entry("token_embedding.weight", _HEAD)

    def __getitem__(self, name: str) -> Tensor:
        row = self._rows[name]
        tensor = self._ours[row.ours]
        kept = _kept_in_float32(name) or tensor.dtype == torch.float16
        return (row.to_theirs(tensor) if row.to_theirs else tensor).to(torch.float32 if kept else tensor.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def dtype(self) -> str:
        kinds = {self._ours[row.ours].dtype for name, row in self._rows.items() if not _kept_in_float32(name)}
        return "bfloat16" if kinds == {torch.bfloat16} else "float32"


def _kept_in_float32(name: str) -> bool:
    return any(part in name for part in _FLOAT32)


def _rows(config: Pi0FastConfig, table: str) -> list[Entry]:
    """PaliGemma's rows of openpi's port, by the names of our module."""
    rows = [row for row in key_table(prefix_config(config), table) if is_prefix(row.ours)]
    return [dataclasses.replace(row, ours=name_in_fast(row.ours)) for row in rows]


def _read_config(
    values: Mapping[str, Any], processors: Processors, arch: Arch | None, table_width: int | None
) -> Pi0FastConfig:
    """Switches and dims of config.json, sizes of its variant or of `arch`, which must not contradict it.
    table_width: of the token table, None where there is none.
    """
    height, width = values.get("image_resolution") or (224, 224)
    if height != width:
        raise UserError(f"{CONFIG}: image_resolution is {height} x {width}; only square images can be read")
    told: dict[str, Any] = {
        "image_size": height, "prompt_length": prompt_length(values, processors, 200),
        "state_dim": values.get("max_state_dim", 32), "action_dim": values.get("max_action_dim", 32),
        "action_horizon": values.get("chunk_size", 50), "cameras": model_cameras(values),
        "temperature": float(values.get("temperature") or 0.0),
    }  # fmt: skip
    if arch is None:
        check_width(values, table_width)
        variant = values.get("paligemma_variant", "gemma_2b")
        if variant not in VARIANTS:
            raise UserError(f"{CONFIG} names the variant {variant!r}, whose sizes are not known; {GIVE_SIZES}")
        return Pi0FastConfig(prefix=VARIANTS[variant], **told)
    if isinstance(arch, Mapping):
        with values_of("arch"):
            arch = Pi0FastConfig.from_json(arch)
    if not isinstance(arch, Pi0FastConfig):
        raise UserError(f"{CONFIG} is of a π0-FAST, and the arch of a π0")
    if len(arch.cameras) >= len(image_keys(values)):
        told["cameras"] = arch.cameras
    differing = [name for name, value in told.items() if getattr(arch, name) != value]
    if differing:
        shown = ", ".join(f"{name} {getattr(arch, name)} instead of {told[name]}" for name in differing)
        raise UserError(f"arch contradicts {CONFIG}: {shown}")
    return arch
