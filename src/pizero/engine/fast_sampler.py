"""Action chunks with the numbers of `Pi0.sample_actions`, without the work that changes nothing.

Left out: absent cameras and unused prompt slots; the last prefix layer but its keys and values; the state token in
every step; what depends on the flow time alone; masks where everything is seen; copies of the cache. Products that
share an input are one (`packed.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from pizero.engine.packed import Modulation, PackedBlock, PackedVisionBlock, gated, normalized
from pizero.engine.time_tables import TimeTables, action_weight, make_tables
from pizero.model.attention import attend, block_mask, token_positions
from pizero.model.flow_matching import ActionPrefix, Solver, Velocity, follow
from pizero.model.layers import apply_rotary, gelu, rotary_table
from pizero.model.pi0 import Pi0, check_observation, embed_images
from pizero.model.siglip import VisionBlock
from pizero.model.two_expert import TwoExpertLayer
from pizero.types import Observation

Rotary = tuple[Tensor, Tensor]
KeyValue = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class _Cache:
    """Per layer keys and values [B, P + S, kv_heads, head_dim]; the last `action_horizon` places are written each step.

    With a state token under adaptive norms its keys and values differ by time: state[time][layer] are copied in first.
    """

    keys: list[Tensor]
    values: list[Tensor]
    rotary: Rotary  # of the actions
    mask: Tensor | None  # [B, H, P + S]
    state: list[list[KeyValue]]


class FastSampler:
    """Stands in for a π0 or π0.5 in inference: the same config, the same call.

    The model keeps its numbers, but its parameters become views of larger ones. Made anew after the weights changed.
    """

    @torch.no_grad()
    def __init__(self, model: Pi0) -> None:
        self.model, self.config = model, model.config
        layers = [layer for layer in model.transformer.layers if isinstance(layer, TwoExpertLayer)]
        self._prefix = [PackedBlock.of(layer.prefix) for layer in layers]
        self._expert = [PackedBlock.of(layer.expert) for layer in layers]
        blocks = model.vision_tower.blocks
        self._vision = [PackedVisionBlock.of(block) for block in blocks if isinstance(block, VisionBlock)]
        self._action_weight = action_weight(model)
        self._tables: dict[tuple[int, Solver], TimeTables] = {}

    @torch.no_grad()
    def sample_actions(
        self,
        observation: Observation,
        *,
        num_steps: int = 10,
        noise: Tensor | None = None,
        generator: Generator | None = None,
        solver: Solver = "euler",
        settled: ActionPrefix | None = None,
        guide: Callable[[Velocity], Velocity] | None = None,
    ) -> Tensor:
        """As `Pi0.sample_actions`: [B, H, D] float32, normalised."""
        check_observation(self.config, observation)
        noise = self.model.initial_noise(observation, noise, generator)
        if (num_steps, solver) not in self._tables:
            self._tables[num_steps, solver] = make_tables(self.model, num_steps, solver)
        tables = self._tables[num_steps, solver]
        cache = self._prefill(observation, tables)
        calls, places = iter(range(len(tables.biases))), None if settled is None else settled.settled
        return follow(
            lambda x, _: self._velocity(cache, tables, x, next(calls), places), noise, num_steps, solver, settled, guide
        )

    def loss(self, observation: Observation, actions: Tensor, **settings: Any) -> Tensor:
        """The model's."""
        return self.model.loss(observation, actions, **settings)

    # ---------------------------------------------------------------- prefix

    def _prefill(self, observation: Observation, tables: TimeTables) -> _Cache:
        tokens, padding_mask = self._embed_prefix(observation)
        batch, length, _ = tokens.shape
        whole = bool(padding_mask.all())
        mask = None if whole else block_mask(padding_mask, torch.zeros_like(padding_mask))
        rotary = rotary_table(token_positions(padding_mask), self.config.prefix.head_dim)
        suffix = self.config.suffix_length
        keys: list[Tensor] = []
        values: list[Tensor] = []
        for index, block in enumerate(self._prefix):
            key = tokens.new_empty(batch, length + suffix, block.kv_heads, block.head_dim)
            value = torch.empty_like(key)
            keys.append(key)
            values.append(value)
            assert block.norms is not None  # the prefix never has adaptive norms
            y = normalized(tokens, block.norms[0])
            if index + 1 == len(self._prefix):
                own = F.linear(y, block.key_value).unflatten(-1, (2, block.kv_heads, block.head_dim))
                key[:, :length], value[:, :length] = apply_rotary(own[:, :, 0], rotary), own[:, :, 1]
                break
            query = _project(block, y, rotary, key[:, :length], value[:, :length])
            tokens = tokens + F.linear(attend(query, key[:, :length], value[:, :length], mask), block.output)
            tokens = tokens + block.mlp(normalized(tokens, block.norms[1]))
        return self._suffix_cache(observation, padding_mask, keys, values, tables, whole)

    def _embed_prefix(self, observation: Observation) -> tuple[Tensor, Tensor]:
        """Tokens [B, P, W] and padding mask [B, P] of what at least one sample has."""
        present = [name for name in self.config.cameras if bool(observation.image_masks[name].any())]
        used = torch.nonzero(observation.prompt_mask.any(dim=0)).flatten()
        images, masks = embed_images(observation, present, self._see)
        prompt = F.embedding(observation.prompt_tokens[:, used], self.model.token_embedding.weight)
        prompt = (prompt * self.config.prefix.width**0.5).to(self.model.transformer.dtype)
        device = prompt.device
        mask = torch.cat([*masks, observation.prompt_mask[:, used].to(device)], dim=1)
        return torch.cat([*images, prompt], dim=1), mask

    def _see(self, images: Tensor) -> Tensor:
        """The vision tower: [n, h, w, 3] -> [n, S_img, W]."""
        tower = self.model.vision_tower
        x = tower.embed_patches(images).to(tower.projection.weight.dtype)
        for packed in self._vision:
            block = packed.block
            qkv = F.linear(block.attention_norm(x), packed.weight, packed.bias)
            query, key, value = qkv.unflatten(-1, (3, block.num_heads, block.head_dim)).unbind(2)
            x = x + block.output(attend(query * block.head_dim**-0.5, key, value))
            x = x + block.mlp_out(gelu(block.mlp_in(block.mlp_norm(x))))
        return tower.projection(tower.final_norm(x))

    # ---------------------------------------------------------------- suffix

    def _suffix_cache(
        self, observation: Observation, padding_mask: Tensor, keys: list[Tensor], values: list[Tensor],
        tables: TimeTables, whole: bool,
    ) -> _Cache:  # fmt: skip
        """Positions and mask of the actions; the state token's keys and values, at each time if they depend on it."""
        batch, length = padding_mask.shape
        horizon, suffix = self.config.action_horizon, self.config.suffix_length
        valid = torch.cat([padding_mask, padding_mask.new_ones(batch, suffix)], dim=1)
        cos, sin = rotary_table(token_positions(valid)[:, length:], self.config.expert.head_dim)
        mask = None
        if not whole or self.config.action_attention == "causal":
            starts = torch.cat([torch.zeros_like(padding_mask[0]), self.model.suffix_block_starts(valid.device)])
            mask = block_mask(valid, starts)[:, -horizon:]
        state: list[list[KeyValue]] = []
        if self.model.state_proj is not None:
            assert observation.state is not None  # check_observation saw to it
            first = (cos[:, :1], sin[:, :1])
            seen = None if whole else block_mask(valid, torch.zeros_like(valid))[:, length : length + 1, : length + 1]
            token = self.model.state_proj(observation.state)[:, None].to(self.model.transformer.dtype)
            times = tables.norms[:-1] or tables.norms  # without a clean action's
            state = [self._state(token, first, seen, keys, values, length, norms) for norms in times]
        rotary = cos[:, -horizon:], sin[:, -horizon:]
        return _Cache(keys, values, rotary, mask, state if len(state) > 1 else [])

    def _state(
        self, x: Tensor, rotary: Rotary, mask: Tensor | None, keys: list[Tensor], values: list[Tensor], at: int,
        norms: list[Modulation],
    ) -> list[KeyValue]:  # fmt: skip
        """Runs the state token [B, 1, E] through the layers; returns its keys and values, also found at place `at`."""
        found: list[KeyValue] = []
        for index, (block, key, value) in enumerate(zip(self._expert, keys, values, strict=True)):
            own = key[:, at : at + 1], value[:, at : at + 1]
            query = _project(block, normalized(x, norms[2 * index]), rotary, *own)
            found.append((own[0].clone(), own[1].clone()))
            if index + 1 < len(self._expert):
                x = self._finish(block, x, attend(query, key[:, : at + 1], value[:, : at + 1], mask), norms, index)
        return found

    def _velocity(self, cache: _Cache, tables: TimeTables, x_t: Tensor, call: int, settled: Tensor | None) -> Tensor:
        """[B, H, D] for the velocity that is asked for as number `call`; it can be differentiated in x_t."""
        horizon, (bias, norms) = self.config.action_horizon, tables.at(call, settled)
        tokens = F.linear(x_t, self._action_weight, bias if settled is None else None)
        tokens = tokens if settled is None else tokens + bias
        if not self.config.adaptive:
            tokens = self.model.time_mlp_out(F.silu(tokens))
        x = tokens.to(self.model.transformer.dtype)
        for index, (block, key, value) in enumerate(zip(self._expert, cache.keys, cache.values, strict=True)):
            if cache.state:
                place = slice(-horizon - 1, -horizon)
                key[:, place], value[:, place] = cache.state[call][index]
            if x.requires_grad:  # autograd follows no writes into what the next step overwrites
                key, value = key.clone(), value.clone()
            own = key[:, -horizon:], value[:, -horizon:]
            query = _project(block, normalized(x, norms[2 * index]), cache.rotary, *own)
            x = self._finish(block, x, attend(query, key, value, cache.mask), norms, index)
        return self.model.action_out_proj(normalized(x, norms[-1]))

    def _finish(self, block: PackedBlock, x: Tensor, attended: Tensor, norms: list[Modulation], index: int) -> Tensor:
        """Output projection, residual, MLP, residual: [B, T, E]."""
        x = gated(x, F.linear(attended, block.output), norms[2 * index])
        return gated(x, block.mlp(normalized(x, norms[2 * index + 1])), norms[2 * index + 1])


def _project(block: PackedBlock, y: Tensor, rotary: Rotary, key: Tensor, value: Tensor) -> Tensor:
    """Normalised tokens [B, T, W] -> scaled query [B, T, heads, head_dim]; writes key and value to their places."""
    qkv = F.linear(y, block.qkv).unflatten(-1, (-1, block.head_dim))
    split = block.heads + block.kv_heads
    rotated = apply_rotary(qkv[:, :, :split], rotary)
    key.copy_(rotated[:, :, block.heads :])
    value.copy_(qkv[:, :, split:])
    return rotated[:, :, : block.heads] * block.head_dim**-0.5
