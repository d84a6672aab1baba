"""π0 and π0.5 written down once more, plainly and in float64, with AdamW by hand: for tests alone.

Shares no code with the package; only the names of the weights are ours.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from pizero.model.config import Pi0Config
from pizero.types import Observation

Weights = dict[str, Tensor]


def loss(w: Weights, config: Pi0Config, seen: Observation, actions: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """Mean over everything. actions and noise [B, H, D], time [B]; every image given is there."""
    actions, noise, time = actions.double(), noise.double(), time.double()
    x_t = time[:, None, None] * noise + (1 - time[:, None, None]) * actions
    images = [vision(w, config, seen.images[name]) for name in config.cameras if name in seen.images]
    prompt = w["token_embedding.weight"][seen.prompt_tokens.long()] * math.sqrt(config.prefix.width)
    prefix = torch.cat([*images, prompt], dim=1)
    valid = torch.cat([torch.ones(len(prompt), prefix.shape[1] - prompt.shape[1]).bool(), seen.prompt_mask], dim=1)

    embedded = time_embedding(time, config.expert.width)
    suffix, conditioning = dense(w, "action_in_proj", x_t), None
    if config.adaptive:
        conditioning = silu(dense(w, "time_mlp_out", silu(dense(w, "time_mlp_in", embedded))))
    else:
        both = torch.cat([suffix, embedded[:, None].expand_as(suffix)], dim=2)
        suffix = dense(w, "time_mlp_out", silu(dense(w, "time_mlp_in", both)))
    blocks = [0] * prefix.shape[1] + [2] * suffix.shape[1]
    if config.has_state_token:
        suffix = torch.cat([dense(w, "state_proj", seen.state.double())[:, None], suffix], dim=1)  # type: ignore[union-attr]
        blocks = [0] * prefix.shape[1] + [1] + [2] * config.action_horizon
    valid = torch.cat([valid, torch.ones(suffix.shape[:2]).bool()], dim=1)
    block = torch.tensor(blocks)
    mask = (block[None, :] <= block[:, None]) & valid[:, None, :]  # [B, T, T]
    hidden = two_experts(w, config, prefix, suffix, mask, valid.long().cumsum(1) - 1, conditioning)
    velocity = dense(w, "action_out_proj", hidden[:, -config.action_horizon :])
    return (velocity - (noise - actions)).pow(2).mean()


def vision(w: Weights, config: Pi0Config, images: Tensor) -> Tensor:
    size, patch = config.vision, config.vision.patch_size
    n, side = len(images), images.shape[1] // patch
    rows = [
        images[:, r * patch : (r + 1) * patch, c * patch : (c + 1) * patch].reshape(n, -1)
        for r in range(side) for c in range(side)
    ]  # fmt: skip
    x = dense(w, "vision_tower.patch_embedding", torch.stack(rows, 1).double()) + w["vision_tower.position_embedding"]
    for i in range(size.depth):
        name = f"vision_tower.blocks.{i}."
        y = layer_norm(w, name + "attention_norm", x)
        q, k, v = (
            dense(w, name + part, y).unflatten(2, (size.num_heads, -1)).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        weights = torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), dim=-1)
        x = x + dense(w, name + "output", (weights @ v).transpose(1, 2).flatten(2))
        y = gelu(dense(w, name + "mlp_in", layer_norm(w, name + "mlp_norm", x)))
        x = x + dense(w, name + "mlp_out", y)
    return dense(w, "vision_tower.projection", layer_norm(w, "vision_tower.final_norm", x))


def two_experts(
    w: Weights, config: Pi0Config, prefix: Tensor, suffix: Tensor, mask: Tensor, positions: Tensor, cond: Tensor | None
) -> Tensor:
    """All layers with one attention over both, then the action expert's final norm: [B, S, E]."""
    heads, dim, length = config.prefix.num_heads, config.prefix.head_dim, prefix.shape[1]
    streams = {"prefix": prefix, "expert": suffix}
    for i in range(config.prefix.depth):
        parts: dict[str, list[Tensor]] = {"query": [], "key": [], "value": []}
        gates: dict[str, Tensor | float] = {}
        for expert, x in streams.items():
            name = f"transformer.layers.{i}.{expert}."
            y, gates[expert] = norm(w, name + "attention_norm", x, cond if expert == "expert" else None)
            for part, found in parts.items():
                found.append((y @ w[name + part + ".weight"].T).unflatten(2, (-1, dim)).transpose(1, 2))
        q, k, v = (torch.cat(found, dim=2) for found in parts.values())
        q, k = rotate(q, positions), rotate(k, positions)
        k, v = (t.repeat_interleave(heads // t.shape[1], dim=1) for t in (k, v))
        logits = (q @ k.mT / math.sqrt(dim)).masked_fill(~mask[:, None], -torch.inf)
        attended = (torch.softmax(logits, dim=-1) @ v).transpose(1, 2).flatten(2)
        for expert, own in (("prefix", attended[:, :length]), ("expert", attended[:, length:])):
            name = f"transformer.layers.{i}.{expert}."
            x = streams[expert] + own @ w[name + "output.weight"].T * gates[expert]
            y, gate = norm(w, name + "mlp_norm", x, cond if expert == "expert" else None)
            gated = gelu(y @ w[name + "mlp.gate.weight"].T) * (y @ w[name + "mlp.up.weight"].T)
            streams[expert] = x + gated @ w[name + "mlp.down.weight"].T * gate
    return norm(w, "transformer.expert_norm", streams["expert"], cond)[0]


def norm(w: Weights, name: str, x: Tensor, conditioning: Tensor | None) -> tuple[Tensor, Tensor | float]:
    y = x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
    if conditioning is None:
        return y * (1 + w[name + ".scale"]), 1.0
    scale, shift, gate = dense(w, name + ".modulation", conditioning)[:, None].chunk(3, dim=-1)
    return y * (1 + scale) + shift, gate


def rotate(x: Tensor, positions: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    angle = positions[:, None, :, None].double() / 10_000.0 ** (torch.arange(half).double() / half)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], dim=-1)


def time_embedding(time: Tensor, width: int) -> Tensor:
    period = 4e-3 * (4.0 / 4e-3) ** torch.linspace(0, 1, width // 2, dtype=torch.float64)
    phase = 2 * math.pi * time[:, None] / period
    return torch.cat([phase.sin(), phase.cos()], dim=1)


def dense(w: Weights, name: str, x: Tensor) -> Tensor:
    return x @ w[name + ".weight"].T + w[name + ".bias"]


def layer_norm(w: Weights, name: str, x: Tensor) -> Tensor:
    x = x - x.mean(-1, keepdim=True)
    return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * w[name + ".weight"] + w[name + ".bias"]


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


class AdamW:
    """NumPy, float64: global clipping, AdamW and a moving average, step by step."""

    def __init__(self, weights: dict[str, np.ndarray], decay: float, clip: float, ema: float) -> None:
        self.weights, self.decay, self.clip, self.ema = weights, decay, clip, ema
        self.average = {name: weight.copy() for name, weight in weights.items()}
        self.means = {name: np.zeros_like(weight) for name, weight in weights.items()}
        self.squares = {name: np.zeros_like(weight) for name, weight in weights.items()}
        self.steps = 0

    def step(self, gradients: dict[str, np.ndarray], rate: float) -> None:
        self.steps += 1
        """Weights without a gradient stay as they are."""
        size = math.sqrt(sum(float((g**2).sum()) for g in gradients.values()))
        factor = min(1.0, self.clip / (size + 1e-6))
        for name, gradient in gradients.items():
            weight, g = self.weights[name], gradient * factor
            self.means[name] = 0.9 * self.means[name] + 0.1 * g
            self.squares[name] = 0.95 * self.squares[name] + 0.05 * g**2
            mean, square = self.means[name] / (1 - 0.9**self.steps), self.squares[name] / (1 - 0.95**self.steps)
            self.weights[name] = weight - rate * (mean / (np.sqrt(square) + 1e-8) + self.decay * weight)
            self.average[name] = self.ema * self.average[name] + (1 - self.ema) * self.weights[name]
