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

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from pizero.model.action_model import ChunkFromNoise
from pizero.model.config import Pi0Config, check_observation
from pizero.model.flow_matching import (
    CLEAN,
    FLOW_SHARE,
    SHORTCUT_SHARE,
    ActionPrefix,
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
from pizero.model.layers import AdaptiveRMSNorm, Float32Linear, TargetTime, embed_time
from pizero.model.siglip import VisionTower, embed_images
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
        self.target_time = TargetTime(width) if config.one_step else None  # last, where `expect_one_step` adds it
        self.apply(initialize)

    # ---------------------------------------------------------------- embeddings

    def embed_prefix(self, observation: Observation) -> tuple[Tensor, Tensor]:
        """Images and prompt -> tokens [B, P, W] and padding mask [B, P]: the cameras in order, then the prompt.

        A camera without an image has no tokens; one that only some samples have has masked tokens. Only present
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

    def embed_times(self, time: Tensor, target: Tensor | None = None) -> Tensor:
        """Flow times [...] -> [..., E]. target: of a one-step model, where a step from them ends; None: at once."""
        embedding = embed_time(time, self.config.expert.width)
        if self.target_time is None:
            return embedding
        return embedding + self.target_time(time if target is None else target)

    def embed_suffix(
        self, state: Tensor | None, x_t: Tensor, time: Tensor, target: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """state [B, state_dim], x_t [B, H, D], time and maybe target [B] -> tokens [B, S, E], block starts [S],
        conditioning [B, E]. For x_t [N * B, H, D] of N draws the state is repeated.

        The conditioning is None where the time is concatenated with the actions. A time for each action, [B, H], makes
        it [B, S, E]; the state token then has the last action's, which is never a settled one.
        """
        tokens = self.action_in_proj(x_t)  # [B, H, E]
        time_embedding = self.embed_times(time, target)  # [B, E] or [B, H, E]
        conditioning = None
        if self.config.adaptive:
            conditioning = F.silu(self.time_mlp_out(F.silu(self.time_mlp_in(time_embedding))))
        else:
            per_action = time_embedding if time.ndim == 2 else time_embedding[:, None].expand_as(tokens)
            both = torch.cat([tokens, per_action], dim=-1)
            tokens = self.time_mlp_out(F.silu(self.time_mlp_in(both)))
        if self.state_proj is not None:
            assert state is not None  # check_observation saw to it
            token = self.state_proj(state.repeat(len(x_t) // len(state), 1))[:, None]
            tokens = torch.cat([token, tokens], dim=1)
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
        x_t = interpolate(actions, noise, time)
        if self.config.one_step:
            error, hidden = self._one_step_error(observation, actions, noise, x_t, time, delay), None
        else:
            v_t, hidden = self.joint(observation, x_t.flatten(0, 1), time.flatten(0, 1))
            error = (v_t.view_as(noise) - velocity_target(actions, noise)).square()
        error = mean_error(error, action_mask)  # [N, B, H]
        flow = (error if weights is None else error * weights).mean(dim=0)
        if self.config.language is not None and action_mask is not None:
            flow = over_samples_with(flow, action_mask.any(dim=1))
        return Losses(flow, *text_and_fast(self.config.language, observation, hidden, self.head))

    def _one_step_error(
        self, observation: Observation, actions: Tensor, noise: Tensor, x_t: Tensor, time: Tensor, delay: Tensor | None
    ) -> Tensor:
        """[N, B, H, D]: the velocity's squared error, and how far one step ends from where two half steps do (SnapFlow,
        arXiv 2604.05656); these get no gradient, nor does the prefix, which all share.
        """
        with torch.no_grad():
            cache = self.prefill(observation)
        state, start = observation.state, noise.flatten(0, 1)
        v_t = self.decode(cache, state, x_t.flatten(0, 1), time.flatten(0, 1)).view_as(noise)
        settled = None if delay is None else ActionPrefix(actions.repeat(len(noise), 1, 1), delay.flatten())
        with torch.no_grad():
            wanted = self.generate(cache, state, start, Sampling(2, settled=settled))
        shortcut = (self.generate(cache, state, start, Sampling(1, settled=settled)) - wanted).view_as(noise)
        return FLOW_SHARE * (v_t - velocity_target(actions, noise)).square() + SHORTCUT_SHARE * shortcut.square()

    @property
    def head(self) -> Tensor:
        """[V, W]: from the prefix expert's hidden states to the vocabulary; the token table, or one of its own."""
        return self.token_embedding.weight if self.text_head is None else self.text_head.weight

    def expect_delays(self, max_delay: int) -> None:
        """Notes in the config that training gives up to so many settled actions."""
        self.config = dataclasses.replace(self.config, max_delay=max_delay)

    def expect_one_step(self) -> None:
        """Gets the input for the time at which a step ends, whose fresh weights change no number yet."""
        if self.target_time is None:
            self.config = dataclasses.replace(self.config, one_step=True)
            self.target_time = TargetTime(self.config.expert.width).apply(initialize)

    # ---------------------------------------------------------------- inference

    def _sample(self, observation: Observation, noise: Tensor, sampling: Sampling) -> Tensor:
        """The rest of `sample_actions`: the pass over the prefix once, then integration along the decoded velocity."""
        return self.generate(self.prefill(observation), observation.state, noise, sampling)

    def generate(self, cache: KVCache, state: Tensor | None, noise: Tensor, sampling: Sampling) -> Tensor:
        """Integration along the decoded velocity: noise [N * B, H, D] -> actions. A one-step model's single Euler step
        takes the velocity that leads to its end.
        """
        leap = self.config.one_step and sampling.is_one_step

        def velocity(x_t: Tensor, time: Tensor) -> Tensor:
            return self.decode(cache, state, x_t, time, torch.full_like(time, CLEAN) if leap else None)

        return follow(velocity, noise, sampling)

    def prefill(self, observation: Observation) -> KVCache:
        """The pass over images and prompt: keys and values of every layer, for `decode`."""
        prefix = self.prefix_tokens(observation)
        return self.transformer.prefill(prefix.values, prefix.mask, prefix.starts)[1]

    def write(self, observation: Observation, max_tokens: int, closing: tuple[Tensor, Tensor]) -> Written:
        """Text after the prompt, and the cache of both for `decode`; see `write_text`."""
        prefix = self.prefix_tokens(observation)
        return write_text(self.transformer, self.embed_text, self.head, prefix, max_tokens, closing)

    def decode(
        self, cache: KVCache, state: Tensor | None, x_t: Tensor, time: Tensor, target: Tensor | None = None
    ) -> Tensor:
        """Velocity [N * B, H, D] of x_t [N * B, H, D] at flow time [N * B] or [N * B, H], against the cached prefix.
        target: as for `embed_times`.
        """
        suffix, block_starts, conditioning = self.embed_suffix(state, x_t, time, target)
        hidden = self.transformer.decode(cache, suffix, block_starts, conditioning)
        return self.action_out_proj(hidden[:, -self.config.action_horizon :])


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
        if "bias" in dict(module.named_parameters()):
            nn.init.zeros_(module.bias)
    if isinstance(module, GemmaBlock):  # visited after its linear layers
        for layer in (module.query, module.key):
            nn.init.normal_(layer.weight, std=1.6 * layer.in_features**-0.5)
    if isinstance(module, AdaptiveRMSNorm):
        nn.init.zeros_(module.modulation.weight)
    if isinstance(module, TargetTime):
        nn.init.zeros_(module.mlp_out.weight)
