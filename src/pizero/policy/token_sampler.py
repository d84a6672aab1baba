"""A model that writes action tokens, as a sampler of action chunks: its tokens are decoded by the pipeline's codec."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from pizero.data.pipeline import Pipeline
from pizero.model.flow_matching import ActionPrefix, Solver, Velocity
from pizero.model.pi0_fast import END_ID, PADDING_ID, Constraint, Pi0FastConfig
from pizero.policy.action_constraint import ActionConstraint
from pizero.types import Observation, UserError


class TokenWriter(Protocol):
    """`Pi0Fast`, or what runs one faster."""

    config: Pi0FastConfig

    def generate(
        self, observation: Observation, max_tokens: int, *, temperature: float = 0.0, top_p: float = 1.0,
        uniform: Tensor | None = None, constraint: Constraint | None = None,
    ) -> Tensor: ...  # fmt: skip


class TokenSampler:
    """An `ActionSampler`. Decoding is constrained to whole chunks unless the model's config says otherwise."""

    def __init__(self, writer: TokenWriter, pipeline: Pipeline) -> None:
        """UserError where the codec has no chunk of the model's horizon and the robot's actions."""
        if pipeline.fast is None:
            raise UserError("the model writes actions as tokens: its pipeline needs their codec")
        self.writer, self._tokenizer = writer, pipeline.fast
        self._shape = writer.config.action_horizon, pipeline.robot_action_dim
        self._tokenizer.grammar(*self._shape)
        self.chunks = self.tokens = self.malformed = 0
        """Chunks so far, their tokens, and those that were none, which decoding without the constraint makes."""

    @property
    def config(self) -> Pi0FastConfig:
        return self.writer.config

    @property
    def device(self) -> torch.device | None:
        own = getattr(self.writer, "device", None)
        if own is None and isinstance(self.writer, torch.nn.Module):
            own = next((parameter.device for parameter in self.writer.parameters()), None)
        return own

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
        """Normalised actions [B, H, D], float32.

        noise [B, H, D] decides what is drawn above temperature 0, row by row; without it `generator` does. ValueError
        for what is of flow matching: several steps, another solver, a chunk to continue.
        """
        if settled is not None or guide is not None:
            raise ValueError("settled and guide: a π0-FAST writes tokens and cannot continue a chunk")
        if num_steps not in (None, 1) or solver != "euler":
            raise ValueError("num_steps and solver: a π0-FAST writes tokens, nothing is integrated")
        config, batch, device = self.config, observation.batch_size, observation.prompt_tokens.device
        constraint = ActionConstraint(self._tokenizer, *self._shape, batch, device)
        uniform = None
        if config.temperature > 0:
            uniform = _uniform(noise, batch, constraint.max_tokens, generator)
        tokens = self.writer.generate(
            observation, constraint.max_tokens, temperature=config.temperature, top_p=config.top_p, uniform=uniform,
            constraint=constraint if config.constrained else None,
        )  # fmt: skip
        actions = np.zeros((batch, config.action_horizon, config.action_dim), np.float32)
        for row, ids in enumerate(cast("list[list[int]]", cast(Any, tokens).tolist())):
            actions[row, :, : self._shape[1]] = self._decode(ids)
        return torch.from_numpy(actions).to(device)  # pyright: ignore[reportUnknownMemberType]

    def _decode(self, ids: list[int]) -> NDArray[np.float64]:
        self.chunks += 1
        self.tokens += sum(token != PADDING_ID for token in ids)
        try:
            if END_ID not in ids:
                raise UserError(f"FAST codec: {len(ids)} tokens without an end")
            return self._tokenizer.decode(ids, *self._shape)
        except UserError:
            if self.config.constrained:
                raise
            self.malformed += 1
            return np.zeros(self._shape)


def _uniform(noise: Tensor | None, batch: int, count: int, generator: Generator | None) -> Tensor:
    """[B, count] in [0, 1): each row's from its own noise, so that the other rows change nothing."""
    if noise is None:
        return torch.rand(batch, count, generator=generator)
    rows = [row.detach().cpu().float().numpy().tobytes() for row in noise]
    seeds = [int.from_bytes(hashlib.blake2b(row, digest_size=8).digest(), "little") for row in rows]
    drawn = np.stack([np.random.default_rng(seed).random(count, dtype=np.float32) for seed in seeds])
    return torch.from_numpy(drawn)  # pyright: ignore[reportUnknownMemberType]
