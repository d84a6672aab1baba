"""The diffusion policy: a history of images in, a chunk of actions out (arXiv 2303.04137).

    images (T frames) --> encoder, spatial softmax --+
    state (T frames), instruction -------------------+--> FiLM --> UNet --> noise or velocity --> actions
    noisy actions, diffusion step -------------------+

Shapes: B batch, N draws, T observations of the history, H action horizon, D action dimensions, C observation width.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from pizero.baseline.config import BaselineConfig
from pizero.baseline.encoder import ImageEncoder
from pizero.baseline.lerobot_style import LerobotStyle
from pizero.baseline.schedule import NoiseSchedule, step_at_flow_time, step_from_drawn_time
from pizero.baseline.unet import StepEncoder, UNet1d
from pizero.model.action_model import ChunkFromNoise
from pizero.model.flow_matching import Sampling, fill_draws, integrate, interpolate, mean_error, velocity_target
from pizero.types import Observation, UserError

STACKED = "stacked"


class DiffusionPolicy(nn.Module, ChunkFromNoise[BaselineConfig]):
    """An `ActionModel`. Its observations have a history: images [B, T, h, w, 3] and state [B, T, state_dim],
    oldest first; with T = 1 images [B, h, w, 3] and state [B, state_dim] will do. Image masks stay [B].
    """

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__()
        self.config = config
        style = config.lerobot
        self.schedule: NoiseSchedule | None = None
        if config.objective == "diffusion":
            predicts_actions = style is not None and style.predicts_actions
            self.schedule = NoiseSchedule(
                config.diffusion_steps, config.clip_range, config.step_spacing, predicts_actions
            )
        batch_norm = style is not None and style.batch_norm
        stacked = config.image_fusion == "stacked"
        channels = 3 * len(config.cameras) if stacked else 3
        self.image_encoders = nn.ModuleDict(
            {
                name: ImageEncoder(channels, config.encoder_widths, config.stem_stride, config.keypoints, batch_norm)
                for name in (config.cameras if config.image_fusion == "separate" else (config.image_fusion,))
            }
        )
        self.prompt_embedding = nn.Embedding(config.vocab_size, config.prompt_width) if config.instruction else None
        step_encoder = StepEncoder(config.step_embedding, config.diffusion_steps, config.step_width)
        self.unet = UNet1d(
            config.action_dim, config.observation_width, config.down_dims, config.kernel_size, config.groups,
            step_encoder,
        )  # fmt: skip

    # ---------------------------------------------------------------- observation

    def encode(self, observation: Observation) -> Tensor:
        """What the UNet knows of the observation, [B, C]: state and image features of every frame, instruction."""
        check_observation(self.config, observation)
        batch = observation.batch_size
        frames = self._encode_images(observation).float()  # [B, T, features]
        if self.config.state_input:
            assert observation.state is not None  # check_observation saw to it
            state = observation.state.reshape(batch, self.config.num_history, -1)
            frames = torch.cat([state.float(), frames], dim=-1)
        if self.prompt_embedding is None:
            return frames.flatten(1)
        prompt = masked_mean(self.prompt_embedding(observation.prompt_tokens), observation.prompt_mask)
        return torch.cat([frames.flatten(1), prompt.float()], dim=-1)

    def _encode_images(self, observation: Observation) -> Tensor:
        """All frames of a camera in one pass: [B, T, features]. An absent camera is an image of zeros."""
        batch, history, style = observation.batch_size, self.config.num_history, self.config.lerobot
        device, shape = observation.prompt_tokens.device, self.config.image_shape
        encoded_shape = shape if style is None else style.encoded_shape
        images: dict[str, Tensor] = {}
        for index, name in enumerate(self.config.cameras):
            image = observation.images.get(name)
            if image is None:
                images[name] = torch.zeros(batch * history, 3, *encoded_shape, device=device)
                continue
            image = image.reshape(batch * history, *shape, 3).permute(0, 3, 1, 2)
            if style is not None:
                image = prepare_image(style, image, index)
            mask = observation.image_masks[name]
            if mask.device.type != "cpu" or not bool(mask.all()):  # a mask on the host costs no wait for the device
                present = mask.to(device).repeat_interleave(history)
                image = image * present[:, None, None, None]
            images[name] = image
        if self.config.image_fusion == "stacked":
            images = {STACKED: torch.cat(list(images.values()), dim=1)}
        shared = self.config.image_fusion == "shared"
        features = [self.image_encoders["shared" if shared else name](image) for name, image in images.items()]
        return torch.cat(features, dim=-1).view(batch, history, -1)

    # ---------------------------------------------------------------- training

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
        """Squared error of the noise (diffusion) or velocity (flow), averaged over D: actions [B, H, D] -> [B, H].

        With `draws=N` the observation is encoded once, and the result is the average over N draws of (noise, time).
        Given noise is then [N, B, H, D] and time [N, B]; for one draw [B, H, D] and [B] will do. A time is a draw of
        `flow_matching.sample_time` for both objectives: the flow time itself, or `step_from_drawn_time` of it, which
        then takes every diffusion step equally often. action_mask: as of `Pi0.loss`. delay: ValueError.
        """
        if delay is not None:
            raise ValueError("delay: a diffusion policy is not trained with delays")
        self._check_actions(actions, observation.batch_size)
        noise, time = fill_draws(actions, noise, time, draws, generator)
        repeated = actions.expand_as(noise)
        if self.schedule is not None:
            step = step_from_drawn_time(time, self.config.diffusion_steps)
            x_t = self.schedule.add_noise(repeated, noise, step)
            target = repeated if self.schedule.predicts_actions else noise
        else:
            step = step_at_flow_time(time, self.config.diffusion_steps)
            x_t, target = interpolate(repeated, noise, time), velocity_target(repeated, noise)
        encoded = self.encode(observation).repeat(draws, 1)  # [N * B, C], the draws on the outer axis
        predicted = self.unet(x_t.flatten(0, 1), step.flatten(), encoded).view_as(target)
        return mean_error((predicted.float() - target).square(), action_mask).mean(dim=0)

    def expect_delays(self, max_delay: int) -> None:
        """UserError above 0."""
        if max_delay:
            raise UserError(f"max_delay is for π0 and π0.5, not for a diffusion policy; got {max_delay}")

    # ---------------------------------------------------------------- inference

    def _sample(self, observation: Observation, noise: Tensor, sampling: Sampling) -> Tensor:
        """The rest of `sample_actions`: 20 steps of DDIM or 10 of flow if nobody says how many; for DDIM a divisor of
        the training steps. ValueError for a solver with DDIM, and for what continues a chunk.

        With `config.lerobot` the first `config.past_actions` of the chunk lie before the newest observation.
        """
        if sampling.settled is not None or sampling.guide is not None:
            raise ValueError("settled and guide: a diffusion policy cannot continue a chunk")
        encoded = self.encode(observation)
        if self.schedule is not None:
            if sampling.solver != "euler":
                raise ValueError(f"solver: got {sampling.solver!r}, but the diffusion objective is sampled by DDIM")
            return self.schedule.sample(lambda x, step: self.unet(x, step, encoded), noise, sampling.num_steps)

        def velocity(x: Tensor, time: Tensor) -> Tensor:
            return self.unet(x, step_at_flow_time(time, self.config.diffusion_steps), encoded).float()

        return integrate(velocity, noise, sampling.num_steps, sampling.solver)


def prepare_image(style: LerobotStyle, image: Tensor, camera: int) -> Tensor:
    """One camera's images [M, 3, h, w] in [-1, 1] -> normalised, resized and cut about their centre."""
    mean, std = (image.new_tensor(value[camera])[:, None, None] for value in (style.image_mean, style.image_std))
    image = ((image + 1) / 2 - mean) / std
    if style.resize is not None:
        image = F.interpolate(image, style.resize, mode="bilinear", align_corners=False, antialias=True)
    if style.crop is not None:
        top, left = (round((whole - cut) / 2) for whole, cut in zip(image.shape[-2:], style.crop, strict=True))
        image = image[..., top : top + style.crop[0], left : left + style.crop[1]]
    return image


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x [B, L, W] over the positions where mask [B, L] is true -> [B, W]; zeros where none is."""
    weights = mask[..., None].to(x.dtype)
    return (x * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def check_observation(config: BaselineConfig, observation: Observation) -> None:
    """Raises one clear ValueError when a key, a shape or a camera name is not what the config says."""
    batch, history, shape = observation.batch_size, config.num_history, config.image_shape
    for name, image in observation.present_images(config.cameras):
        fits = _has_shape(image, (batch, history, *shape, 3))
        if not fits or not image.is_floating_point():
            raise ValueError(
                f"images[{name!r}]: got {image.dtype} {tuple(image.shape)}, "
                f"expected float {(batch, history, *shape, 3)} (batch, history, height, width, 3)"
            )
    if config.state_input:
        expected = (batch, history, config.state_dim)
        state = observation.state
        if state is None or not _has_shape(state, expected):
            got = None if state is None else tuple(state.shape)
            raise ValueError(f"state: got {got}, expected {expected} (batch, history, state_dim)")
    if config.instruction:
        observation.check_prompt()


def _has_shape(value: Tensor, expected: tuple[int, ...]) -> bool:
    """The second axis, the history, may be absent where it is 1."""
    shape = tuple(value.shape)
    return shape == expected or (expected[1] == 1 and shape == (expected[0], *expected[2:]))
