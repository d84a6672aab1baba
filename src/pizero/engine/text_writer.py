"""Greedy text with the numbers of `Pi0.write` on the packed weights of a `FastSampler`, and actions on its cache.

images, question | text | end mark and what closes the text | actions
the cache is filled in this order; the actions read all of it, and nothing runs twice
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from pizero.engine.fast_sampler import FastSampler
from pizero.engine.needed_inputs import Inputs, make_inputs
from pizero.engine.packed import expert_layer, normalized, project
from pizero.model.action_model import ChunkFromNoise
from pizero.model.attention import attend, block_mask, token_positions
from pizero.model.config import Pi0Config, check_observation
from pizero.model.flow_matching import Sampling
from pizero.model.language import END_ID, PADDING_ID, logits
from pizero.model.layers import rotary_table
from pizero.types import Observation


@dataclass(frozen=True)
class FastText:
    """tokens [B, N]: the text up to the end mark, without it, then padding. after: samples actions that see it."""

    tokens: Tensor
    after: AfterText


@torch.no_grad()
def write_text(
    sampler: FastSampler, observation: Observation, max_tokens: int, closing: tuple[Tensor, Tensor]
) -> FastText:
    """The likeliest token after the prompt, and again, up to the end mark or `max_tokens`.

    Rows end alone. sampler: of a model whose config writes text; ValueError for another one, which has packed less.
    closing: ids [C] that follow each text, the end mark first, and where blocks start among them [C].
    """
    model, config = sampler.model, sampler.config
    if config.language is None or not config.language.writes_text:
        raise ValueError("this model writes no text")
    check_observation(config, observation)
    inputs = make_inputs(observation, config, sampler.device, static=False)
    after, begins = (part.to(sampler.device).expand(observation.batch_size, -1) for part in closing)
    cache = _Prefix(sampler, inputs, room=max_tokens + after.shape[1] + config.suffix_length)
    going = torch.ones(len(after), dtype=torch.bool, device=sampler.device)
    written = list[Tensor]()
    while len(written) < max_tokens:
        tokens = logits(model.transformer.prefix_norm(cache.last)[0], model.head).argmax(dim=-1)
        going = going & (tokens != END_ID)
        if not bool(going.any()):
            break
        written.append(tokens.masked_fill(~going, PADDING_ID))
        cache.append(written[-1][:, None], going[:, None], going[:, None])
    cache.append(after, torch.ones_like(begins), begins)
    text = torch.stack(written, dim=1) if written else going.new_zeros(len(going), 0, dtype=torch.long)
    return FastText(text, AfterText(sampler, cache))


class AfterText(ChunkFromNoise[Pi0Config]):
    """Stands in for its sampler at the observation for which a text was written: images, question and text do not run
    again. The images must be those of the question.

    A prompt that is not what stands in the cache, token by token, runs as always: where the text is encoded in other
    tokens than it was written in, where nothing ended it, where the task was cut elsewhere. So does everything in a
    sampler that compiles or captures few shapes.
    """

    def __init__(self, sampler: FastSampler, prefix: _Prefix) -> None:
        self.sampler, self.config, self.device = sampler, sampler.config, sampler.device
        self._prefix = prefix

    def covers(self, observation: Observation) -> bool:
        """Whether these are the prompts that the cache has."""
        mask, causal = observation.prompt_mask, observation.prompt_causal
        asked = _rows(observation.prompt_tokens, mask, torch.zeros_like(mask) if causal is None else causal)
        prefix, slots = self._prefix, self._prefix.tokens.shape[1]
        return not self.sampler.static and asked == _rows(
            prefix.tokens, prefix.padding[:, -slots:], prefix.starts[:, -slots:]
        )

    def _sample(self, observation: Observation, noise: Tensor, sampling: Sampling) -> Tensor:
        if not self.covers(observation):
            return self.sampler.sample_actions(
                observation, num_steps=sampling.num_steps, noise=noise, solver=sampling.solver,
                settled=sampling.settled, guide=sampling.guide,
            )  # fmt: skip
        sampler, padding = self.sampler, self._prefix.padding
        tables = sampler.tables(sampling.num_steps, sampling.solver)
        state = observation.state if self.config.has_state_token else None
        inputs = Inputs((), None, self._prefix.tokens, None if bool(padding.all()) else padding, state)
        batch, length = padding.shape
        keys, values = self._prefix.filled(length + self.config.suffix_length)
        turns, alone = sampler.turns(inputs, length, batch), sampling.guide is not None
        return sampler.integrate(
            sampler.suffix_cache(inputs, keys, values, turns, tables, alone), noise, tables, sampling
        )


class _Prefix:
    """Keys and values of a prefix that grows at its end.

    tokens [B, L]: of the prompt, which ends it. padding, starts [B, P]: which tokens are real, which start a block.
    last: [B, W], what came out at each row's newest token.
    """

    def __init__(self, sampler: FastSampler, inputs: Inputs, room: int) -> None:
        """room: places for what comes after images and prompt."""
        self._sampler, self.tokens = sampler, inputs.prompt
        x = sampler.embed_prefix(inputs)
        batch, length, _ = x.shape
        real = torch.ones(batch, length, dtype=torch.bool, device=x.device)
        self.padding = real if inputs.padding is None else inputs.padding
        self.starts = torch.zeros_like(real) if inputs.starts is None else inputs.starts
        mask, turns = block_mask(self.padding, self.starts), self._turns(length)
        rows = torch.arange(batch, device=x.device)
        newest = torch.where(self.padding, torch.arange(length, device=x.device), -1).amax(dim=1)  # of each row
        self._keys, self._values = list[Tensor](), list[Tensor]()
        for number, block in enumerate(sampler.prefix_blocks, 1):
            self._keys.append(x.new_empty(batch, length + room, block.kv_heads, block.head_dim))
            self._values.append(torch.empty_like(self._keys[-1]))
            key, value = self._keys[-1][:, :length], self._values[-1][:, :length]
            query, seen = project(block, normalized(x, block.norms[0]), turns, key, value), mask
            assert query is not None
            if number == len(sampler.prefix_blocks):  # nothing else reads what comes out here
                x, query, seen = x[rows, newest][:, None], query[rows, newest][:, None], mask[rows, newest][:, None]
            x = block.finish(x, attend(query, key, value, seen), *block.norms)
        self.last = x[:, 0]

    def append(self, tokens: Tensor, real: Tensor, starts: Tensor) -> None:
        """Runs [B, T] tokens after what is there; those that are not real are read by nobody."""
        self.tokens = torch.cat([self.tokens, tokens], dim=1)
        self.padding = torch.cat([self.padding, real], dim=1)
        self.starts = torch.cat([self.starts, starts], dim=1)
        ran, (_, length) = tokens.shape[1], self.padding.shape
        number = self.starts.long().cumsum(dim=1)  # of each token's block
        mask = (number[:, None, :] <= number[:, -ran:, None]) & self.padding[:, None, :]
        x, turns = self._sampler.model.embed_text(tokens), self._turns(ran)
        for block, key, value in zip(self._sampler.prefix_blocks, *self.filled(length), strict=True):
            x = expert_layer(block, attend, x, list(block.norms), turns, key, value, mask)
        self.last = x[:, -1]

    def filled(self, length: int) -> tuple[list[Tensor], list[Tensor]]:
        """Keys and values of each layer up to that place."""
        return [key[:, :length] for key in self._keys], [value[:, :length] for value in self._values]

    def _turns(self, count: int) -> Tensor:
        """Cosine and sine of the last tokens' rotary angles: [B, count, 1, head_dim / 2, 2]."""
        positions = token_positions(self.padding)[:, -count:]
        return torch.stack(rotary_table(positions, self._sampler.config.prefix.head_dim), dim=-1)


def _rows(*parts: Tensor) -> list[list[tuple[int, bool]]]:
    """Tokens, mask and block starts [B, T] -> of each row the real tokens, and whether they start a block."""
    arrays = [cast("list[list[Any]]", cast(Any, part.cpu()).tolist()) for part in parts]
    return [
        [(token, starts) for token, real, starts in zip(*row, strict=True) if real] for row in zip(*arrays, strict=True)
    ]
