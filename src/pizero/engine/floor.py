"""The least time a call can take here: its linear layers and attention products alone, with the fastest kernels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pizero.engine.fast_sampler import FastSampler
from pizero.engine.packed import PackedBlock
from pizero.model.config import GemmaConfig
from pizero.types import Observation


def floor_calls(sampler: FastSampler, observation: Observation) -> dict[str, Callable[[], None]]:
    """ "vision", "prefix" and "step": each runs the products of this stage on this observation's shapes once.

    Norms, rotary embedding, softmax, GELU outside of a product, residuals, embeddings and heads do not count.
    """
    inputs = sampler.inputs(observation)
    config, batch = sampler.config, observation.batch_size
    dtype, device = sampler.model.transformer.dtype, sampler.device
    images = sum(map(len, inputs.images)) if inputs.present is None else int(inputs.present.sum())
    side = sampler.model.vision_tower.grid**2
    length = side * len(inputs.images) + inputs.prompt.shape[1]
    horizon, room = config.action_horizon, length + config.suffix_length

    def empty(*shape: int) -> Tensor:
        return torch.ones(shape, dtype=dtype, device=device)

    vision = empty(images, side, config.vision.width), empty(images, side, config.vision.mlp_dim)
    head = config.vision.width // config.vision.num_heads
    heads = empty(images, config.vision.num_heads, side, head)

    def see() -> None:
        for block in sampler.vision_blocks if images else ():
            block.projection(vision[0])
            _attention(heads, heads)
            block.output(vision[0])
            block.mlp_in(vision[0])
            block.mlp_out(vision[1])

    prefix = _gemma_inputs(config.prefix, batch, length, length, empty)
    expert = _gemma_inputs(config.expert, batch, horizon, room, empty)
    return {
        "vision": see,
        "prefix": lambda: _gemma(sampler.prefix_blocks, *prefix),
        "step": lambda: _gemma(sampler.expert_blocks, *expert),
    }


def _gemma_inputs(
    config: GemmaConfig, batch: int, length: int, keys: int, empty: Callable[..., Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    group = config.num_heads // config.num_kv_heads
    return (
        empty(batch, length, config.width),
        empty(batch, length, config.num_heads * config.head_dim),
        empty(batch, length, config.mlp_dim),
        empty(batch, config.num_kv_heads, group * length, config.head_dim),
        empty(batch, config.num_kv_heads, keys, config.head_dim),
    )


def _gemma(blocks: list[PackedBlock], x: Tensor, attended: Tensor, hidden: Tensor, rows: Tensor, keys: Tensor) -> None:
    for block in blocks:
        block.projection(x)
        if block.output is None or block.gated is None or block.down is None:
            continue
        _attention(rows, keys)
        block.output(attended)
        block.gated(x)
        block.down(hidden)


def _attention(rows: Tensor, keys: Tensor) -> None:
    logits = torch.matmul(rows, keys.transpose(-1, -2))
    torch.matmul(logits, keys)
