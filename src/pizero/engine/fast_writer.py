"""Action tokens with the numbers of `Pi0Fast.generate`, without the work that changes nothing.

Left out: absent cameras and unused prompt slots; all of the last prefix layer but its keys, its values and each row's
newest token; logits of tokens that can never come; logits where one token alone can come. Tokens that are known
beforehand run through the network together ("Action: "), or not at all (what ends a chunk).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pizero.engine.fast_sampler import give_up
from pizero.engine.needed_inputs import Inputs, make_inputs
from pizero.engine.packed import (
    PackedBlock,
    PackedVisionBlock,
    Packing,
    expert_layer,
    normalized,
    project,
    vision_layer,
)
from pizero.engine.products import Kernels, check_kernels
from pizero.model.attention import attend, block_mask, token_positions
from pizero.model.config import check_observation
from pizero.model.layers import rotary_table
from pizero.model.pi0_fast import END_ID, PADDING_ID, Constraint, Pi0Fast, Pi0FastConfig, choose
from pizero.model.siglip import VisionBlock, embed_images
from pizero.types import Observation


@dataclass
class _Text:
    """A batch under way. keys, values: per layer [B, P + N, kv_heads, head_dim], `filled` places of them written.

    padding: [B, P] bool, None where every token is real. turns: of the places after the prefix [B, N, 1, head_dim / 2,
    2]. last: [B, W], normalised output of each row's newest token that ran.
    """

    keys: list[Tensor]
    values: list[Tensor]
    padding: Tensor | None
    turns: Tensor
    filled: int
    last: Tensor


class FastWriter:
    """Stands in for a π0-FAST in inference: the same config, the same call, the same tokens.

    It keeps weights of its own, and is made anew after the model's changed. consume: the model gives up its large
    matrices while they are packed. kernels: as for `FastSampler`; on a GPU nothing is compiled or captured.
    """

    @torch.no_grad()
    def __init__(self, model: Pi0Fast, *, kernels: Kernels = "auto", consume: bool = False) -> None:
        self.model, self.config, self.device = model, model.config, model.token_embedding.weight.device
        check_kernels(kernels, self.device, model.dtype)
        config = self.config
        images = len(model.vision_tower.position_embedding) * len(config.cameras)
        fold = model.dtype == torch.float32
        self._vision: list[PackedVisionBlock] = []
        self._blocks: list[PackedBlock] = []
        for index, block in enumerate(model.vision_tower.blocks):
            assert isinstance(block, VisionBlock)
            packing = Packing(images, lambda _: kernels, fold)
            self._vision.append(PackedVisionBlock.of(block, f"vision.{index}", packing))
            if consume:
                give_up(block)
        for index, block in enumerate(model.blocks):
            packing = Packing(images + config.prompt_length, lambda _: kernels, fold)
            self._blocks.append(PackedBlock.of(block, f"prefix.{index}", packing))
            if consume:
                give_up(block)
        self._head: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def generate(
        self,
        observation: Observation,
        max_tokens: int,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        uniform: Tensor | None = None,
        constraint: Constraint | None = None,
    ) -> Tensor:
        """As `Pi0Fast.generate`."""
        check_observation(self.config, observation)
        text = self._prefill(make_inputs(observation, self.config, self.device, static=False), max_tokens)
        batch = observation.batch_size
        if uniform is None:
            uniform = torch.rand(batch, max_tokens) if temperature else torch.zeros(1, max_tokens)
        uniform = uniform.to(self.device)
        ids = None if constraint is None else constraint.candidates
        finished = torch.zeros(batch, dtype=torch.bool, device=self.device)
        written, waiting = list[Tensor](), list[Tensor]()  # the second have not run yet
        while len(written) < max_tokens:
            allowed = None if constraint is None else constraint.allowed()
            if allowed is not None:
                finished = finished | ~allowed.any(dim=1)
            if bool(finished.all()):
                break
            if allowed is not None and bool((allowed.sum(dim=1) <= 1).all()):
                index = allowed.int().argmax(dim=1)
            else:
                if waiting:
                    self._step(text, torch.stack(waiting, dim=1))
                    waiting.clear()
                logits = self._logits(text.last, ids)
                logits = logits if allowed is None else logits.masked_fill(~allowed, -torch.inf)
                logits = logits.masked_fill(finished[:, None], 0.0)
                index = choose(logits, temperature, top_p, uniform[:, len(written)])
            tokens = (index if ids is None else ids[index]).masked_fill(finished, PADDING_ID)
            if constraint is not None:
                constraint.advance(tokens)
            written.append(tokens)
            waiting.append(tokens)
            finished = finished | (tokens == END_ID)
        if not bool(torch.isfinite(text.last).all()):
            raise RuntimeError("the model gives NaN or Inf: check the weights, or use float32")
        return torch.stack(written, dim=1) if written else finished.new_zeros(batch, 0, dtype=torch.long)

    # ---------------------------------------------------------------- the network

    def see(self, images: Tensor) -> Tensor:
        """The vision tower: [n, h, w, 3] -> [n, S_img, W]."""
        tower = self.model.vision_tower
        x = tower.embed_patches(images).to(tower.projection.weight.dtype)
        for block in self._vision:
            x = vision_layer(block, attend, x)
        return tower.projection(tower.final_norm(x))

    def _embed(self, tokens: Tensor) -> Tensor:
        return self.model.embed_text(tokens)

    def _prefill(self, inputs: Inputs, max_tokens: int) -> _Text:
        """Images and prompt, and room for what is written after them."""
        x = torch.cat([*self._images(inputs), self._embed(inputs.prompt)], dim=1).to(self.model.dtype)
        batch, length, _ = x.shape
        padding = inputs.padding
        real = torch.ones(batch, length, dtype=torch.bool, device=self.device) if padding is None else padding
        mask = None if padding is None else block_mask(padding, torch.zeros_like(padding))
        turns = _turns(token_positions(real), self.config)
        newest = torch.where(real, torch.arange(length, device=self.device), -1).amax(dim=1)  # of each row
        rows = torch.arange(batch, device=self.device)
        keys, values = list[Tensor](), list[Tensor]()
        for number, block in enumerate(self._blocks, 1):
            keys.append(x.new_empty(batch, length + max_tokens, block.kv_heads, block.head_dim))
            values.append(torch.empty_like(keys[-1]))
            key, value = keys[-1][:, :length], values[-1][:, :length]
            query = project(block, normalized(x, block.norms[0]), turns, key, value)
            assert query is not None
            seen = mask
            if number == len(self._blocks):  # nothing else reads what comes out here
                x, query = x[rows, newest][:, None], query[rows, newest][:, None]
                seen = None if mask is None else mask[rows, newest][:, None]
            x = block.finish(x, attend(query, key, value, seen), *block.norms)
        after = real.long().sum(dim=1, keepdim=True) + (1 if self.config.positions == "openpi" else 0)
        places = after + torch.arange(max_tokens, device=self.device)
        last = self.model.norm(x[:, 0])[0]
        return _Text(keys, values, padding, _turns(places, self.config), length, last)

    def _images(self, inputs: Inputs) -> Sequence[Tensor]:
        """[B, S_img, W] of each camera; only present images go through the tower."""
        masks = torch.ones(len(inputs.images), len(inputs.prompt)).bool() if inputs.present is None else inputs.present
        names = [str(index) for index in range(len(inputs.images))]
        observation = Observation(
            dict(zip(names, inputs.images, strict=True)), dict(zip(names, masks, strict=True)), None, inputs.prompt,
            torch.ones_like(inputs.prompt, dtype=torch.bool),
        )  # fmt: skip
        return embed_images(observation, names, self.see)[0]

    def _step(self, text: _Text, tokens: Tensor) -> None:
        """Tokens [B, T] after what is there."""
        ran, first = tokens.shape[1], text.filled
        text.filled += ran
        mask = None
        if text.padding is not None or ran > 1:
            mask = torch.ones(len(tokens), ran, text.filled, dtype=torch.bool, device=self.device)
            mask[:, :, first:] = torch.ones(ran, ran, dtype=torch.bool, device=self.device).tril()
            if text.padding is not None:
                mask[:, :, : text.padding.shape[1]] = text.padding[:, None]
        start = first - (text.keys[0].shape[1] - text.turns.shape[1])
        turns, x = text.turns[:, start : start + ran], self._embed(tokens)
        for block, key, value in zip(self._blocks, text.keys, text.values, strict=True):
            x = expert_layer(
                block, attend, x, list(block.norms), turns, key[:, : text.filled], value[:, : text.filled], mask
            )  # fmt: skip
        text.last = self.model.norm(x[:, -1])[0]

    def _logits(self, last: Tensor, ids: Tensor | None) -> Tensor:
        """[B, C]: the table's rows of the candidates lie together, kept from call to call."""
        if ids is None:
            return self.model.logits(last)
        if self._head is None or not torch.equal(self._head[0], ids):
            self._head = ids, self.model.token_embedding.weight[ids].to(self.model.dtype)
        return F.linear(last, self._head[1]).float()


def _turns(positions: Tensor, config: Pi0FastConfig) -> Tensor:
    """[B, T, 1, head_dim / 2, 2]: cosine and sine."""
    return torch.stack(rotary_table(positions, config.prefix.head_dim), dim=-1)
