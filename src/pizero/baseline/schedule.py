"""The noise of diffusion training, DDIM sampling (arXiv 2010.02502), and what a flow time means for them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pizero.baseline.config import StepSpacing
from pizero.types import UserError


class NoiseSchedule:
    """Squared-cosine schedule of `num_steps` diffusion steps: 0 is beside the action, `num_steps` - 1 is noise.

    predicts_actions: the network says what the actions are, not what the noise is.

    Not a module and without weights, so that it is the same for a model that is made without memory. UserError when
    `diffusers` is not installed.
    """

    def __init__(self, num_steps: int, clip_range: float, spacing: StepSpacing, predicts_actions: bool = False) -> None:
        if importlib.util.find_spec("diffusers") is None:
            raise UserError("diffusers is not installed; install the baseline extra: pip install 'pizero[baseline]'")
        self.num_steps, self.clip_range = num_steps, clip_range
        self.spacing: StepSpacing = spacing
        self.predicts_actions = predicts_actions
        self._kept: Tensor = self._scheduler().alphas_cumprod
        """[num_steps]: the share of the actions' variance that is left at each step; the rest is noise."""

    def add_noise(self, actions: Tensor, noise: Tensor, step: Tensor) -> Tensor:
        """actions, noise [..., H, D] and diffusion step [...] -> noisy actions [..., H, D]."""
        kept = self._kept.to(step.device)[step][..., None, None]
        return kept.sqrt() * actions + (1 - kept).sqrt() * noise

    def sample(self, predict: Callable[[Tensor, Tensor], Tensor], noise: Tensor, num_steps: int) -> Tensor:
        """Deterministic DDIM from noise [B, H, D] to actions [B, H, D] in float32.

        `predict` takes x [B, H, D] and the diffusion step [B]; it is called `num_steps` times.
        """
        scheduler, x = self._set(num_steps), noise.float()
        for step in scheduler.timesteps.tolist():
            predicted = predict(x, torch.full(x.shape[:1], step, device=x.device))
            x = scheduler.step(predicted.float(), step, x, return_dict=False)[0]
        return x

    def coefficients(self, num_steps: int) -> tuple[Tensor, Tensor]:
        """The diffusion step of each of `num_steps` steps [T]; and [T, 4] of what its x is made: signal and noise of
        the step's own, then of the next, so that x = signal * actions + noise * error.
        """
        scheduler = self._set(num_steps)
        steps = torch.as_tensor(scheduler.timesteps).long()
        after = steps - self.num_steps // num_steps
        kept = self._kept[steps]
        later = torch.where(after >= 0, self._kept[after.clamp(min=0)], scheduler.final_alpha_cumprod)
        return steps, torch.stack([part.sqrt() for part in (kept, 1 - kept, later, 1 - later)], dim=1)

    def _set(self, num_steps: int) -> Any:
        if num_steps < 1 or self.num_steps % num_steps:
            raise UserError(f"num_steps: got {num_steps}, expected a divisor of the {self.num_steps} training steps")
        scheduler = self._scheduler()
        scheduler.set_timesteps(num_steps)
        return scheduler

    def _scheduler(self) -> Any:
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler

        with torch.device("cpu"):  # whatever device a model is made on
            return DDIMScheduler(
                num_train_timesteps=self.num_steps, beta_schedule="squaredcos_cap_v2",
                prediction_type="sample" if self.predicts_actions else "epsilon",
                clip_sample=self.clip_range > 0, clip_sample_range=self.clip_range, timestep_spacing=self.spacing,
            )  # fmt: skip


def step_from_drawn_time(time: Tensor, num_steps: int) -> Tensor:
    """The diffusion step [...] of a training time [...] in [0, 1]: 0 near the action, `num_steps` - 1 at time 1.

    `flow_matching.sample_time` prefers times near the noise, diffusion training draws all steps equally often. So a
    time gives the step by the share of the drawn times that lie below it, (time - 0.001) / 0.999 to the power 3/2.
    """
    share = ((time - 0.001) / 0.999).clamp(0.0, 1.0) ** 1.5
    return ((share * num_steps).ceil().long() - 1).clamp(0, num_steps - 1)


def step_at_flow_time(time: Tensor, num_steps: int) -> Tensor:
    """The flow time [...] on the scale of the diffusion steps, as a float [...]: time 1 is the step `num_steps` - 1."""
    return time * num_steps - 1
