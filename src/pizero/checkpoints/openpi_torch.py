"""Reads checkpoints of openpi's PyTorch port: `model.safetensors`, names of the patched Transformers classes.

π0 or π0.5, dims and sizes are read from the tensors themselves; what shapes cannot tell (heads, image size, horizon)
comes from `arch` or from the variants that config.json names, and must agree with the shapes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pizero.checkpoints.keymap import Entry, expand, matched
from pizero.checkpoints.models import Network
from pizero.checkpoints.safetensors_file import SafetensorsWeights, weight_names
from pizero.checkpoints.source import Arch, Facts, Source
from pizero.model.config import GEMMA_2B, GEMMA_300M, SO400M, GemmaConfig, Pi0Config, SiglipConfig
from pizero.types import UserError

NAME = "openpi-torch"
_VISION = "paligemma_with_expert.paligemma.model.vision_tower.vision_model."
_PREFIX = "paligemma_with_expert.paligemma.model.language_model."
_EXPERT = "paligemma_with_expert.gemma_expert.model."
_LM_HEAD = "paligemma_with_expert.paligemma.lm_head.weight"
_EMBEDDED = _PREFIX + "embed_tokens.weight"
_EXPERT_HEAD = "paligemma_with_expert.gemma_expert.lm_head.weight"
_VARIANTS = {"gemma_2b": GEMMA_2B, "gemma_300m": GEMMA_300M}


def detect(folder: Path) -> bool:
    """Told by the names in the file, never by the folder's."""
    names = weight_names(folder)
    return "action_in_proj.weight" in names and any(name.startswith(_EXPERT) for name in names)


def read(folder: Path, arch: Arch | None = None) -> Source:
    """What `folder/model.safetensors` holds, strictly."""
    weights = SafetensorsWeights(folder)
    config = arch if isinstance(arch, Pi0Config) else config_from_arch(arch or _standard_arch(folder, weights))
    adaptive = _EXPERT + "norm.dense.weight" in weights
    if adaptive != config.adaptive:
        raise UserError(
            f"the weights are {'' if adaptive else 'not '}of the adaptive-norm kind, the arch says otherwise"
        )
    table = _EMBEDDED if _EMBEDDED in weights else _LM_HEAD  # the forward pass reads the first; tied in this format
    ignored = (_EXPERT_HEAD, _LM_HEAD) if table == _EMBEDDED else (_EXPERT_HEAD,)
    return Source(NAME, config, matched(weights, key_table(config, table), ignored))


def write(folder: Path, model: Network, facts: Facts) -> None:
    """Weights under the port's names, with its config.json and, where the statistics are known, its assets."""
    raise NotImplementedError


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


def key_table(config: Pi0Config, table: str = _LM_HEAD) -> list[Entry]:
    """Every tensor that the forward pass uses. table: the name of the token embedding."""
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
        Entry("token_embedding.weight", table),
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
