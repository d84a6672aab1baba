"""Raw robot dictionaries in, action chunks in robot units out: a model with its pipeline and its noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pizero.data.pipeline import Pipeline
from pizero.data.robot_values import FAR, float_array
from pizero.engine.fast_sampler import FastSampler
from pizero.engine.fast_writer import FastWriter
from pizero.engine.warm_up import padded_batch, warm_up
from pizero.model.action_model import ActionSampler
from pizero.model.pi0 import Pi0
from pizero.model.pi0_fast import Pi0Fast, Pi0FastConfig
from pizero.policy.real_time import RealTime, sampling_options
from pizero.policy.sampling import device_of, sample_chunks, sampler_of
from pizero.policy.subtasks import with_subtasks
from pizero.types import RobotDict, UserError


class ModelPolicy:
    """Implements `Policy` with a model and the pipeline of its checkpoint. A π0 is run by `FastSampler`, a π0-FAST by
    `FastWriter`, unless `fast` is false, as for a model in training: its weights stay where they are.

    device: where a model is that is no module and has no attribute `device`; any other knows it. num_steps: of
    sampling; None takes the model's own number. seed: of the noise, drawn on the host and observation by observation,
    so that a batch gets the noise that the same observations get one by one.
    real_time: how "previous_actions" of an observation are continued (`policy/real_time.py`).
    """

    def __init__(
        self,
        model: ActionSampler | Pi0Fast | FastWriter,
        pipeline: Pipeline,
        *,
        device: str | torch.device | None = None,
        num_steps: int | None = None,
        seed: int = 0,
        fast: bool = True,
        real_time: RealTime | None = None,
    ) -> None:
        config = model.config
        if isinstance(config, Pi0FastConfig) and num_steps not in (None, 1):
            raise UserError(f"num_steps {num_steps}: a π0-FAST writes tokens and integrates nothing; leave it out")
        num_steps = config.default_num_steps if num_steps is None else num_steps
        if num_steps < 1:
            raise UserError(f"num_steps must be at least 1, got {num_steps}")
        if config.action_dim != pipeline.action_dim:
            raise UserError(f"the model has action_dim {config.action_dim}, its pipeline {pipeline.action_dim}")
        if config.num_history != pipeline.num_history:
            raise UserError(
                f"the model reads a history of {config.num_history} observations, its pipeline {pipeline.num_history}"
            )
        self.model, self.pipeline, self.num_steps = model, pipeline, num_steps
        self.real_time = (real_time or RealTime()).in_steps(num_steps)
        if fast and isinstance(model, Pi0):
            self._sampler: ActionSampler = FastSampler(model)
        else:
            self._sampler = sampler_of(FastWriter(model) if fast and isinstance(model, Pi0Fast) else model, pipeline)
        self.subtask_every = 1
        """Chunks for which whoever asks sends a subtask back that the model wrote, before it writes the next one."""
        self.num_history = pipeline.num_history
        """Observations T that a robot dictionary brings."""
        self.noise_shape: tuple[int, int] = (config.action_horizon, config.action_dim)
        """Of one observation's noise: (H, action_dim)."""
        self.horizon = config.action_horizon - config.past_actions
        """Actions of a chunk that are played."""
        self._told_device = device
        self._generator = torch.Generator().manual_seed(seed)

    @property
    def takes_subtask(self) -> bool:
        """Whether the key "subtask" of an observation says what is to be done now. Without the key, or with None, the
        model writes it itself; with an empty text it acts without.
        """
        return self.pipeline.text_length > 0

    def infer(self, observation: RobotDict) -> dict[str, Any]:
        """{"actions": float32 [H, robot_action_dim]}; the observation may bring its own "noise" [H, action_dim].

        Beside it "policy_timing": milliseconds {"inputs_ms", "model_ms", "outputs_ms"} of the call. A policy that
        `takes_subtask` answers with "subtask", the text that the actions are for, and where it wrote one "text_ms".

        UserError names the key whose value is missing, of the wrong shape or type, or not finite.
        """
        return self.infer_batch([observation])[0]

    def infer_batch(self, observations: Sequence[RobotDict]) -> list[dict[str, Any]]:
        """The same for several observations in one model call."""
        if not observations:
            return []
        noise, count = np.stack([self._noise(observation) for observation in observations]), len(observations)
        if self._is_static:  # to a size that is compiled and captured
            rows = [min(row, count - 1) for row in range(padded_batch(count))]
            observations, noise = [observations[row] for row in rows], noise[rows]
        timing: dict[str, float] = {}
        sampler, device = self._sampler, device_of(self._sampler, self._told_device)
        if self.takes_subtask:
            observations, sampler = with_subtasks(sampler, self.pipeline, observations, device, timing)
        options = sampling_options(observations, self.pipeline, self.model.config, self.real_time, device)
        actions = sample_chunks(sampler, self.pipeline, observations, noise, self.num_steps, device, timing, **options)[
            :count
        ]
        bad = np.flatnonzero(~np.isfinite(actions).all(axis=(1, 2)))
        if bad.size:
            raise RuntimeError(
                f"the model gave NaN or Inf actions for observations {bad.tolist()} of a batch of {len(actions)}; "
                "check the weights, or use float32"
            )
        answers = [{"actions": chunk, "policy_timing": dict(timing)} for chunk in actions]
        if not self.takes_subtask:
            return answers
        return [{**answer, "subtask": seen["subtask"]} for answer, seen in zip(answers, observations, strict=False)]

    def warm_up(self, observation: RobotDict, max_batch: int) -> None:
        """Compiles and captures now, on a GPU, all that batches of up to `max_batch` will need, which takes minutes.

        observation: with an image of every camera; its values do not matter.
        """
        if self._is_static and isinstance(self._sampler, FastSampler):
            device = device_of(self._sampler)
            inputs = self.pipeline.observation(self.pipeline.robot_inputs([observation]), device)
            warm_up(self._sampler, inputs, self.num_steps, max_batch)

    @property
    def _is_static(self) -> bool:
        return isinstance(self._sampler, FastSampler) and self._sampler.static

    def prepare(self, observation: RobotDict) -> RobotDict:
        """The observation checked alone, with images of the model's size: it needs less work in a batch.

        UserError as for `infer`. Does not use the model, so that it may run while another thread does.
        """
        inputs = self.pipeline.robot_inputs([observation])
        if "state" in inputs and (far := np.flatnonzero(~(np.abs(inputs["state"][0]) <= FAR).reshape(-1))).size:
            raise UserError(f"state: dimensions {far.tolist()} lie further from the training data than any robot's")
        if observation.get("noise") is not None:
            self._noise(observation)
        sampling_options([observation], self.pipeline, self.model.config, self.real_time, torch.device("cpu"))
        if self.pipeline.convention != "openpi":  # whose small images are grey levels that `infer` takes again
            return observation
        images = {
            robot: inputs["images"][camera][0] if inputs["image_masks"][camera][0] else None
            for camera, robot in self.pipeline.embodiment.cameras.items()
        }
        return {**observation, "images": images}

    def _noise(self, observation: RobotDict) -> NDArray[np.float32]:
        given = observation.get("noise")
        if given is None:
            return torch.randn(self.noise_shape, generator=self._generator).numpy()
        noise = float_array("noise", given)
        if noise.shape != self.noise_shape or not (np.abs(noise) <= FAR).all():
            raise UserError(
                f"noise: got shape {noise.shape}, expected {self.noise_shape} (H, action_dim), within {FAR:g}"
            )
        return noise
