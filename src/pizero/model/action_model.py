"""What every network that makes action chunks offers, and how each of them starts from noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar, runtime_checkable

import torch
from torch import Generator, Tensor

from pizero.model.flow_matching import ActionPrefix, Sampling, Solver, Velocity
from pizero.types import Observation


class ActionModelConfig(Protocol):
    """What a model's config says of its action chunk [action_horizon, action_dim] and of how it is used."""

    @property
    def action_horizon(self) -> int: ...
    @property
    def action_dim(self) -> int: ...
    @property
    def num_history(self) -> int:
        """Observations per sample T; 1 is the present one alone."""
        ...

    @property
    def past_actions(self) -> int:
        """Actions at the chunk's start that lie before the newest observation; they are never played."""
        ...

    @property
    def default_num_steps(self) -> int:
        """Steps of `sample_actions` where nobody says how many."""
        ...


@runtime_checkable
class ActionSampler(Protocol):
    """Maps an observation to an action chunk; all that a policy needs. `FastSampler` is one, and so is every model."""

    @property
    def config(self) -> ActionModelConfig: ...

    def sample_actions(
        self, observation: Observation, *, num_steps: int | None = None, noise: Tensor | None = None,
        generator: Generator | None = None, solver: Solver = "euler", settled: ActionPrefix | None = None,
        guide: Callable[[Velocity], Velocity] | None = None,
    ) -> Tensor: ...  # fmt: skip


@runtime_checkable
class ActionModel(ActionSampler, Protocol):
    """A network that can be trained: π0, π0.5, the diffusion policy. ValueError for an argument that it cannot take."""

    def loss(
        self, observation: Observation, actions: Tensor, *, noise: Tensor | None = None, time: Tensor | None = None,
        draws: int = 1, delay: Tensor | None = None, generator: Generator | None = None,
        action_mask: Tensor | None = None,
    ) -> Tensor: ...  # fmt: skip

    def expect_delays(self, max_delay: int) -> None:
        """Notes in the config that training gives up to so many settled actions; UserError where it cannot."""
        ...


Config = TypeVar("Config", bound=ActionModelConfig)


class ChunkFromNoise(Generic[Config]):
    """Implements `sample_actions` for a class that says, in `_sample`, how noise becomes actions."""

    config: Config

    @torch.no_grad()
    def sample_actions(
        self,
        observation: Observation,
        *,
        num_steps: int | None = None,
        noise: Tensor | None = None,
        generator: Generator | None = None,
        solver: Solver = "euler",
        settled: ActionPrefix | None = None,
        guide: Callable[[Velocity], Velocity] | None = None,
    ) -> Tensor:
        """Noise becomes an action chunk [B, H, D] (float32, normalised) in `num_steps` integration steps.

        num_steps: None takes the config's number. noise: [B, H, D], or drawn with `generator`. The observation is
        encoded once. settled: first actions of the chunk, given; for a model trained with delays. guide: changes the
        velocity.
        """
        batch, config = observation.batch_size, self.config
        if noise is None:
            shape = batch, config.action_horizon, config.action_dim
            noise = torch.randn(shape, generator=generator, device=observation.prompt_tokens.device)
        self._check_actions(noise, batch, "noise")
        if settled is not None:
            self._check_actions(settled.actions, batch, "settled")
            if tuple(settled.length.shape) != (batch,):
                raise ValueError(f"settled: got lengths of shape {tuple(settled.length.shape)}, expected {(batch,)}")
        num_steps = config.default_num_steps if num_steps is None else num_steps
        return self._sample(observation, noise, Sampling(num_steps, solver, settled, guide))

    def _sample(self, observation: Observation, noise: Tensor, sampling: Sampling) -> Tensor:
        raise NotImplementedError

    def _check_actions(self, actions: Tensor, batch: int, name: str = "actions") -> None:
        expected = (batch, self.config.action_horizon, self.config.action_dim)
        if tuple(actions.shape) != expected:
            raise ValueError(
                f"{name}: got shape {tuple(actions.shape)}, expected {expected} (batch, horizon, action_dim)"
            )
