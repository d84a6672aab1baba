"""What the action tokens look at: the weights of every layer's attention at every flow step, as the model runs.

Each layer's own `attend` still computes the pass. Beside it the weights are computed from the same queries and keys;
that they are the model's own is measured: weights times values must give what the layer's attention gave.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pizero.model.attention import MASKED
from pizero.model.pi0 import Pi0
from pizero.model.two_expert import TwoExpertLayer
from pizero.types import Observation


@dataclass(frozen=True)
class Groups:
    """Which keys belong together: by name [start, end), in the order of the model's sequence. Names: "camera NAME",
    "prompt", "state", "actions". padding: keys of the prompt that nobody sees, [T] bool.
    """

    ranges: dict[str, tuple[int, int]]
    padding: NDArray[np.bool_]


@dataclass
class ActionAttention:
    """weights: [steps][layers] of [heads, T], averaged over the action tokens. worst_sum: the furthest that a row's sum
    was from 1. worst_output: the furthest that weights times values were from the output of the layer's own attention,
    in shares of that output's largest value.
    """

    weights: list[list[NDArray[np.float32]]] = field(default_factory=list)
    worst_sum: float = 0.0
    worst_output: float = 0.0

    def array(self) -> NDArray[np.float32]:
        """[steps, layers, heads, T]."""
        return np.stack([np.stack(step) for step in self.weights])


def attention_weights(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    """[B, S, heads, head_dim] scaled, [B, T, kv_heads, head_dim], [B, S, T] -> weights [B, heads, S, T], float32."""
    key = key.repeat_interleave(query.shape[2] // key.shape[2], dim=2)
    logits = torch.einsum("bshd,bthd->bhst", query.float(), key.float())
    if mask is not None:
        logits = logits + mask.logical_not().float().mul(MASKED)[:, None]
    return logits.softmax(dim=-1)


@contextmanager
def watched_attention(model: Pi0) -> Generator[ActionAttention]:
    """While it is open, every `decode` of one observation adds a step. What the model computes does not change."""
    seen, layers = ActionAttention(), cast("list[TwoExpertLayer]", list(model.transformer.layers))
    horizon = model.config.action_horizon
    own = [layer.attend for layer in layers]

    def watch(number: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        output = own[number](query, key, value, mask)
        if query.shape[1] == key.shape[1]:
            return output  # the prefix over itself
        weights = attention_weights(query, key, mask)
        group = query.shape[2] // value.shape[2]
        again = torch.einsum("bhst,bthd->bshd", weights, value.float().repeat_interleave(group, dim=2)).flatten(2)
        scale = output.float().abs().max().clamp(min=1e-12)
        seen.worst_output = max(seen.worst_output, float((again - output.float()).abs().max() / scale))
        seen.worst_sum = max(seen.worst_sum, float((weights.sum(dim=-1) - 1).abs().max()))
        if number == 0:
            seen.weights.append([])
        seen.weights[-1].append(weights[0, :, -horizon:].mean(dim=1).cpu().numpy())
        return output

    for number, layer in enumerate(layers):
        layer.attend = partial(watch, number)
    try:
        yield seen
    finally:
        for layer, attend in zip(layers, own, strict=True):
            layer.attend = attend


def key_groups(model: Pi0, observation: Observation) -> Groups:
    """Of the keys that an action token may see: the cameras in order, the prompt, the state, the actions."""
    config, patch = model.config, model.config.vision.patch_size
    ranges: dict[str, tuple[int, int]] = {}
    start = 0
    for name, image in observation.present_images(config.cameras):
        start, first = start + (image.shape[1] // patch) * (image.shape[2] // patch), start
        ranges[f"camera {name}"] = first, start
    prompt = observation.prompt_tokens.shape[1]
    ranges["prompt"] = start, start + prompt
    padding = np.zeros(start + prompt + config.suffix_length, np.bool_)
    padding[start : start + prompt] = ~observation.prompt_mask[0].cpu().numpy()
    start += prompt
    if config.has_state_token:
        ranges["state"] = start, start + 1
        start += 1
    ranges["actions"] = start, start + config.action_horizon
    return Groups(ranges, padding)
