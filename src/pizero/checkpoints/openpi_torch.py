"""Reads checkpoints of openpi's PyTorch port: `model.safetensors`, names of the patched Transformers classes.

π0 or π0.5, dims and sizes are read from the tensors themselves; what shapes cannot tell (heads, image size, horizon)
comes from `arch` or from the variants that config.json names, and must agree with the shapes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from pizero.checkpoints.keymap import Entry, expand, load_strictly, to_ours
from pizero.model.config import GEMMA_2B, GEMMA_300M, SO400M, GemmaConfig, Pi0Config, SiglipConfig
from pizero.model.pi0 import Pi0
from pizero.types import UserError

_VISION = "paligemma_with_expert.paligemma.model.vision_tower.vision_model."
_PREFIX = "paligemma_with_expert.paligemma.model.language_model."
_EXPERT = "paligemma_with_expert.gemma_expert.model."
_TABLE = "paligemma_with_expert.paligemma.lm_head.weight"
_UNUSED = ("paligemma_with_expert.gemma_expert.lm_head.weight",)
_VARIANTS = {"gemma_2b": GEMMA_2B, "gemma_300m": GEMMA_300M}


def is_openpi_torch(folder: Path) -> bool:
    """Told by the names in the file, never by the folder's."""
    path = folder / "model.safetensors"
    if not path.is_file():
        return False
    with safe_open(path, "pt") as file:  # pyright: ignore
        return "action_in_proj.weight" in file.keys() and any(k.startswith(_EXPERT) for k in file.keys())  # noqa: SIM118


def load_openpi_torch(folder: Path, arch: Pi0Config | Mapping[str, Any] | None = None) -> Pi0:
    """The model of `folder/model.safetensors`, strictly."""
    tensors: dict[str, Tensor] = {}
    with safe_open(folder / "model.safetensors", "pt") as file:  # pyright: ignore
        for name in file.keys():  # noqa: SIM118
            tensors[name] = file.get_tensor(name)
    embedded = tensors.pop(_PREFIX + "embed_tokens.weight", None)
    if embedded is not None:
        tensors[_TABLE] = embedded  # the forward pass reads this one; they are tied in this format
    if not isinstance(arch, Pi0Config):
        arch = config_from_arch(_standard_arch(folder, tensors) if arch is None else arch)
    adaptive = _EXPERT + "norm.dense.weight" in tensors
    if adaptive != arch.adaptive:
        raise UserError(
            f"the weights are {'' if adaptive else 'not '}of the adaptive-norm kind, the arch says otherwise"
        )
    with torch.device("meta"):
        model = Pi0(arch)
    load_strictly(model, to_ours(tensors, key_table(arch), _UNUSED))
    return model


def config_from_arch(values: Mapping[str, Any]) -> Pi0Config:
    """Pi0Config from our own JSON, or from the layout of `tiny_config.json` (pi05, vision, vlm, action_expert, ...)."""
    if "vlm" not in values:
        return Pi0Config.from_json(values)
    preset = Pi0Config.pi05 if values["pi05"] else Pi0Config.pi0
    vision = {name: values["vision"][name] for name in ("width", "depth", "mlp_dim", "num_heads")}
    return preset(
        vision=SiglipConfig(patch_size=values["patch_size"], **vision),
        prefix=GemmaConfig(**values["vlm"]),
        expert=GemmaConfig(**values["action_expert"]),
        vocab_size=values["vocab_size"],
        image_size=values["image_size"],
        prompt_length=values["max_token_len"],
        state_dim=values["action_dim"],
        action_dim=values["action_dim"],
        action_horizon=values["action_horizon"],
    )


def key_table(config: Pi0Config) -> list[Entry]:
    """Every tensor that the forward pass uses."""
    vision = [
        Entry(f"vision_tower.blocks.{{}}.{ours}.{kind}", f"{_VISION}encoder.layers.{{}}.{theirs}.{kind}")
        for ours, theirs in {
            "attention_norm": "layer_norm1", "query": "self_attn.q_proj", "key": "self_attn.k_proj",
            "value": "self_attn.v_proj", "output": "self_attn.out_proj", "mlp_norm": "layer_norm2",
            "mlp_in": "mlp.fc1", "mlp_out": "mlp.fc2",
        }.items()
        for kind in ("weight", "bias")
    ]  # fmt: skip
    experts = [
        Entry(f"transformer.layers.{{}}.{expert}.{ours}.weight", f"{root}layers.{{}}.{theirs}.weight")
        for expert, root in (("prefix", _PREFIX), ("expert", _EXPERT))
        for ours, theirs in {
            "query": "self_attn.q_proj", "key": "self_attn.k_proj", "value": "self_attn.v_proj",
            "output": "self_attn.o_proj", "mlp.gate": "mlp.gate_proj", "mlp.up": "mlp.up_proj",
            "mlp.down": "mlp.down_proj",
        }.items()
    ]  # fmt: skip
    norms = [
        *_norm("transformer.layers.{}.prefix.attention_norm", _PREFIX + "layers.{}.input_layernorm", False),
        *_norm("transformer.layers.{}.prefix.mlp_norm", _PREFIX + "layers.{}.post_attention_layernorm", False),
        *_norm("transformer.layers.{}.expert.attention_norm", _EXPERT + "layers.{}.input_layernorm", config.adaptive),
        *_norm(
            "transformer.layers.{}.expert.mlp_norm", _EXPERT + "layers.{}.post_attention_layernorm", config.adaptive
        ),
        *_norm("transformer.prefix_norm", _PREFIX + "norm", False),
        *_norm("transformer.expert_norm", _EXPERT + "norm", config.adaptive),
    ]
    time = "time_mlp" if config.adaptive else "action_time_mlp"
    heads = [
        Entry(f"{ours}.{kind}", f"{theirs}.{kind}")
        for ours, theirs in {
            "vision_tower.final_norm": _VISION + "post_layernorm",
            "vision_tower.projection": "paligemma_with_expert.paligemma.model.multi_modal_projector.linear",
            "action_in_proj": "action_in_proj", "action_out_proj": "action_out_proj",
            "time_mlp_in": time + "_in", "time_mlp_out": time + "_out",
            **({"state_proj": "state_proj"} if config.has_state_token else {}),
        }.items()
        for kind in ("weight", "bias")
    ]  # fmt: skip
    patch = config.vision.patch_size
    return [
        Entry(
            "vision_tower.patch_embedding.weight",
            _VISION + "embeddings.patch_embedding.weight",
            to_ours=lambda w: w.permute(0, 2, 3, 1).flatten(
                1
            ),  # [out, channel, row, column] -> [out, row column channel]
            to_theirs=lambda w: w.unflatten(1, (patch, patch, 3)).permute(0, 3, 1, 2).contiguous(),
        ),
        Entry("vision_tower.patch_embedding.bias", _VISION + "embeddings.patch_embedding.bias"),
        Entry("vision_tower.position_embedding", _VISION + "embeddings.position_embedding.weight"),
        *expand(vision, config.vision.depth),
        Entry("token_embedding.weight", _TABLE),
        *expand([*experts, *norms], config.prefix.depth),
        *heads,
    ]


def _norm(ours: str, theirs: str, adaptive: bool) -> list[Entry]:
    if not adaptive:
        return [Entry(ours + ".scale", theirs + ".weight")]
    return [Entry(f"{ours}.modulation.{kind}", f"{theirs}.dense.{kind}") for kind in ("weight", "bias")]


def _standard_arch(folder: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Sizes of the variants that the folder's config.json names; the shapes are checked when the weights are loaded."""
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} has no config.json; give the sizes with arch")
    values = json.loads(path.read_text())
    names = values.get("paligemma_variant"), values.get("action_expert_variant")
    unknown = [str(name) for name in names if name not in _VARIANTS]
    if unknown:
        raise UserError(f"{path} names the variant {unknown[0]!r}, whose sizes are not known; give them with arch")
    base = Pi0Config.pi05() if _EXPERT + "norm.dense.weight" in tensors else Pi0Config.pi0()
    return {
        **base.to_json(),
        "vision": vars(SO400M), "prefix": vars(_VARIANTS[names[0]]), "expert": vars(_VARIANTS[names[1]]),
        "action_dim": values["action_dim"], "state_dim": values["action_dim"],
        "action_horizon": values["action_horizon"],
    }  # fmt: skip
