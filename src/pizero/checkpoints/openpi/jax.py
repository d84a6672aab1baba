"""openpi's JAX checkpoints: `params/` in Orbax's layout, layers stacked on axis 0, and `assets/`. No JAX needed.

LoRA adapters are merged when they are read. What we write opens with openpi's restore_params.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pizero.checkpoints.files.keymap import listed
from pizero.checkpoints.files.orbax import METADATA, ArrayToWrite, OrbaxArrays, stored_names, write_arrays
from pizero.checkpoints.format import SIZES, Arch, Facts, StoredCheckpoint
from pizero.checkpoints.models import Network
from pizero.checkpoints.openpi import folder as openpi_folder
from pizero.files import write_bytes
from pizero.model.config import GemmaConfig, Pi0Config, SiglipConfig
from pizero.model.pi0_fast import Pi0FastConfig
from pizero.types import UserError

NAME = "openpi-jax"
_PARAMS = "params"
_IMG, _LLM, _LAYERS = "PaliGemma/img/", "PaliGemma/llm/", "transformer.layers.{}."
_RANKS = {"prefix": 16, "expert": 32}
"""LoRA ranks of gemma_2b_lora and gemma_300m_lora (openpi src/openpi/models/gemma.py), with alpha equal to the rank.

The scale alpha / rank is 1 then; alpha is not in the checkpoint, so other ranks are refused.
"""
_LORA_NOTE = "the LoRA adapters (rank {}) were merged into the weights in float32"


def detect(folder: Path) -> bool:
    """The checkpoint, or its params folder; recognised by the names of the arrays."""
    return any(name.startswith("PaliGemma/") for name in stored_names(_params(folder)))


def read(folder: Path, arch: Arch | None = None) -> StoredCheckpoint:
    """What `params` holds, strictly; without `arch` and config.json the sizes must be the released ones."""
    return _read(folder, arch)[0]


def read_unmerged(folder: Path, arch: Arch | None = None) -> tuple[StoredCheckpoint, dict[str, Tensor]]:
    """The checkpoint without its LoRA adapters, and these by our names, for a training that continues them.

    Shapes as of train/lora.py: lora_a [groups, rank, in], lora_b [groups, out / groups, rank], the output projection's
    lora_b [heads, out, rank]. Their scale is 1.
    """
    source, rows, arrays = _read(folder, arch, merge=False)
    return source, {name: factor for row in rows for name, factor in _factors(row, arrays)}


def _read(folder: Path, arch: Arch | None, merge: bool = True) -> tuple[StoredCheckpoint, list[Row], OrbaxArrays]:
    """The source, and the rows that have adapters, with the arrays to read them from."""
    params = _params(folder)
    arrays = OrbaxArrays(params)
    names = set(arrays)
    adaptive = f"{_LLM}final_norm_1/Dense_0/kernel" in names
    if any(name.startswith("action_") for name in names):
        given = openpi_folder.given_config(arch, params.parent, adaptive)
        config = given or _released_config(arrays, adaptive)
    else:  # π0-FAST has neither an action expert nor projections of actions
        given = openpi_folder.given_fast_config(arch, params.parent)
        config = given or Pi0FastConfig(prompt_length=250)
    rows = rows_of(config)
    adapters = {row.theirs: row.adapters for row in rows if row.adapters & names}
    wrong = _misfits(arrays, rows, set[str]().union(*adapters.values()))
    if wrong and given is None:
        raise UserError(
            f"{folder} has other sizes than gemma_2b, gemma_300m and So400m; give them with arch, or beside it in "
            f"{SIZES} ({wrong})"
        )
    if wrong:
        raise UserError(f"weights do not fit: {wrong}")
    ranks = sorted({_rank(row, arrays) for row in rows if row.theirs in adapters})
    notes = [_LORA_NOTE.format(" and ".join(map(str, ranks)))] if ranks and merge else []
    if given is None:
        notes.append(openpi_folder.HORIZON_UNKNOWN.format(config.action_horizon))
        notes += [openpi_folder.STATE_UNKNOWN] if adaptive else []
    facts, more = openpi_folder.read_facts(params.parent, config)

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for row in sorted(rows, key=lambda row: -math.prod(row.stored_shape)):
            yield from _row_tensors(row, arrays, merge and row.theirs in adapters)

    adapted = [row for row in rows if row.theirs in adapters]
    return StoredCheckpoint(NAME, config, tensors, facts, (*notes, *more)), adapted, arrays


def write(folder: Path, model: Network, facts: Facts) -> None:
    """`params/` with the key paths of a training run, config.json and, where the statistics are known, `assets/`."""
    config = openpi_folder.writable_config(model)
    weights = model.state_dict()
    write_arrays(folder / _PARAMS, [_to_write(row, weights) for row in rows_of(config)])
    openpi_folder.write_config(folder, config, weights["token_embedding.weight"].dtype)
    openpi_folder.write_assets(folder, config, facts)
    handlers = {"params": "orbax.checkpoint._src.handlers.pytree_checkpoint_handler.PyTreeCheckpointHandler"}
    if (folder / openpi_folder.ASSETS).is_dir():
        handlers["assets"] = "openpi.training.checkpoints.CallbackHandler"
    values = {
        "item_handlers": handlers, "metrics": {}, "performance_metrics": {}, "init_timestamp_nsecs": time.time_ns(),
        "commit_timestamp_nsecs": time.time_ns(), "custom_metadata": {},
    }  # fmt: skip
    write_bytes(folder / "_CHECKPOINT_METADATA", json.dumps(values).encode())


@dataclass(frozen=True)
class Row:
    """One array of theirs and the tensors of ours that it holds; works in both directions.

    ours: names, with {} for the layer; several are the entries of an axis of their own.
    shape: of one of these tensors in one layer, as they store it. With its axes in this order, the first `num_rows`
        of them are the rows of our matrix, the others its columns; without others it is a vector.
    depth: layers on axis 0, 0 where there is no such axis.
    """

    theirs: str
    ours: tuple[str, ...]
    shape: tuple[int, ...]
    order: tuple[int, ...]
    num_rows: int
    depth: int = 0

    @property
    def layer_shape(self) -> tuple[int, ...]:
        return (len(self.ours), *self.shape) if len(self.ours) > 1 else self.shape

    @property
    def stored_shape(self) -> tuple[int, ...]:
        return (self.depth, *self.layer_shape) if self.depth else self.layer_shape

    @property
    def adapters(self) -> frozenset[str]:
        """Names of the two LoRA factors that may stand beside this array, in the order a, b when sorted."""
        name = self.theirs.rpartition("/")[2]
        if not self.theirs.startswith(_LLM + "layers/") or name not in ("w", "gating_einsum", "linear"):
            return frozenset()
        root = self.theirs[:-1] if name == "w" else self.theirs + "_"
        return frozenset((root + "lora_a", root + "lora_b"))

    def to_ours(self, layer: Tensor) -> list[Tensor]:
        """[*layer_shape] -> our tensors, which may be views."""
        parts = layer.unbind() if len(self.ours) > 1 else [layer]
        return [part.permute(self.order).reshape(self._matrix) for part in parts]

    def to_theirs(self, tensors: Iterable[Tensor]) -> Tensor:
        """Our tensors -> [*layer_shape]."""
        permuted = [self.shape[axis] for axis in self.order]
        back = [self.order.index(axis) for axis in range(len(self.order))]
        parts = [tensor.reshape(permuted).permute(back) for tensor in tensors]
        return torch.stack(parts) if len(self.ours) > 1 else parts[0]

    @property
    def _matrix(self) -> tuple[int, ...]:
        rows = math.prod(self.shape[axis] for axis in self.order[: self.num_rows])
        return (rows,) if self.num_rows == len(self.order) else (rows, -1)


def table(config: Pi0Config) -> list[Row]:
    """Every array of openpi's π0 or π0.5, and every tensor of ours."""
    time_mlp = "time_mlp" if config.adaptive else "action_time_mlp"
    width, inputs = config.expert.width, config.expert.width * (1 if config.adaptive else 2)
    return [
        *_images_and_words(config),
        *_expert(config.prefix, _LAYERS + "prefix.", "transformer.prefix_norm", "", adaptive=False),
        *_expert(config.expert, _LAYERS + "expert.", "transformer.expert_norm", "_1", adaptive=config.adaptive),
        *(_dense("state_proj", "state_proj", config.state_dim, width) if config.has_state_token else []),
        *_dense("action_in_proj", "action_in_proj", config.action_dim, width),
        *_dense(time_mlp + "_in", "time_mlp_in", inputs, width),
        *_dense(time_mlp + "_out", "time_mlp_out", width, width),
        *_dense("action_out_proj", "action_out_proj", width, config.action_dim),
    ]  # fmt: skip


def rows_of(config: Pi0Config | Pi0FastConfig) -> list[Row]:
    """The table of this model."""
    return fast_table(config) if isinstance(config, Pi0FastConfig) else table(config)


def fast_table(config: Pi0FastConfig) -> list[Row]:
    """Every array of openpi's π0-FAST, and every tensor of ours."""
    return [*_images_and_words(config), *_expert(config.prefix, "layers.{}.", "norm", "", adaptive=False)]


def _images_and_words(config: Pi0Config | Pi0FastConfig) -> list[Row]:
    """The vision tower and the token table."""
    patch, vision = config.vision.patch_size, config.vision.width
    return [
        Row(
            _IMG + "embedding/kernel", ("vision_tower.patch_embedding.weight",),
            (patch, patch, 3, vision), (3, 0, 1, 2), 1,
        ),
        _vector(_IMG + "embedding/bias", "vision_tower.patch_embedding.bias", vision),
        Row(
            _IMG + "pos_embedding", ("vision_tower.position_embedding",),
            (1, (config.image_size // patch) ** 2, vision), (0, 1, 2), 2,
        ),
        *_vision_blocks(config.vision),
        *_layer_norm(_IMG + "Transformer/encoder_norm", "vision_tower.final_norm", vision),
        *_dense(_IMG + "head", "vision_tower.projection", vision, config.prefix.width),
        Row(
            _LLM + "embedder/input_embedding", ("token_embedding.weight",),
            (config.vocab_size, config.prefix.width), (0, 1), 1,
        ),
    ]  # fmt: skip


def _vision_blocks(sizes: SiglipConfig) -> list[Row]:
    width, heads, depth = sizes.width, sizes.num_heads, sizes.depth
    theirs, ours = _IMG + "Transformer/encoderblock/", "vision_tower.blocks.{}."
    attention = theirs + "MultiHeadDotProductAttention_0/"
    per_head = (heads, width // heads)
    projections = [
        row
        for name in ("query", "key", "value")
        for row in (
            Row(f"{attention}{name}/kernel", (f"{ours}{name}.weight",), (width, *per_head), (1, 2, 0), 2, depth),
            Row(f"{attention}{name}/bias", (f"{ours}{name}.bias",), per_head, (0, 1), 2, depth),
        )
    ]
    return [
        *_layer_norm(theirs + "LayerNorm_0", ours + "attention_norm", width, depth),
        *projections,
        Row(attention + "out/kernel", (ours + "output.weight",), (*per_head, width), (2, 0, 1), 1, depth),
        _vector(attention + "out/bias", ours + "output.bias", width, depth),
        *_layer_norm(theirs + "LayerNorm_1", ours + "mlp_norm", width, depth),
        *_dense(theirs + "MlpBlock_0/Dense_0", ours + "mlp_in", width, sizes.mlp_dim, depth),
        *_dense(theirs + "MlpBlock_0/Dense_1", ours + "mlp_out", sizes.mlp_dim, width, depth),
    ]


def _expert(sizes: GemmaConfig, ours: str, our_norm: str, mark: str, *, adaptive: bool) -> list[Row]:
    """ours: the start of our names of a layer. mark: the end of openpi's names for this expert."""
    width, heads, kv_heads, head_dim = sizes.width, sizes.num_heads, sizes.num_kv_heads, sizes.head_dim
    theirs, depth = _LLM + "layers/", sizes.depth
    query, key, value = (f"{ours}{part}.weight" for part in ("query", "key", "value"))
    projections = [
        ("q", (query,), (heads, width, head_dim)),
        ("kv", (key, value), (kv_heads, width, head_dim)),
    ]
    if kv_heads == heads:  # openpi stacks all three then
        projections = [("qkv", (query, key, value), (heads, width, head_dim))]
    gated = (ours + "mlp.gate.weight", ours + "mlp.up.weight")
    down, output = (ours + "mlp.down.weight",), (ours + "output.weight",)
    return [
        *(Row(f"{theirs}attn/{p}_einsum{mark}/w", to, shape, (0, 2, 1), 2, depth) for p, to, shape in projections),
        Row(f"{theirs}attn/attn_vec_einsum{mark}/w", output, (heads, head_dim, width), (2, 0, 1), 1, depth),
        Row(f"{theirs}mlp{mark}/gating_einsum", gated, (width, sizes.mlp_dim), (1, 0), 1, depth),
        Row(f"{theirs}mlp{mark}/linear", down, (sizes.mlp_dim, width), (1, 0), 1, depth),
        *_rms_norm(f"{theirs}pre_attention_norm{mark}", ours + "attention_norm", width, depth, adaptive),
        *_rms_norm(f"{theirs}pre_ffw_norm{mark}", ours + "mlp_norm", width, depth, adaptive),
        *_rms_norm(f"{_LLM}final_norm{mark}", our_norm, width, 0, adaptive),
    ]


def _rms_norm(theirs: str, ours: str, width: int, depth: int, adaptive: bool) -> list[Row]:
    if adaptive:
        return _dense(theirs + "/Dense_0", ours + ".modulation", width, 3 * width, depth)
    return [_vector(theirs + "/scale", ours + ".scale", width, depth)]


def _layer_norm(theirs: str, ours: str, width: int, depth: int = 0) -> list[Row]:
    names = {"scale": "weight", "bias": "bias"}
    return [_vector(f"{theirs}/{name}", f"{ours}.{own}", width, depth) for name, own in names.items()]


def _dense(theirs: str, ours: str, inputs: int, outputs: int, depth: int = 0) -> list[Row]:
    kernel = Row(theirs + "/kernel", (ours + ".weight",), (inputs, outputs), (1, 0), 1, depth)
    return [kernel, _vector(theirs + "/bias", ours + ".bias", outputs, depth)]


def _vector(theirs: str, ours: str, width: int, depth: int = 0) -> Row:
    return Row(theirs, (ours,), (width,), (0,), 1, depth)


def _params(folder: Path) -> Path:
    return folder / _PARAMS if (folder / _PARAMS / METADATA).is_file() else folder.absolute()


def _released_config(arrays: OrbaxArrays, adaptive: bool) -> Pi0Config:
    preset = Pi0Config.pi05 if adaptive else Pi0Config.pi0
    kernel = "action_in_proj/kernel"
    dim = arrays.shape(kernel)[0] if kernel in set(arrays) else preset().action_dim
    return preset(action_dim=dim, state_dim=dim)


def _misfits(arrays: OrbaxArrays, rows: list[Row], adapters: set[str]) -> str:
    """What is missing, left over or of another shape; empty when everything fits."""
    expected = {row.theirs: row.stored_shape for row in rows}
    names = set(arrays)
    missing, extra = sorted((set(expected) | adapters) - names), sorted(names - set(expected) - adapters)
    if missing or extra:
        return f"{listed('missing', missing)}; {listed('left over', extra)}"
    wrong = [
        f"{name}: {arrays.shape(name)} instead of {shape}"
        for name, shape in expected.items()
        if arrays.shape(name) != shape
    ]
    return listed("of another shape", wrong) if wrong else ""


def _rank(row: Row, arrays: OrbaxArrays) -> int:
    """Of the row's adapters; UserError when their shapes do not fit or the scale is not known."""
    a, b = (arrays.shape(name) for name in sorted(row.adapters))
    shape, rank = row.stored_shape, a[-1]
    if a != (*shape[:-1], rank) or b != (*shape[:-2], rank, shape[-1]):
        raise UserError(f"weights do not fit: the LoRA adapters of {row.theirs} have the shapes {a} and {b}")
    known = _RANKS["expert" if ".expert." in row.ours[0] else "prefix"]
    if rank != known:
        raise UserError(
            f"the LoRA adapters of {row.theirs} have the rank {rank}, openpi's own {known}: the checkpoint does not "
            "record the scale of another rank; merge them in openpi before"
        )
    return rank


def _row_tensors(row: Row, arrays: OrbaxArrays, adapted: bool) -> Iterator[tuple[str, Tensor]]:
    if not row.depth:
        yield row.ours[0], row.to_ours(arrays.read(row.theirs))[0].contiguous()
        return
    factors = [arrays.read(name).float() for name in sorted(row.adapters)] if adapted else None
    step = arrays.block(row.theirs)
    for start in range(0, row.depth, step):
        # nothing here may name what is read, or two blocks of it would be held at once
        yield from _layer_tensors(row, arrays.read(row.theirs, start, min(start + step, row.depth)), start, factors)


def _layer_tensors(row: Row, layers: Tensor, start: int, factors: list[Tensor] | None) -> Iterator[tuple[str, Tensor]]:
    for index, layer in enumerate(layers, start):
        if factors is not None:
            layer = layer + _adapter_weight(row, *(factor[index] for factor in factors))
        for name, tensor in zip(row.ours, row.to_ours(layer), strict=True):
            yield name.format(index), tensor.clone(memory_format=torch.contiguous_format)


def _factors(row: Row, arrays: OrbaxArrays) -> Iterator[tuple[str, Tensor]]:
    """A row's adapters in float32, by our names. Their pairs are a [..., in, rank] and b [..., rank, out]."""
    a, b = (arrays.read(name).float() for name in sorted(row.adapters))
    for index in range(row.depth):
        parts = [factor[index] if len(row.ours) > 1 else factor[index][None] for factor in (a, b)]
        for name, own_a, own_b in zip(row.ours, *parts, strict=True):
            if "attn_vec_einsum" in row.theirs:  # its inputs are all heads'
                own_a = own_a.flatten(0, 1)
            layer = name.format(index).removesuffix("weight")
            for end, factor in (("lora_a", own_a), ("lora_b", own_b)):
                yield layer + end, (factor if factor.ndim == 3 else factor[None]).mT.contiguous()


def _adapter_weight(row: Row, a: Tensor, b: Tensor) -> Tensor:
    """What a layer's adapters add to its weight.

    openpi computes attn_vec_einsum's adapter in two sums over all heads (src/openpi/models/lora.py, _make_lora_eqns of
    "BTNH,NHD->BTD"), so that every head's a meets the sum of all heads' b.
    """
    return a @ (b.sum(0, keepdim=True) if "attn_vec_einsum" in row.theirs else b)


def _to_write(row: Row, weights: Mapping[str, Tensor]) -> ArrayToWrite:
    def blocks() -> Iterator[Tensor]:
        for index in range(row.depth or 1):
            yield row.to_theirs([weights[name.format(index)] for name in row.ours])

    dtype = weights[row.ours[0].format(0)].dtype
    return ArrayToWrite(row.theirs, row.stored_shape, dtype, blocks, split=row.depth > 0)
