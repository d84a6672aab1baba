"""π0 and π0.5: camera images, instruction and robot state in, a chunk of actions out.

    images --> vision tower ----+
    prompt --> token table -----+--> prefix expert (cached) --+
    state, noisy actions, time -----> action expert ----------+--> velocity --> integration --> actions

With a `LanguageConfig` the prefix expert also writes text (a subtask), which the actions see, and in training FAST
tokens, which they do not.

Shapes: B batch, N draws, P prefix tokens, S suffix tokens, H action horizon, D action dimensions, W prefix width,
E expert width. Paper: arXiv 2410.24164 (π0), 2504.16054 (π0.5).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from pizero.model.action_model import ChunkFromNoise
from pizero.model.config import Pi0Config, SiglipConfig
from pizero.model.flow_matching import (
    Sampling,
    fill_draws,
    first_actions,
    follow,
    interpolate,
    mean_error,
    time_per_action,
    velocity_target,
)  # fmt: skip
from pizero.model.gemma import GemmaBlock
from pizero.model.language import Losses, Written, over_samples_with, text_and_fast, write_text
from pizero.model.layers import AdaptiveRMSNorm, Float32Linear, embed_time
from pizero.model.siglip import VisionTower
from pizero.model.two_expert import Hidden, KVCache, Tokens, TwoExpertTransformer
from pizero.types import Observation


class Pi0(nn.Module, ChunkFromNoise[Pi0Config]):
    """The whole network, an `ActionModel`. It knows one device, and neither tokenizer, robot nor statistics."""

    def __init__(self, config: Pi0Config) -> None:
        super().__init__()
        self.config = config
        width = config.expert.width
        self.vision_tower = VisionTower(config.vision, config.image_size, config.prefix.width)
        self.token_embedding = nn.Embedding(config.vocab_size, config.prefix.width)
        self.transformer = TwoExpertTransformer(config.prefix, config.expert, config.adaptive)
        self.state_proj = Float32Linear(config.state_dim, width) if config.has_state_token else None
        self.action_in_proj = Float32Linear(config.action_dim, width)
        self.time_mlp_in = Float32Linear(width if config.adaptive else 2 * width, width)
        self.time_mlp_out = Float32Linear(width, width)
        self.action_out_proj = Float32Linear(width, config.action_dim)
        own_head = config.language is not None and not config.language.tied_head
        self.text_head = nn.Linear(config.prefix.width, config.vocab_size, bias=False) if own_head else None
        self.apply(initialize)

    # ---------------------------------------------------------------- embeddings

    def embed_prefix(self, observation: Observation) -> tuple[Tensor, Tensor]:
        """Images and prompt -> tokens [B, P, W] and padding mask [B, P]: the cameras in order, then the prompt.

        A camera whose image is left out has no tokens; one that only some samples have has masked tokens. Only present
        images go through the vision tower.
        """
        check_observation(self.config, observation)
        cameras = [name for name in self.config.cameras if name in observation.images]
        images, masks = embed_images(observation, cameras, self.vision_tower)
        tokens = torch.cat([*images, self.embed_text(observation.prompt_tokens)], dim=1)
        return tokens, torch.cat([*masks, observation.prompt_mask.to(tokens.device)], dim=1)

    def embed_text(self, ids: Tensor) -> Tensor:
        """[B, T] -> [B, T, W]."""
        return (self.token_embedding(ids) * self.config.prefix.width**0.5).to(self.transformer.dtype)

    def prefix_tokens(self, observation: Observation) -> Tokens:
        """`embed_prefix` with its blocks: images and prompt are one, each token of the text after them is another."""
        values, mask = self.embed_prefix(observation)
        causal = observation.prompt_causal
        return Tokens(values, mask, None if causal is None else F.pad(causal, (mask.shape[1] - causal.shape[1], 0)))

    def embed_suffix(self, state: Tensor | None, x_t: Tensor, time: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """state [B, state_dim], x_t [B, H, D], time [B] -> tokens [B, S, E], block starts [S], conditioning [B, E].

        The conditioning is None where the time is concatenated with the actions. A time for each action, [B, H], makes
        it [B, S, E]; the state token then has the last action's, which is never a settled one.
        """
        tokens = self.action_in_proj(x_t)  # [B, H, E]
        time_embedding = embed_time(time, tokens.shape[-1])  # [B, E] or [B, H, E]
        conditioning = None
        if self.config.adaptive:
            conditioning = F.silu(self.time_mlp_out(F.silu(self.time_mlp_in(time_embedding))))
        else:
            per_action = time_embedding if time.ndim == 2 else time_embedding[:, None].expand_as(tokens)
            both = torch.cat([tokens, per_action], dim=-1)
            tokens = self.time_mlp_out(F.silu(self.time_mlp_in(both)))
        if self.state_proj is not None:
            assert state is not None  # check_observation saw to it
            tokens = torch.cat([self.state_proj(state)[:, None], tokens], dim=1)
            if conditioning is not None and time.ndim == 2:
                conditioning = torch.cat([conditioning[:, -1:], conditioning], dim=1)
        return tokens, self.suffix_block_starts(tokens.device), conditioning

    def suffix_block_starts(self, device: torch.device | None = None) -> Tensor:
        """[S] bool: the state token and the first action start a block; with causal attention every action."""
        starts = torch.zeros(self.config.suffix_length, dtype=torch.bool, device=device)
        starts[: 2 if self.config.has_state_token else 1] = True
        if self.config.action_attention == "causal":
            starts[:] = True
        return starts

    # ---------------------------------------------------------------- training

    def velocity(self, observation: Observation, x_t: Tensor, time: Tensor) -> Tensor:
        """One joint pass over prefix and suffix: x_t [N * B, H, D], time [N * B] -> velocity [N * B, H, D].

        time may be [N * B, H], one for each action. N suffixes per observation share the pass over the prefix, with the
        draws on the outer axis.
        """
        return self.joint(observation, x_t, time)[0]

    def joint(self, observation: Observation, x_t: Tensor, time: Tensor) -> tuple[Tensor, Hidden | None]:
        """The velocity as above, and what text and FAST tokens are predicted from, where the observation has targets.

        Under insulation a batch without any runs the prefix without a graph, so that backward skips it.
        """
        state, language = observation.state, self.config.language
        if state is not None:
            state = state.repeat(x_t.shape[0] // state.shape[0], 1)
        text, ids, mask = observation.prompt_target is not None, observation.fast_tokens, observation.fast_mask
        insulated = language is not None and language.insulation
        if insulated and not text and ids is None:
            with torch.no_grad():
                cache = self.prefill(observation)
            return self.decode(cache, state, x_t, time), None
        prefix = self.prefix_tokens(observation)
        fast = None if ids is None or mask is None else Tokens(self.embed_text(ids), mask, torch.ones_like(mask))
        suffix = self.embed_suffix(state, x_t, time)
        hidden = self.transformer.joint_with_text(prefix, suffix, fast, text, insulated)
        return self.action_out_proj(hidden.suffix[:, -self.config.action_horizon :]), hidden

    def loss(
        self, observation: Observation, actions: Tensor, *, noise: Tensor | None = None, time: Tensor | None = None,
        draws: int = 1, delay: Tensor | None = None, generator: Generator | None = None,
        action_mask: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """`losses` in one: the flow's [B, H], with a `LanguageConfig` the weighted sum."""
        losses = self.losses(
            observation, actions, noise=noise, time=time, draws=draws, delay=delay, generator=generator,
            action_mask=action_mask,
        )  # fmt: skip
        return losses.flow if self.config.language is None else losses.total(self.config.language)

    def losses(
        self, observation: Observation, actions: Tensor, *, noise: Tensor | None = None, time: Tensor | None = None,
        draws: int = 1, delay: Tensor | None = None, generator: Generator | None = None,
        action_mask: Tensor | None = None,
    ) -> Losses:  # fmt: skip
        """Flow: squared error of the velocity, averaged over the action dimensions, actions [B, H, D] -> [B, H]. Text
        and FAST [B]: cross entropy of the observation's targets, 0 without any.

        With `draws=N`, N draws of (noise, time) per sample share one pass over the prefix, most of the cost; the result
        is their average. Given noise is then [N, B, H, D] and time [N, B]; for one draw [B, H, D] and [B] will do.
        action_mask: [B, D] bool, true for the dimensions that count; None counts padded ones too, as openpi does. A
        sample of which none counts has no actions: allowed with a `LanguageConfig`.
        delay [N, B] (or [B]), below H: so many first actions are given clean (arXiv 2512.05964); their error is 0, and
        the others' is weighed up, so that a chunk's mean is that of the others.
        """
        self._check_actions(actions, observation.batch_size)
        noise, time = fill_draws(actions, noise, time, draws, generator)
        weights = None
        if delay is not None:
            settled = first_actions(delay.view_as(time), actions.shape[1])  # [N, B, H]
            time, weights = time_per_action(time, settled), (~settled) / (~settled).float().mean(dim=-1, keepdim=True)
        x_t, target = interpolate(actions, noise, time), velocity_target(actions, noise)
        v_t, hidden = self.joint(observation, x_t.flatten(0, 1), time.flatten(0, 1))
        error = mean_error((v_t.view_as(target) - target).square(), action_mask)  # [N, B, H]
        flow = (error if weights is None else error * weights).mean(dim=0)
        if self.config.language is not None and action_mask is not None:
            flow = over_samples_with(flow, action_mask.any(dim=1))
        return Losses(flow, *text_and_fast(self.config.language, observation, hidden, self.head))

    @property
    def head(self) -> Tensor:
        """[V, W]: from the prefix expert's hidden states to the vocabulary; the token table, or one of its own."""
        return self.token_embedding.weight if self.text_head is None else self.text_head.weight

    def expect_delays(self, max_delay: int) -> None:
        """Notes in the config that training gives up to so many settled actions."""
        self.config = dataclasses.replace(self.config, max_delay=max_delay)

    # ---------------------------------------------------------------- inference

    def _sample(self, observation: Observation, noise: Tensor, sampling: Sampling) -> Tensor:
        """The rest of `sample_actions`: the pass over the prefix once, then integration along the decoded velocity."""
        cache = self.prefill(observation)
        return follow(lambda x, t: self.decode(cache, observation.state, x, t), noise, sampling)

    def prefill(self, observation: Observation) -> KVCache:
        """The pass over images and prompt: keys and values of every layer, for `decode`."""
        prefix = self.prefix_tokens(observation)
        return self.transformer.prefill(prefix.values, prefix.mask, prefix.starts)[1]

    def write(self, observation: Observation, max_tokens: int, closing: tuple[Tensor, Tensor]) -> Written:
        """Text after the prompt, and the cache of both for `decode`; see `write_text`."""
        prefix = self.prefix_tokens(observation)
        return write_text(self.transformer, self.embed_text, self.head, prefix, max_tokens, closing)

    def decode(self, cache: KVCache, state: Tensor | None, x_t: Tensor, time: Tensor) -> Tensor:
        """Velocity [B, H, D] of x_t [B, H, D] at flow time [B] or [B, H], against the cached prefix."""
        suffix, block_starts, conditioning = self.embed_suffix(state, x_t, time)
        hidden = self.transformer.decode(cache, suffix, block_starts, conditioning)
        return self.action_out_proj(hidden[:, -self.config.action_horizon :])


def embed_images(
    observation: Observation, cameras: Sequence[str], vision_tower: Callable[[Tensor], Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Per camera of `cameras`: tokens [B, S_img, W] and mask [B, S_img]. Images of one size form one batch."""
    tokens: dict[str, Tensor] = {}
    for size in dict.fromkeys(observation.images[name].shape[1:3] for name in cameras):
        group = [name for name in cameras if observation.images[name].shape[1:3] == size]
        images = torch.cat([observation.images[name] for name in group])
        present = torch.cat([observation.image_masks[name] for name in group])
        if present.device.type == "cpu" and bool(present.all()):  # a mask on the host costs no wait for the device
            embedded = vision_tower(images)
        else:
            index = present.nonzero().squeeze(1).to(images.device)
            some = vision_tower(images[index])
            embedded = some.new_zeros(len(images), *some.shape[1:]).index_copy(0, index, some)
        tokens.update(zip(group, embedded.chunk(len(group)), strict=True))
    device = observation.prompt_tokens.device
    masks = [observation.image_masks[n].to(device)[:, None].expand(-1, tokens[n].shape[1]) for n in cameras]
    return [tokens[name] for name in cameras], masks


class ObservationSizes(Protocol):
    """What an observation is checked against: the config of π0, or of π0-FAST."""

    @property
    def vision(self) -> SiglipConfig: ...
    @property
    def cameras(self) -> tuple[str, ...]: ...
    @property
    def has_state_token(self) -> bool: ...
    @property
    def state_dim(self) -> int: ...


def check_observation(config: ObservationSizes, observation: Observation) -> None:
    """Raises one clear ValueError when a key, a shape or a camera name is not what the config says. Values are checked
    where data enters, so that the model never waits for the device.
    """
    observation.check_prompt()
    batch = observation.batch_size
    for name, image in observation.present_images(config.cameras):
        patch = config.vision.patch_size
        if image.ndim != 4 or image.shape[0] != batch or image.shape[3] != 3 or not image.is_floating_point():
            raise ValueError(
                f"images[{name!r}]: got {image.dtype} {tuple(image.shape)}, expected float ({batch}, h, w, 3)"
            )
        if image.shape[1] % patch or image.shape[2] % patch or not image.shape[1] * image.shape[2]:
            raise ValueError(
                f"images[{name!r}]: {image.shape[1]} x {image.shape[2]} is not divisible by the patch size {patch}"
            )
    if config.has_state_token:
        shape = None if observation.state is None else tuple(observation.state.shape)
        if shape != (batch, config.state_dim):
            raise ValueError(f"state: got {shape}, expected {(batch, config.state_dim)}")


def initialize(module: nn.Module) -> None:
    """Fresh weights, for training from scratch: variance 1 / fan_in, zero biases, closed gates as in the reference.

    Three scales make a small model find out much sooner which word means which place in the image: positions 0.3, words
    twice and queries and keys 1.6 times as large as usual, so that the first attention already prefers some tokens.
    """
    if isinstance(module, VisionTower):
        nn.init.normal_(module.position_embedding, std=0.3)
    if isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=2.0 * module.embedding_dim**-0.5)
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=module.in_features**-0.5)
        for name, parameter in module.named_parameters(recurse=False):
            if name == "bias":
                nn.init.zeros_(parameter)
    if isinstance(module, GemmaBlock):  # visited after its linear layers
        for layer in (module.query, module.key):
            nn.init.normal_(layer.weight, std=1.6 * layer.in_features**-0.5)
    if isinstance(module, AdaptiveRMSNorm):
        nn.init.zeros_(module.modulation.weight)
