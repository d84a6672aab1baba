"""π0-FAST: camera images, instruction and state in, action tokens out, one after the other (arXiv 2501.09747).

    images --> vision tower ----+
    prompt --> token table -----+--> Gemma --> token table again --> next token
    action tokens, causal ------+

The vision tower, the token table and the Gemma layers are those of π0's prefix; there is no action expert. Who sees
whom is the rule of `attention.py`: images and prompt are one block, each action token is one of its own.

Shapes: B batch, P tokens (images, then L of text), W width, V vocabulary, N tokens that are generated.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast, get_args

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from pizero.model.attention import Attention, attend, block_mask, token_positions
from pizero.model.config import (
    CAMERAS,
    GEMMA_2B,
    SO400M,
    GemmaConfig,
    SiglipConfig,
    check_numbers,
    check_observation,
    config_from_json,
)
from pizero.model.gemma import GemmaBlock, Rotary, make_norm
from pizero.model.language import END_ID, PADDING_ID, target_errors
from pizero.model.layers import rotary_table
from pizero.model.pi0 import initialize
from pizero.model.siglip import VisionTower, embed_images
from pizero.types import LARGEST, Observation, UserError, as_tuple, check_cameras

Positions = Literal["exact", "openpi"]


@dataclass(frozen=True)
class Pi0FastConfig:
    """The defaults are π0-FAST at full size.

    prompt_length: text tokens, those of the actions included. state_dim, action_dim, action_horizon are in no weight:
    the state is digitised, in the prompt, and the actions are tokens.
    positions: where the generated tokens stand. "exact" is where training had them; "openpi" is one place further, as
    openpi's sampler has it (openpi issue 705), and counts masked cameras in training.
    temperature, top_p: of the next token, when actions are sampled; 0 is greedy. constrained: only tokens that make a
    whole chunk can come; otherwise the model may write anything, and what is no chunk is played as zeros.
    """

    vision: SiglipConfig = SO400M
    prefix: GemmaConfig = GEMMA_2B
    vocab_size: int = 257_152
    cameras: tuple[str, ...] = CAMERAS
    image_size: int = 224
    prompt_length: int = 180
    state_dim: int = 32
    action_dim: int = 32
    action_horizon: int = 32
    positions: Positions = "exact"
    temperature: float = 0.0
    top_p: float = 1.0
    constrained: bool = True

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.image_size % self.vision.patch_size:
            raise UserError(f"image_size {self.image_size} is not divisible by the patch size {self.vision.patch_size}")
        if self.positions not in get_args(Positions):
            raise UserError(f"positions is {self.positions!r}; expected one of {', '.join(get_args(Positions))}")
        if self.constrained not in (True, False):
            raise UserError(f"constrained must be true or false, got {str(self.constrained)[:60]}")
        if not 0 <= self.temperature <= LARGEST or not 0 < self.top_p <= 1:
            got = f"temperature {self.temperature}, top_p {self.top_p}"
            raise UserError(f"{got}: expected a temperature of 0 (greedy) or above, and top_p above 0 and at most 1")
        check_cameras(self.cameras)

    @property
    def has_state_token(self) -> bool:
        return False

    @property
    def state_input(self) -> Literal["prompt"]:
        return "prompt"

    @property
    def image_shape(self) -> tuple[int, int]:
        """(height, width) of the images in an observation."""
        return self.image_size, self.image_size

    @property
    def num_history(self) -> int:
        """Observations per sample: the present one."""
        return 1

    @property
    def past_actions(self) -> int:
        """The chunk starts at the present observation."""
        return 0

    @property
    def default_num_steps(self) -> int:
        """Tokens are written one after the other; nothing is integrated."""
        return 1

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "vision": self.vision.to_json()}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Pi0FastConfig:
        """The inverse of `to_json`. Unknown keys raise; missing keys keep their defaults."""
        values = dict(values)
        for name, kind in (("vision", SiglipConfig), ("prefix", GemmaConfig)):
            if name in values:
                values[name] = config_from_json(kind, values[name], name)
        if "cameras" in values:
            values["cameras"] = as_tuple(values["cameras"])
        return config_from_json(Pi0FastConfig, values, "config")


class Constraint(Protocol):
    """Which tokens may come next, for a batch of texts under way; the model never writes another one."""

    candidates: Tensor
    """[C] ids: all that can ever come, so that the head computes no other logits."""

    def allowed(self) -> Tensor:
        """[B, C] bool; a row without any is finished."""
        ...

    def advance(self, tokens: Tensor) -> None:
        """One id per row [B]; padding where a row is finished."""
        ...


class TextLayer(GemmaBlock):
    """One layer by itself: attention, then the MLP."""

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__(config, adaptive=False)
        self.attend: Attention = attend

    def forward(self, x: Tensor, rotary: Rotary, mask: Tensor) -> Tensor:
        """x [B, P, W] -> [B, P, W]; mask [B, P, P]: who sees whom."""
        query, key, value, _ = self.project(x, rotary, None)
        return self.finish(x, self.attend(query, key, value, mask), None, None)


class Pi0Fast(nn.Module):
    """The whole network. It knows neither tokenizer nor codec."""

    def __init__(self, config: Pi0FastConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_tower = VisionTower(config.vision, config.image_size, config.prefix.width)
        self.token_embedding = nn.Embedding(config.vocab_size, config.prefix.width)
        self.layers = nn.ModuleList(TextLayer(config.prefix) for _ in range(config.prefix.depth))
        self.norm = make_norm(config.prefix.width, adaptive=False)
        self.apply(initialize)

    @property
    def blocks(self) -> list[GemmaBlock]:
        return cast("list[GemmaBlock]", list(self.layers))

    @property
    def dtype(self) -> torch.dtype:
        """Of the large matrices; tokens are cast to it on the way in."""
        return self.get_submodule("layers.0.query").get_parameter("weight").dtype

    # ---------------------------------------------------------------- embeddings

    def embed(self, observation: Observation) -> tuple[Tensor, Tensor]:
        """Images and text -> tokens [B, P, W] and padding mask [B, P]: the cameras in order, then the text."""
        check_observation(self.config, observation)
        cameras = [name for name in self.config.cameras if name in observation.images]
        images, masks = embed_images(observation, cameras, self.vision_tower)
        tokens = torch.cat([*images, self.embed_text(observation.prompt_tokens)], dim=1)
        return tokens.to(self.dtype), torch.cat([*masks, observation.prompt_mask.to(tokens.device)], dim=1)

    def embed_text(self, tokens: Tensor) -> Tensor:
        return (self.token_embedding(tokens) * self.config.prefix.width**0.5).to(self.dtype)

    # ---------------------------------------------------------------- training

    def hidden(self, observation: Observation, causal: Tensor) -> Tensor:
        """The last layer's normalised output at the text's tokens: [B, L, W]. causal [B, L]: see `attention.py`."""
        x, padding_mask = self.embed(observation)
        length = observation.prompt_tokens.shape[1]
        starts = F.pad(causal, (padding_mask.shape[1] - length, 0))
        if self.config.positions == "openpi":
            positions = torch.arange(x.shape[1], device=x.device).expand(len(x), -1)
        else:
            positions = token_positions(padding_mask)
        rotary, mask = rotary_table(positions, self.config.prefix.head_dim), block_mask(padding_mask, starts)
        for layer in self.layers:
            x = layer(x, rotary, mask)
        return self.norm(x[:, -length:])[0]

    def loss(
        self,
        observation: Observation,
        actions: Tensor,
        *,
        noise: Tensor | None = None,
        time: Tensor | None = None,
        draws: int = 1,
        delay: Tensor | None = None,
        generator: Generator | None = None,
        action_mask: Tensor | None = None,
    ) -> Tensor:
        """`text_loss` of the observation's prompt, which continues with the actions as tokens -> [B, 1].

        Nothing is drawn, and the actions themselves are not read: noise and time change nothing. ValueError for what is
        of flow matching alone, and for a prompt without tokens to write.
        """
        if delay is not None or draws != 1:
            raise ValueError("delay and draws: a π0-FAST learns tokens, without noise")
        causal, target = observation.prompt_causal, observation.prompt_target
        if causal is None or target is None:
            raise ValueError("prompt_causal and prompt_target are missing: the prompt holds no actions to learn")
        return self.text_loss(observation, causal, target)[:, None]

    def expect_delays(self, max_delay: int) -> None:
        """UserError above 0."""
        if max_delay:
            raise UserError(f"max_delay is for π0 and π0.5, not for π0-FAST; got {max_delay}")

    def text_loss(self, observation: Observation, causal: Tensor, target: Tensor) -> Tensor:
        """Cross entropy of the tokens where `target` [B, L] is true, each from the one before; mean per sample [B].

        A sample without targets has the loss 0. The logits over the vocabulary are made for the targets alone, a few
        hundred rows at a time, in the backward pass again.
        """
        hidden = self.hidden(observation, causal)
        errors = target_errors(hidden, self.token_embedding.weight, observation.prompt_tokens, target)
        return errors.sum(dim=1) / target[:, 1:].sum(dim=1).clamp(min=1)

    def logits(self, hidden: Tensor, ids: Tensor | None = None) -> Tensor:
        """[..., W] -> float32 [..., V], or [..., C] of the ids [C] alone. The head is the token table."""
        table = self.token_embedding.weight
        return F.linear(hidden, (table if ids is None else table[ids]).to(hidden.dtype)).float()

    # ---------------------------------------------------------------- inference

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
        """Prompt -> tokens [B, N], N at most `max_tokens`: up to the end mark or the constraint's end, then padding.

        Rows end alone, and a row's tokens do not depend on the other rows. temperature 0 is greedy; top_p keeps the
        most likely tokens that together have that probability. uniform [B, max_tokens]: numbers in [0, 1) that decide
        above temperature 0, drawn where none are given. RuntimeError where the network gives NaN or Inf.
        """
        decoder = Decoder(self, observation, max_tokens)
        if uniform is None:
            uniform = torch.rand(observation.batch_size, max_tokens) if temperature else torch.zeros(1, max_tokens)
        uniform = uniform.to(decoder.device)
        ids = None if constraint is None else constraint.candidates
        finished = torch.zeros(observation.batch_size, dtype=torch.bool, device=decoder.device)
        written = list[Tensor]()
        while len(written) < max_tokens:
            logits = self.logits(decoder.last, ids)
            if constraint is not None:
                allowed = constraint.allowed()
                finished = finished | ~allowed.any(dim=1)
                logits = logits.masked_fill(~allowed, -torch.inf)
            if bool(finished.all()):
                break
            logits = logits.masked_fill(finished[:, None], 0.0)
            tokens = choose(logits, temperature, top_p, uniform[:, len(written)])
            tokens = tokens if ids is None else ids[tokens]
            tokens = tokens.masked_fill(finished, PADDING_ID)
            if constraint is not None:
                constraint.advance(tokens)
            written.append(tokens)
            finished = finished | (tokens == END_ID)
            if len(written) < max_tokens and not bool(finished.all()):
                decoder.step(tokens)
        if not bool(torch.isfinite(decoder.last).all()):  # keys and values keep what was not finite before
            raise RuntimeError("the model gives NaN or Inf: check the weights, or use float32")
        return torch.stack(written, dim=1) if written else finished.new_zeros(len(finished), 0, dtype=torch.long)


class Decoder:
    """Keys and values of everything so far. Slots of a row's padding are masked, so rows need no alignment."""

    last: Tensor
    """[B, W]: normalised output of each row's newest token."""

    def __init__(self, model: Pi0Fast, observation: Observation, max_tokens: int) -> None:
        self.model = model
        x, padding_mask = model.embed(observation)
        self.device = x.device
        batch, self.filled = padding_mask.shape
        heads, size = model.config.prefix.num_kv_heads, model.config.prefix.head_dim
        shape = (batch, self.filled + max_tokens, heads, size)
        self.keys = [x.new_zeros(shape) for _ in model.blocks]
        self.values = [x.new_zeros(shape) for _ in model.blocks]
        self.valid = F.pad(padding_mask, (0, max_tokens))
        self.next_position = padding_mask.long().sum(dim=1, keepdim=True)
        if model.config.positions == "openpi":
            self.next_position = self.next_position + 1
        positions = token_positions(padding_mask)
        hidden = self._run(
            x, slice(0, self.filled), positions, block_mask(padding_mask, torch.zeros_like(padding_mask))
        )
        slots = torch.arange(self.filled, device=x.device)
        newest = torch.where(padding_mask, slots, -1).amax(dim=1)  # of each row
        self.last = hidden[torch.arange(batch, device=x.device), newest]

    def step(self, tokens: Tensor) -> None:
        """One more token per row [B]."""
        slot = self.filled
        self.filled += 1
        self.valid[:, slot] = True
        x = self.model.embed_text(tokens[:, None])
        mask = self.valid[:, None, : self.filled]
        self.last = self._run(x, slice(slot, self.filled), self.next_position, mask)[:, 0]
        self.next_position = self.next_position + 1

    def _run(self, x: Tensor, slots: slice, positions: Tensor, mask: Tensor) -> Tensor:
        rotary: Rotary = rotary_table(positions, self.model.config.prefix.head_dim)
        for layer, keys, values in zip(self.model.blocks, self.keys, self.values, strict=True):
            query, keys[:, slots], values[:, slots], _ = layer.project(x, rotary, None)
            x = layer.finish(x, attend(query, keys[:, : self.filled], values[:, : self.filled], mask), None, None)
        return self.model.norm(x)[0]


def choose(logits: Tensor, temperature: float, top_p: float, uniform: Tensor) -> Tensor:
    """[B, C] -> index [B]: the most likely one at temperature 0, else where `uniform` [B] falls."""
    if not temperature:
        return logits.argmax(dim=-1)
    chances = (logits / temperature).softmax(dim=-1)
    if top_p < 1.0:
        ordered, order = chances.sort(dim=-1, descending=True)
        before = ordered.cumsum(dim=-1) - ordered
        chances = torch.zeros_like(chances).scatter(-1, order, ordered.masked_fill(before >= top_p, 0.0))
    reached = chances.cumsum(dim=-1)
    whole = reached[:, -1:]
    index = (reached <= uniform[:, None].to(reached) * whole).sum(dim=-1)
    return torch.minimum(index, (reached < whole).sum(dim=-1))  # where the product is rounded up to the whole
