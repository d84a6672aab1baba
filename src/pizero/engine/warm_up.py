"""Everything that is compiled or captured, before the first robot asks: shapes are few, and all of them are tried."""

from __future__ import annotations

import dataclasses

import torch

from pizero.engine.fast_sampler import FastSampler
from pizero.engine.needed_inputs import PROMPT_LENGTHS
from pizero.model.flow_matching import ActionPrefix
from pizero.types import Observation


def padded_batch(size: int) -> int:
    """1, 2, 4, 8 and so on: the next number of observations, up to which a batch is filled where shapes must be few."""
    return 1 << (size - 1).bit_length()


def warm_up(sampler: FastSampler, observation: Observation, num_steps: int, max_batch: int) -> None:
    """Runs batches of up to `max_batch` in every size, with prompts of every padded length, filled and not, and as they
    are when chunks are continued. observation: one, with all cameras that there will be.
    """
    length = sampler.config.prompt_length
    lengths = sorted({min(each, length) for each in (*PROMPT_LENGTHS, length)})
    sizes = [1 << power for power in range(padded_batch(max_batch).bit_length())]
    for size in reversed(sizes):  # the largest first, so that memory is taken once
        rows = observation[torch.zeros(size, dtype=torch.long)]
        noise = torch.zeros(size, sampler.config.action_horizon, sampler.config.action_dim, device=sampler.device)
        for filled in (each - left for each in lengths for left in (1, 0)):
            mask = (torch.arange(length) < filled).expand(size, -1).to(observation.prompt_mask.device)
            tokens = observation.prompt_tokens.new_zeros(size, length)
            prompted = dataclasses.replace(rows, prompt_tokens=tokens, prompt_mask=mask)
            sampler.sample_actions(prompted, num_steps=num_steps, noise=noise)
            if sampler.config.max_delay:
                settled = ActionPrefix(noise, torch.ones(size, dtype=torch.long, device=sampler.device))
                sampler.sample_actions(prompted, num_steps=num_steps, noise=noise, settled=settled)
            else:
                sampler.sample_actions(prompted, num_steps=num_steps, noise=noise, guide=lambda velocity: velocity)
