"""Checkpoints of Transformers' `PI0ForConditionalGeneration` (5.x): config.json of model_type "pi0", safetensors.

A π0 with its own config: sizes of both experts and the vision tower are recorded, the robot is not (its processor's
statistics are constants of the class, not of the checkpoint).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from pizero.checkpoints.files.json_file import Settings, peek, read_object
from pizero.checkpoints.files.keymap import Entry, matched, renamed
from pizero.checkpoints.files.safetensors_file import WEIGHTS, SafetensorsWeights, weight_names, write_safetensors
from pizero.checkpoints.format import Arch, Facts, StoredCheckpoint
from pizero.checkpoints.models import Network
from pizero.checkpoints.openpi.folder import config_from_arch
from pizero.checkpoints.openpi.torch import key_table
from pizero.files import write_bytes
from pizero.model.config import CAMERAS, GemmaConfig, Pi0Config, SiglipConfig
from pizero.types import UserError

NAME = "transformers"
CONFIG = "config.json"
_VLM, _EXPERT = "paligemma_with_expert.paligemma.", "paligemma_with_expert.gemma_expert."
_LANGUAGE = _VLM + "model.language_model."
_STYLES: dict[str, dict[str, str]] = {
    "saved": {_LANGUAGE: _LANGUAGE + "model."},
    "original": {},
    "modules": {
        _VLM + "model.": "model.vlm.", _EXPERT + "model.": "model.dit.", "action_out_proj": "action_out_proj",
        "": "embed_action_time.",
    },
}  # fmt: skip
"""Starts of names in openpi's port, and what stands in their place: in what Transformers 5.5 saves, in the released
files that it reads, and in the modules."""
_MARKS = {
    "saved": _LANGUAGE + "model.norm.weight", "original": _LANGUAGE + "norm.weight",
    "modules": "model.vlm.language_model.norm.weight",
}  # fmt: skip
_EMBEDDED, _LM_HEAD = _LANGUAGE + "embed_tokens.weight", _VLM + "lm_head.weight"
_UNUSED = (_EXPERT + "model.embed_tokens.weight", _EXPERT + "lm_head.weight")
"""The expert's token table: nothing reads it."""
_FIXED = {
    "hidden_act": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6, "attention_bias": False, "layer_norm_eps": 1e-6,
    "min_period": 4e-3, "max_period": 4.0,
}  # fmt: skip
"""Settings that the network has no switch for; others are refused."""
_DEFAULT_THETA = 10_000.0
_UNTOLD = {"cameras", "language", "max_delay", "prompt_length"}
"""What an arch may add: no weight depends on it, and config.json has no place for it."""


def detect(folder: Path) -> bool:
    """Recognised by the model_type and by the names in the file."""
    return peek(folder / CONFIG).get("model_type") == "pi0" and _style(weight_names(folder)) is not None


def read(folder: Path, arch: Arch | None = None) -> StoredCheckpoint:
    """What the folder holds, strictly. Names may be those that Transformers saves, that it reads, or its modules'."""
    config = _read_config(read_object(folder / CONFIG))
    if arch is not None:
        given = config_from_arch(arch)
        if any(getattr(given, name) != getattr(config, name) for name in set(vars(config)) - _UNTOLD):
            raise UserError(f"{folder} knows its own sizes and they differ from arch; leave arch out")
        config = given
    weights = SafetensorsWeights(folder)
    style = _style(set(weights))
    if style is None:
        raise UserError(f"weights do not fit: {folder} has no final norm of the language model")
    named = renamed([Entry(name, name) for name in (_EMBEDDED, _LM_HEAD, *_UNUSED)], _STYLES[style])
    embedded, head, *unused = (row.theirs for row in named)
    table, other = (_EMBEDDED, head) if embedded in weights else (_LM_HEAD, embedded)
    rows = renamed(key_table(config, table), _STYLES[style])
    return StoredCheckpoint(NAME, config, matched(weights, rows, ignored=(other, *unused)), Facts(), weights.notes)


def write(folder: Path, model: Network, facts: Facts) -> None:
    """config.json and the weights, as `PI0ForConditionalGeneration.from_pretrained` reads them.

    facts: there is no place for the robot, so none is written. UserError for anything but π0.
    """
    config = model.config
    if not isinstance(config, Pi0Config) or not config.has_state_token or config.adaptive:
        raise UserError(f"the format {NAME} holds a π0 with state token and without adaptive norms; write another one")
    if config.action_attention != "bidirectional":
        raise UserError(f"the format {NAME} has no causal attention among actions; write another one")
    if config.max_delay:
        warnings.warn(f"the format {NAME} has no place for the model's max_delay of {config.max_delay}", stacklevel=3)
    ours = model.state_dict()
    rows = renamed(key_table(config, _EMBEDDED), _STYLES["saved"])
    tensors = {row.theirs: row.to_theirs(ours[row.ours]) if row.to_theirs else ours[row.ours] for row in rows}
    table = ours["token_embedding.weight"]
    tensors[_UNUSED[0]] = table.new_zeros(1).expand(config.vocab_size, config.expert.width)
    write_bytes(folder / CONFIG, (json.dumps(_written_config(config, str(table.dtype)), indent=2) + "\n").encode())
    write_safetensors(folder / WEIGHTS, tensors)


def _style(names: Container[str]) -> str | None:
    return next((style for style, mark in _MARKS.items() if mark in names), None)


def _read_config(settings: Settings) -> Pi0Config:
    vlm, expert = settings.inner("vlm_config"), settings.inner("dit_config")
    text, vision = vlm.inner("text_config"), vlm.inner("vision_config")
    for part in (settings, text, expert, vision):
        _check_fixed(part)
    sizes = _gemma(text), _gemma(expert)
    return Pi0Config(
        vision=SiglipConfig(
            vision.whole("hidden_size"), vision.whole("num_hidden_layers"), vision.whole("intermediate_size"),
            vision.whole("num_attention_heads"), vision.whole("patch_size"),
        ),
        prefix=sizes[0],
        expert=sizes[1],
        vocab_size=text.whole("vocab_size"),
        cameras=CAMERAS,
        image_size=vision.whole("image_size"),
        state_dim=settings.whole("max_state_dim", 32),
        action_dim=settings.whole("max_action_dim", 32),
        action_horizon=settings.whole("chunk_size", 50),
    )  # fmt: skip


def _gemma(settings: Settings) -> GemmaConfig:
    return GemmaConfig(
        settings.whole("hidden_size"), settings.whole("num_hidden_layers"), settings.whole("intermediate_size"),
        settings.whole("num_attention_heads"), settings.whole("num_key_value_heads"), settings.whole("head_dim", 256),
    )  # fmt: skip


def _check_fixed(settings: Settings) -> None:
    for name, value in _FIXED.items():
        if settings.values.get(name, value) != value:
            raise UserError(f"{settings.where}: {name} is {settings.values[name]!r}; only {value!r} is supported")
    rope: Any = settings.values.get("rope_parameters") or {}
    theta = rope.get("rope_theta", _DEFAULT_THETA) if isinstance(rope, Mapping) else rope  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    if settings.values.get("rope_theta", theta) != _DEFAULT_THETA:
        raise UserError(f"{settings.where}: another rope_theta than {_DEFAULT_THETA:g} is not supported")


def _written_config(config: Pi0Config, dtype: str) -> dict[str, Any]:
    def gemma(sizes: GemmaConfig) -> dict[str, Any]:
        return {
            "model_type": "gemma", "hidden_size": sizes.width, "num_hidden_layers": sizes.depth,
            "intermediate_size": sizes.mlp_dim, "num_attention_heads": sizes.num_heads,
            "num_key_value_heads": sizes.num_kv_heads, "head_dim": sizes.head_dim, "vocab_size": config.vocab_size,
        }  # fmt: skip

    vision = config.vision
    return {
        "architectures": ["PI0ForConditionalGeneration"],
        "model_type": "pi0",
        "dtype": dtype.removeprefix("torch."),
        "chunk_size": config.action_horizon,
        "max_state_dim": config.state_dim,
        "max_action_dim": config.action_dim,
        "num_inference_steps": config.default_num_steps,
        "vlm_config": {
            "model_type": "paligemma",
            "text_config": gemma(config.prefix),
            "vision_config": {
                "model_type": "siglip_vision_model", "hidden_size": vision.width,
                "num_hidden_layers": vision.depth, "intermediate_size": vision.mlp_dim,
                "num_attention_heads": vision.num_heads, "patch_size": vision.patch_size,
                "image_size": config.image_size, "vision_use_head": False,
            },
            "projection_dim": config.prefix.width,
            "image_token_id": config.vocab_size,
        },
        "dit_config": gemma(config.expert),
    }  # fmt: skip
