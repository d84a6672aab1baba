"""Greedy text with the numbers of `Pi0.write`, on the packed weights of a `FastSampler`."""

from __future__ import annotations

import torch
from torch import Tensor

from pizero.engine.fast_sampler import FastSampler
from pizero.engine.needed_inputs import make_inputs
from pizero.engine.packed import expert_layer, normalized, project
from pizero.model.attention import attend, block_mask, token_positions
from pizero.model.config import check_observation
from pizero.model.language import END_ID, PADDING_ID, logits
from pizero.model.layers import rotary_table
from pizero.types import Observation


@torch.no_grad()
def write_text(sampler: FastSampler, observation: Observation, max_tokens: int) -> Tensor:
    """The likeliest token after the prompt, and again: [B, N] up to the end mark, without it, then padding.

    Rows end alone. sampler: of a model whose config writes text; ValueError for another one, which has packed less.
    """
    model, config = sampler.model, sampler.config
    if config.language is None or not config.language.writes_text:
        raise ValueError("this model writes no text")
    check_observation(config, observation)
    inputs = make_inputs(observation, config, sampler.device, static=False)
    x = sampler.embed_prefix(inputs)
    batch, length, _ = x.shape
    real = torch.ones(batch, length, dtype=torch.bool, device=x.device) if inputs.padding is None else inputs.padding
    mask = block_mask(real, torch.zeros_like(real) if inputs.starts is None else inputs.starts)
    rows = torch.arange(batch, device=x.device)
    newest = torch.where(real, torch.arange(length, device=x.device), -1).amax(dim=1)  # of each row
    turns = torch.stack(rotary_table(token_positions(real), config.prefix.head_dim), dim=-1)
    keys, values = list[Tensor](), list[Tensor]()
    for number, block in enumerate(sampler.prefix_blocks, 1):
        keys.append(x.new_empty(batch, length + max_tokens, block.kv_heads, block.head_dim))
        values.append(torch.empty_like(keys[-1]))
        key, value = keys[-1][:, :length], values[-1][:, :length]
        query, seen = project(block, normalized(x, block.norms[0]), turns, key, value), mask
        assert query is not None
        if number == len(sampler.prefix_blocks):  # nothing else reads what comes out here
            x, query, seen = x[rows, newest][:, None], query[rows, newest][:, None], mask[rows, newest][:, None]
        x = block.finish(x, attend(query, key, value, seen), *block.norms)
    going = torch.ones(batch, dtype=torch.bool, device=x.device)
    places = real.long().sum(dim=1, keepdim=True) + torch.arange(max_tokens, device=x.device)
    turns = torch.stack(rotary_table(places, config.prefix.head_dim), dim=-1)
    written = list[Tensor]()
    while len(written) < max_tokens:
        tokens = logits(model.transformer.prefix_norm(x[:, -1])[0], model.head).argmax(dim=-1)
        going = going & (tokens != END_ID)
        if not bool(going.any()):
            break
        number = len(written)
        written.append(tokens.masked_fill(~going, PADDING_ID))
        filled = length + number + 1
        # what a row that has ended writes is read by that row alone
        mask = torch.cat([real, real.new_ones(batch, number + 1)], dim=1)[:, None]
        x = model.embed_text(written[-1][:, None])
        for block, key, value in zip(sampler.prefix_blocks, keys, values, strict=True):
            x = expert_layer(
                block, attend, x, list(block.norms), turns[:, number : number + 1], key[:, :filled], value[:, :filled],
                mask,
            )  # fmt: skip
    return torch.stack(written, dim=1) if written else going.new_zeros(batch, 0, dtype=torch.long)
