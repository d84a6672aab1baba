"""Checkpoints of openpi's PyTorch port: `model.safetensors`, names of the patched Transformers classes.

π0 or π0.5, dims and sizes are read from the tensors themselves; what shapes do not show (heads, horizon) comes from
`arch`, from the variants that config.json names, or, without one, as openpi's trainer saves, from the released models.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from pizero.checkpoints.files.json_file import peek
from pizero.checkpoints.files.keymap import Entry, equal, expand, matched
from pizero.checkpoints.files.safetensors_file import WEIGHTS, SafetensorsWeights, weight_names, write_safetensors
from pizero.checkpoints.format import GIVE_SIZES, Arch, Facts, StoredCheckpoint
from pizero.checkpoints.models import Network
from pizero.checkpoints.openpi import folder as openpi_folder
from pizero.checkpoints.openpi.folder import VARIANTS, config_from_arch
from pizero.model.config import SO400M, GemmaConfig, Pi0Config
from pizero.model.pi0_fast import Pi0FastConfig
from pizero.types import UserError

__all__ = ["NAME", "config_from_arch", "detect", "key_table", "read", "write"]

NAME = "openpi-torch"
_VISION = "paligemma_with_expert.paligemma.model.vision_tower.vision_model."
_PREFIX = "paligemma_with_expert.paligemma.model.language_model."
_EXPERT = "paligemma_with_expert.gemma_expert.model."
_LM_HEAD = "paligemma_with_expert.paligemma.lm_head.weight"
_EMBEDDED = _PREFIX + "embed_tokens.weight"
_EXPERT_HEAD = "paligemma_with_expert.gemma_expert.lm_head.weight"


def detect(folder: Path) -> bool:
    """Recognised by the names in the file, never by the folder's; LeRobot's weights have the same ones."""
    if "input_features" in peek(folder / openpi_folder.CONFIG):
        return False
    names = weight_names(folder)
    return "action_in_proj.weight" in names and any(name.startswith(_EXPERT) for name in names)


def read(folder: Path, arch: Arch | None = None) -> StoredCheckpoint:
    """What `folder/model.safetensors` holds, strictly."""
    weights = SafetensorsWeights(folder)
    adaptive = _EXPERT + "norm.dense.weight" in weights
    config, told = openpi_folder.given_config(arch, folder, adaptive), list[str]()
    if config is None and "paligemma_variant" in openpi_folder.config_file(folder):
        config = _standard_config(folder, adaptive)
        told = [openpi_folder.STATE_UNKNOWN] if adaptive else []
    elif config is None:
        config = config_of_shapes({name: weights.shape(name) for name in weights}, adaptive, folder)
        told = [
            openpi_folder.HORIZON_UNKNOWN.format(config.action_horizon),
            *([openpi_folder.STATE_UNKNOWN] if adaptive else []),
        ]
    table = _EMBEDDED if _EMBEDDED in weights else _LM_HEAD  # the forward pass reads the first; tied in this format
    ignored = (_EXPERT_HEAD, _LM_HEAD) if table == _EMBEDDED else (_EXPERT_HEAD,)
    try:
        tensors = matched(weights, key_table(config, table), ignored)
    except UserError as error:
        hint = "" if arch is not None else f"; for sizes that the folder does not record, {GIVE_SIZES}"
        raise UserError(f"{error}{hint}") from None
    facts, notes = openpi_folder.read_facts(folder, config)
    return StoredCheckpoint(NAME, config, tensors, facts, (*weights.notes, *told, *_untied(folder, weights), *notes))


def write(folder: Path, model: Network, facts: Facts) -> None:
    """Weights under the port's names, with its config.json and, where the statistics are known, its assets."""
    config = openpi_folder.writable_config(model)
    if isinstance(config, Pi0FastConfig):
        raise UserError("openpi's PyTorch port has no π0-FAST; write openpi-jax or lerobot")
    ours = model.state_dict()
    tensors = {
        row.theirs: row.to_theirs(ours[row.ours]) if row.to_theirs else ours[row.ours] for row in key_table(config)
    }
    # no forward pass reads this head, but the port's own strict loader wants it
    tensors[_EXPERT_HEAD] = tensors[_LM_HEAD].new_zeros(1).expand(config.vocab_size, config.expert.width)
    write_safetensors(folder / WEIGHTS, tensors)
    openpi_folder.write_config(folder, config, tensors[_LM_HEAD].dtype)
    openpi_folder.write_assets(folder, config, facts)


def key_table(config: Pi0Config, table: str = _LM_HEAD) -> list[Entry]:
    """Every tensor that the forward pass uses. table: the name of the token embedding."""
    openpi_folder.check_no_own_weights(config)
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


def _untied(folder: Path, weights: Mapping[str, Tensor]) -> tuple[str, ...]:
    """A note when the two names of the tied token table hold different numbers."""
    if _EMBEDDED not in weights or _LM_HEAD not in weights or equal(weights[_EMBEDDED], weights[_LM_HEAD]):
        return ()
    return (
        f"{folder} holds two different token tables: {_EMBEDDED}, which the forward pass reads, is taken and "
        f"{_LM_HEAD} is not; openpi's own loader refuses such a file",
    )


def _standard_config(folder: Path, adaptive: bool) -> Pi0Config:
    """Sizes of the variants that the folder's config.json names; the shapes are checked when the weights are loaded."""
    path = folder / openpi_folder.CONFIG
    values = openpi_folder.config_file(folder)
    names = [str(values.get(key)) for key in ("paligemma_variant", "action_expert_variant")]
    for name in names:
        if name.removesuffix("_lora") in VARIANTS and name.endswith("_lora"):
            raise UserError(
                f"{path} names the variant {name!r}, but openpi's converter leaves LoRA adapters out: these weights "
                "are not the trained ones; convert the JAX checkpoint with pizero, which merges them"
            )
        if name not in VARIANTS:
            raise UserError(f"{path} names the variant {name!r}, whose sizes are not known; {GIVE_SIZES}")
    dims = [values.get(key) for key in ("action_dim", "action_horizon")]
    if not all(isinstance(dim, int) for dim in dims):
        raise UserError(f"{path} does not record action_dim and action_horizon; {GIVE_SIZES}")
    preset = Pi0Config.pi05 if adaptive else Pi0Config.pi0
    return preset(
        prefix=VARIANTS[names[0]],
        expert=VARIANTS[names[1]],
        state_dim=dims[0],
        action_dim=dims[0],
        action_horizon=dims[1],
    )


def config_of_shapes(shapes: Mapping[str, tuple[int, ...]], adaptive: bool, folder: Path) -> Pi0Config:
    """Sizes by the shapes of openpi's tensors. Their Gemma variants all have one key/value head, and their vision tower
    is So400m: UserError for another one, since shapes do not show its heads.
    """
    preset = Pi0Config.pi05() if adaptive else Pi0Config.pi0()
    patch, block = _VISION + "embeddings.patch_embedding.weight", _VISION + "encoder.layers.0."
    table = _EMBEDDED if _EMBEDDED in shapes else _LM_HEAD
    try:
        vision = dataclasses.replace(
            SO400M,
            width=shapes[patch][0],
            depth=_depth(shapes, _VISION + "encoder.layers."),
            mlp_dim=shapes[block + "mlp.fc1.weight"][0],
            patch_size=shapes[patch][-1],
        )
        if vision != SO400M:
            raise UserError(
                f"{folder} has no config.json and another vision tower than So400m, whose heads no shape shows; "
                f"{GIVE_SIZES}"
            )
        return dataclasses.replace(
            preset,
            prefix=_gemma(shapes, _PREFIX),
            expert=_gemma(shapes, _EXPERT),
            vocab_size=shapes[table][0],
            image_size=math.isqrt(shapes[_VISION + "embeddings.position_embedding.weight"][0]) * vision.patch_size,
            action_dim=shapes["action_in_proj.weight"][1],
            state_dim=shapes.get("state_proj.weight", shapes["action_in_proj.weight"])[1],
        )
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise UserError(
            f"{folder} has no config.json, and {error.args[0]} is missing or of another shape; copy it again, or "
            f"{GIVE_SIZES}"
        ) from None


def _gemma(shapes: Mapping[str, tuple[int, ...]], root: str) -> GemmaConfig:
    layer = root + "layers.0."
    (heads, width), head_dim = shapes[layer + "self_attn.q_proj.weight"], shapes[layer + "self_attn.k_proj.weight"][0]
    return GemmaConfig(
        width,
        _depth(shapes, root + "layers."),
        shapes[layer + "mlp.gate_proj.weight"][0],
        heads // head_dim,
        1,
        head_dim,
    )


def _depth(shapes: Mapping[str, object], root: str) -> int:
    return len({name.removeprefix(root).partition(".")[0] for name in shapes if name.startswith(root)})
