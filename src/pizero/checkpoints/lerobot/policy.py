"""Checkpoints of LeRobot's `pi0` and `pi05` policies (version 0.6.1): config.json, model.safetensors, two processors.

The tensors have the names of openpi's port, with the prefix "model." or without it. config.json names the variants of
the experts but not their sizes; `processors` reads and writes what LeRobot knows of the robot.
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

from pizero.checkpoints.files.json_file import peek
from pizero.checkpoints.files.keymap import Entry, equal, matched
from pizero.checkpoints.files.safetensors_file import WEIGHTS, SafetensorsWeights, weight_names, write_safetensors
from pizero.checkpoints.format import GIVE_SIZES, Arch, Facts, StoredCheckpoint
from pizero.checkpoints.lerobot import fast
from pizero.checkpoints.lerobot.keys import LEGACY_KEYS
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
from pizero.checkpoints.models import Network
from pizero.checkpoints.openpi.torch import config_from_arch, key_table
from pizero.checkpoints.refusals import LEGACY_PI0, legacy_pi0
from pizero.files import values_of
from pizero.model.config import SO400M, GemmaConfig, Pi0Config, SiglipConfig
from pizero.model.pi0 import Pi0
from pizero.model.pi0_fast import Pi0Fast, Pi0FastConfig
from pizero.types import UserError

NAME = "lerobot"
CONFIG = "config.json"
_PRESETS = {"pi0": Pi0Config.pi0(), "pi05": Pi0Config.pi05()}
_PREFIX = "model."
_INSIDE = "paligemma_with_expert."
EMBEDDED = _INSIDE + "paligemma.model.language_model.embed_tokens.weight"
_LM_HEAD = _INSIDE + "paligemma.lm_head.weight"
_EXPERT_HEAD = _INSIDE + "gemma_expert.lm_head.weight"
_FLOAT32 = ("vision_tower", "multi_modal_projector", "input_layernorm", "post_attention_layernorm", "model.norm")
"""Parts of the names inside of `_INSIDE` that LeRobot keeps in float32 when its dtype is bfloat16."""


def detect(folder: Path) -> bool:
    """Recognised by the type that config.json names and by the names in the file."""
    kind = peek(folder / CONFIG).get("type")
    marks = {**dict.fromkeys(_PRESETS, "action_in_proj.weight"), fast.TYPE: fast.MARK}
    return isinstance(kind, str) and any(
        name.removeprefix(_PREFIX) == marks.get(kind) for name in (weight_names(folder) if kind in marks else ())
    )


def read(folder: Path, arch: Arch | None = None) -> StoredCheckpoint:
    """What the folder holds, strictly. The token embedding is embed_tokens; without it LeRobot copies lm_head there."""
    values = read_config(folder / CONFIG)
    if values.get("type") == fast.TYPE:
        return fast.read(folder, arch)
    weights = SafetensorsWeights(folder)
    if told := legacy_pi0(weights):
        raise UserError(f"{folder} {told}")
    prefix = _PREFIX if _PREFIX + "action_in_proj.weight" in weights else ""
    table = next((prefix + name for name in (EMBEDDED, _LM_HEAD) if prefix + name in weights), prefix + EMBEDDED)
    with values_of(f"{folder}: {CONFIG} or a processor"):
        processors = read_processors(folder, values)
        config = _read_config(values, processors, arch, width_of_table(weights, table))
    rows = key_table(config, table.removeprefix(prefix))
    rows = [dataclasses.replace(row, theirs=prefix + row.theirs) for row in rows]
    try:
        tensors = matched(weights, rows, ignored=(prefix + _LM_HEAD, prefix + _EXPERT_HEAD))
    except UserError:
        if LEGACY_KEYS & values.keys():
            raise UserError(f"{folder} is {LEGACY_PI0}") from None
        raise
    with values_of(f"{folder}: {CONFIG} or a processor"):
        facts, notes = read_facts(folder, values, processors, config)
    notes[:0] = weights.notes
    if values.get("use_peft"):
        notes.append(f"{CONFIG} says use_peft, and there are no adapters: the weights are taken to be the merged ones")
    head = prefix + _LM_HEAD
    if table != head and head in weights and not equal(weights[head], weights[table]):
        notes.append(f"{head} differs from {table}, which the forward pass reads and which is taken")
    return StoredCheckpoint(NAME, config, tensors, facts, tuple(notes))


def write(folder: Path, model: Network, facts: Facts) -> None:
    """Files that LeRobot 0.6.1 opens strictly: "model." names, and copies where its heads are not tied.

    The robot's dims and cameras are those of `facts`; where they are unknown, the model's own stand there, as in
    LeRobot's base checkpoints, and the processors have no statistics: LeRobot then scales nothing until it is given
    some (`lerobot-train` takes the dataset's). Images have the model's size in config.json, which nothing checks.
    LeRobot resizes images and reads prompts in its own way (`types.Convention`) whatever the facts say.

    Warns where the statistics are unknown, and where the sizes are none that LeRobot has a name for: it cannot open
    those. UserError for a switch that LeRobot does not have.
    """
    if isinstance(model, Pi0Fast):
        fast.write(folder, model, facts)
        return
    if not isinstance(model, Pi0):
        raise UserError(f"the format {NAME} has no {type(model).__name__}; only native folders hold it")
    values = written_config(model, facts)
    (folder / CONFIG).write_text(json.dumps(values, indent=4))
    write_safetensors(folder / WEIGHTS, WrittenTensors(model))
    write_processors(folder, values, facts)
    if facts.norm_stats is None:
        warnings.warn(
            "the norm stats are unknown, so LeRobot will neither scale states nor actions until it is given some; "
            "fine-tune it there, or convert a checkpoint that has them",
            stacklevel=3,
        )
    elif facts.convention != "lerobot":
        warnings.warn(
            "LeRobot shrinks images without a low-pass filter and reads π0's prompts as they are; this model was "
            f"trained otherwise, so its actions differ a little for images that are not {model.config.image_size} wide",
            stacklevel=3,
        )


class WrittenTensors(Mapping[str, Tensor]):
    """LeRobot's names and tensors of a model, made when they are asked for.

    LeRobot's dtypes: bfloat16 matrices stay so, but not those that it keeps in float32; it has no float16.
    """

    def __init__(self, model: Pi0) -> None:
        self._ours = model.state_dict()
        self._rows = {_PREFIX + row.theirs: row for row in key_table(model.config, EMBEDDED)}
        self._rows[_PREFIX + _LM_HEAD] = Entry("token_embedding.weight", _LM_HEAD)
        self._expert_head = model.config.vocab_size, model.config.expert.width

    def __getitem__(self, name: str) -> Tensor:
        if name == _PREFIX + _EXPERT_HEAD:  # nothing reads it
            table = self._ours["token_embedding.weight"]
            return table.new_zeros((), dtype=self._dtype(name, table)).expand(self._expert_head)
        row = self._rows[name]
        tensor = self._ours[row.ours]
        return (row.to_theirs(tensor) if row.to_theirs else tensor).to(self._dtype(name, tensor))

    def __iter__(self) -> Iterator[str]:
        yield from self._rows
        yield _PREFIX + _EXPERT_HEAD

    def __len__(self) -> int:
        return len(self._rows) + 1

    @property
    def dtype(self) -> str:
        """LeRobot's option: "bfloat16" where every tensor is that it does not keep in float32."""
        kinds = {self._ours[row.ours].dtype for name, row in self._rows.items() if not kept_in_float32(name)}
        return "bfloat16" if kinds == {torch.bfloat16} else "float32"

    def _dtype(self, name: str, tensor: Tensor) -> torch.dtype:
        return torch.float32 if kept_in_float32(name) or tensor.dtype == torch.float16 else tensor.dtype


def kept_in_float32(name: str) -> bool:
    inside = name.removeprefix(_PREFIX)
    return not inside.startswith(_INSIDE) or any(part in inside for part in _FLOAT32)


def _read_config(
    values: Mapping[str, Any], processors: Processors, arch: Arch | None, table_width: int | None
) -> Pi0Config:
    """Switches and dims of config.json, sizes of its variants or of `arch`, which must not contradict it.
    table_width: of the token table, None where there is none.
    """
    preset = _PRESETS[values["type"]]
    height, width = values.get("image_resolution") or values.get("resize_imgs_with_padding") or (224, 224)
    if height != width:
        raise UserError(f"{CONFIG}: image_resolution is {height} x {width}; only square images can be read")
    for name, value in (("min_period", 4e-3), ("max_period", 4.0)):
        if values.get(name, value) != value:
            raise UserError(f"{CONFIG}: {name} is {values[name]}; the time embedding here has {value}")
    told: dict[str, Any] = {
        "state_input": preset.state_input, "time_conditioning": preset.time_conditioning, "image_size": height,
        "prompt_length": prompt_length(values, processors, preset.prompt_length),
        "state_dim": values.get("max_state_dim", 32), "action_dim": values.get("max_action_dim", 32),
        "action_horizon": values.get("chunk_size", 50),
        "cameras": model_cameras(values),
        "max_delay": values.get("rtc_training_max_delay") or 0,
    }  # fmt: skip
    if arch is None:
        check_width(values, table_width)
        names = values.get("paligemma_variant", "gemma_2b"), values.get("action_expert_variant", "gemma_300m")
        unknown = [str(name) for name in names if name not in VARIANTS]
        if unknown:
            raise UserError(f"{CONFIG} names the variant {unknown[0]!r}, whose sizes are not known; {GIVE_SIZES}")
        return dataclasses.replace(preset, prefix=VARIANTS[names[0]], expert=VARIANTS[names[1]], **told)
    if isinstance(arch, Mapping) and "chunk_size" in arch:
        sizes = _sizes(arch)
        given = {name: arch[key] for name, key in _ARCH_KEYS.items() if key in arch and arch[key] != values.get(key)}
        config = dataclasses.replace(preset, **{**told, **given}, **sizes)
    else:
        if isinstance(arch, Pi0FastConfig):
            raise UserError(f"{CONFIG} is of a {values['type']}, and the arch of a π0-FAST")
        config = config_from_arch(arch)
    if len(config.cameras) >= len(image_keys(values)):
        told["cameras"] = config.cameras
    if not config.max_delay:  # no size
        config = dataclasses.replace(config, max_delay=told["max_delay"])
    differing = [name for name, value in told.items() if getattr(config, name) != value]
    if differing:
        shown = ", ".join(f"{name} {getattr(config, name)} instead of {told[name]}" for name in differing)
        raise UserError(f"arch contradicts {CONFIG}: {shown}")
    return config


_ARCH_KEYS = {"action_horizon": "chunk_size", "prompt_length": "tokenizer_max_length"}


def _sizes(arch: Mapping[str, Any]) -> dict[str, Any]:
    """Of an arch in the words of LeRobot and Transformers: vlm, expert, vision (hidden_size, ...), vocab_size."""
    with values_of("arch"):
        vision = arch["vision"]
        return {
            "vision": SiglipConfig(
                width=vision["hidden_size"],
                depth=vision["num_hidden_layers"],
                mlp_dim=vision["intermediate_size"],
                num_heads=vision["num_attention_heads"],
                patch_size=vision["patch_size"],
            ),
            "prefix": GemmaConfig(**arch["vlm"]),
            "expert": GemmaConfig(**arch["expert"]),
            "vocab_size": arch["vocab_size"],
        }


def written_config(model: Pi0, facts: Facts) -> dict[str, Any]:
    config = model.config
    kind = next(
        (
            name
            for name, preset in _PRESETS.items()
            if (config.state_input, config.time_conditioning) == (preset.state_input, preset.time_conditioning)
        ),
        None,
    )
    if kind is None or config.action_attention != "bidirectional":
        raise UserError(
            f"LeRobot has no policy with state_input {config.state_input!r}, time_conditioning "
            f"{config.time_conditioning!r} and {config.action_attention} action attention; write another format"
        )
    variants = {sizes: name for name, sizes in VARIANTS.items()}
    standard = config.vision == SO400M and config.vocab_size == _PRESETS[kind].vocab_size
    if not (standard and config.prefix in variants and config.expert in variants):
        warnings.warn("LeRobot has no name for this model's sizes and cannot open it")
    return {
        "type": kind,
        "n_obs_steps": 1,
        **robot_config(config, facts),
        "device": None,
        "paligemma_variant": variants.get(config.prefix, "gemma_2b"),
        "action_expert_variant": variants.get(config.expert, "gemma_300m"),
        "dtype": WrittenTensors(model).dtype,
        "chunk_size": config.action_horizon,
        "n_action_steps": config.action_horizon,
        "max_state_dim": config.state_dim,
        "max_action_dim": config.action_dim,
        "num_inference_steps": config.default_num_steps,
        "image_resolution": [config.image_size, config.image_size],
        "tokenizer_max_length": config.prompt_length,
        **({"rtc_training_max_delay": config.max_delay} if config.max_delay else {}),
    }
