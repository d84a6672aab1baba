"""The fast path with one or more of its optimizations disabled: for `pizero bench inference --ablation`, and
for the tests that none of them changes a number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from pizero.engine.attention_kernels import Attention
from pizero.engine.fast_sampler import Cache, FastSampler
from pizero.engine.needed_inputs import Inputs, take
from pizero.engine.packed import (
    Modulation,
    PackedBlock,
    PackedVisionBlock,
    mlp_weights,
    projection_weight,
    vision_projection,
)  # fmt: skip
from pizero.engine.products import Kernels, PlainGated, Product
from pizero.engine.time_tables import TimeTables, make_tables
from pizero.model.config import check_observation
from pizero.model.gemma import GemmaBlock
from pizero.model.layers import gelu
from pizero.model.pi0 import Pi0
from pizero.model.siglip import VisionBlock
from pizero.types import Observation, UserError

Optimization: TypeAlias = Literal[
    "drop_absent", "short_last_layer", "cached_state", "time_tables", "joined_weights", "folded_heads", "vision_batch"
]
OPTIMIZATIONS: tuple[Optimization, ...] = get_args(Optimization)
"""What makes the fast path fast and changes no number (docs/inference.md)."""


class Ablated(FastSampler):
    """A `FastSampler` without some of the optimizations; options are that one's. UserError for an unknown name."""

    def __init__(self, model: Pi0, without: Collection[Optimization], **options: Any) -> None:
        unknown = sorted(set(without) - set(OPTIMIZATIONS))
        if unknown:
            raise UserError(f"unknown optimization {unknown[0]!r}; expected one of {', '.join(OPTIMIZATIONS)}")
        self._without = frozenset(without)  # before the packing, which asks for it
        super().__init__(model, **options)
        if "folded_heads" in self._without:
            self._attend = _repeated(self._attend)

    def inputs(self, observation: Observation) -> Inputs:
        if "drop_absent" not in self._without:
            return super().inputs(observation)
        check_observation(self.config, observation)
        cameras = [name for name in self.config.cameras if name in observation.images]
        return take(observation, self.config, self.device, cameras, slice(None), skip_absent=False)

    # ---------------------------------------------------------------- packing

    @property
    def _fold(self) -> bool:
        return "joined_weights" not in self._without and super()._fold

    def _keys_only(self, name: str) -> bool:
        return "short_last_layer" not in self._without and super()._keys_only(name)

    def _packed(self, name: str, kernels: Callable[[str], Kernels]) -> PackedVisionBlock | PackedBlock:
        packed = super()._packed(name, kernels)
        if "joined_weights" not in self._without:
            return packed
        source, packing = self._source(name), self._packing(name, kernels)
        if isinstance(packed, PackedVisionBlock):
            assert isinstance(source, VisionBlock)
            weights, biases = (joined.chunk(3) for joined in vision_projection(source))
            pairs = zip(weights, biases, strict=True)
            projection = _Apart([packing.product(weight, bias, f"{name}.query") for weight, bias in pairs])
            return dataclasses.replace(packed, projection=projection)
        assert isinstance(source, GemmaBlock)
        heads = [count * packed.head_dim for count in (packed.heads, packed.kv_heads, packed.kv_heads) if count]
        weights = projection_weight(source, self._fold, packed.heads == 0).split(heads)
        projection = _Apart([packing.product(weight, None, f"{name}.query") for weight in weights])
        if packed.gated is None:
            return dataclasses.replace(packed, projection=projection)
        gate, up = (packing.product(weight, None, f"{name}.gate") for weight in mlp_weights(source, self._fold))
        return dataclasses.replace(packed, projection=projection, gated=PlainGated(gate, up))

    # ---------------------------------------------------------------- a call

    def _at(
        self, time: Tensor, tables: TimeTables, row: int | None, settled: Tensor | None
    ) -> tuple[Tensor, list[Modulation]]:
        if row is None or "time_tables" not in self._without:
            return super()._at(time, tables, row, settled)
        now = time if time.ndim == 1 else time[:, -1]  # settled actions are the first ones
        return make_tables(self.model, now[-1:], self._fold, tables.targets).at(0, settled)

    def _see_cameras(self, inputs: Inputs) -> list[Tensor]:
        if "vision_batch" not in self._without:
            return super()._see_cameras(inputs)
        seen: list[Tensor] = []
        for index, image in enumerate(inputs.images):
            present = None if inputs.present is None else inputs.present[index : index + 1]
            seen += super()._see_cameras(inputs._replace(images=(image,), present=present))
        return seen

    def _with_state(self, cache: Cache, seen: Tensor | None, tables: TimeTables, alone: bool) -> Cache:
        """Without `cached_state` the token never runs before the actions, but beside them in every step."""
        return cache if "cached_state" in self._without else super()._with_state(cache, seen, tables, alone)

    def _beside(self, cache: Cache, row: int | None) -> bool:
        return "cached_state" in self._without or super()._beside(cache, row)


class _Apart:
    """Several products of the same input, one after the other."""

    def __init__(self, products: list[Product]) -> None:
        self.products = products

    def __call__(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        y = torch.cat([product(x) for product in self.products], dim=-1)
        return y if plus is None else plus + y

    def gelu(self, x: Tensor) -> Tensor:
        return gelu(self(x))


def _repeated(attention: Attention) -> Attention:
    """With keys and values repeated for each query head."""

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        group = query.shape[2] // key.shape[2]
        return attention(query, key.repeat_interleave(group, dim=2), value.repeat_interleave(group, dim=2), mask)

    return attend
