"""Raw robot dictionaries in, action chunks in robot units out: a model with its pipeline and its noise."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pizero.checkpoints.facts import given, make_pipeline, pipeline_facts, unknown
from pizero.checkpoints.load import open_checkpoint
from pizero.checkpoints.models import usable_device
from pizero.checkpoints.native.checkpoint import Checkpoint, load_example, load_robots, torch_dtype, verify_example
from pizero.checkpoints.native.example import device_of, sample_chunks
from pizero.checkpoints.source import Arch
from pizero.data.embodiments import Embodiment
from pizero.data.norm_stats import NormStats
from pizero.data.pipeline import Pipeline
from pizero.data.tokenizer import PaligemmaTokenizer
from pizero.engine.fast_sampler import FastSampler
from pizero.engine.products import Kernels, check_kernels
from pizero.engine.warm_up import padded_batch, warm_up
from pizero.model.config import Pi0Config
from pizero.model.pi0 import Pi0
from pizero.policy.real_time import FAR, RealTime, sampling_options
from pizero.types import ActionModel, RobotDict, UserError


class ModelPolicy:
    """Implements `Policy` with a model and the pipeline of its checkpoint. A π0 is run by `FastSampler`, unless `fast`
    is false, as for a model in training: its weights stay where they are.

    device: where a model is that is no module and has no attribute `device`; any other tells it. num_steps: of
    sampling; None takes the model's own number. seed: of the noise, drawn on the host and observation by observation,
    so that a batch gets the noise that the same observations get one by one.
    real_time: how "previous_actions" of an observation are continued (`policy/real_time.py`).
    """

    def __init__(
        self,
        model: ActionModel,
        pipeline: Pipeline,
        *,
        device: str | torch.device | None = None,
        num_steps: int | None = None,
        seed: int = 0,
        fast: bool = True,
        real_time: RealTime | None = None,
    ) -> None:
        config = model.config
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
        self.real_time = real_time or RealTime()
        self._sampler = FastSampler(model) if fast and isinstance(model, Pi0) else model
        self.num_history = pipeline.num_history
        """Observations T that a robot dictionary brings."""
        self.noise_shape: tuple[int, int] = (config.action_horizon, config.action_dim)
        """Of one observation's noise: (H, action_dim)."""
        self._told_device = device
        self._generator = torch.Generator().manual_seed(seed)

    def infer(self, observation: RobotDict) -> dict[str, Any]:
        """{"actions": float32 [H, robot_action_dim]}; the observation may bring its own "noise" [H, action_dim].

        Beside it "policy_timing": milliseconds {"inputs_ms", "model_ms", "outputs_ms"} of the call.

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
        device = device_of(self._sampler, self._told_device)
        options = sampling_options(observations, self.pipeline, self.model.config, self.real_time, device)
        actions = sample_chunks(
            self._sampler, self.pipeline, observations, noise, self.num_steps, device, timing, **options
        )[:count]
        bad = np.flatnonzero(~np.isfinite(actions).all(axis=(1, 2)))
        if bad.size:
            raise RuntimeError(
                f"the model gave NaN or Inf actions for observations {bad.tolist()} of a batch of {len(actions)}; "
                "check the weights, or use float32"
            )
        return [{"actions": chunk, "policy_timing": dict(timing)} for chunk in actions]

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
        """The observation checked by itself, with images of the model's size: it needs less work in a batch.

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
        try:
            noise = np.asarray(given, dtype=np.float32)
        except (TypeError, ValueError):
            raise UserError(f"noise: got {type(given).__name__}, expected an array of numbers") from None
        if noise.shape != self.noise_shape or not (np.abs(noise) <= FAR).all():
            raise UserError(
                f"noise: got shape {noise.shape}, expected {self.noise_shape} (H, action_dim), within {FAR:g}"
            )
        return noise


def load_policy(
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: str = "float32",
    kernels: Kernels = "auto",
    keep: Sequence[str] = (),
    num_steps: int | None = None,
    seed: int = 0,
    verify: bool = False,
    real_time: RealTime | None = None,
    adapters: str | Path | None = None,
    arch: Arch | str | Path | None = None,
    embodiment: Embodiment | str | None = None,
    norm_stats: NormStats | str | Path | None = None,
    tokenizer: PaligemmaTokenizer | str | Path | None = None,
) -> ModelPolicy:
    """The policy of a checkpoint of any known format; path, dtype, arch as for `load_model`.

    embodiment (or its name), norm_stats (or its file, or the folder that holds it; openpi's norm_stats.json too, whose
    mode the model tells), tokenizer (or its file): what the checkpoint does not tell; UserError says what is missing.
    Given all the same, they take the place of the checkpoint's own. The name of one of the robots that a mixture was
    trained for gives that robot with its statistics; without it the first of them is run.
    kernels, keep: as for `FastSampler`; "int8" and "float8" are faster and change the numbers. UserError before weights
    are read where this machine does not have them for this dtype. num_steps, seed, real_time: as for `ModelPolicy`.
    verify: run the stored example first; UserError if it fails or there is none, as with adapters.
    adapters: folder of LoRA adapters that were trained from this checkpoint; they are merged, and tell the robot.
    """
    folder, source = open_checkpoint(path, arch, adapters)
    for note in source.notes:
        warnings.warn(note, stacklevel=2)
    known = source.facts
    if isinstance(embodiment, str) and embodiment in (robots := load_robots(folder)):
        known = pipeline_facts(robots[embodiment])
    named = known.embodiment is not None and known.embodiment.name == embodiment
    facts = given(known, None if named else embodiment, norm_stats, tokenizer, source.config)
    pipeline = make_pipeline(source.config, facts)  # before gigabytes are read
    if isinstance(source.config, Pi0Config):
        check_kernels(kernels, usable_device(device), torch_dtype(dtype))
    elif kernels != "auto":
        raise UserError(f"{kernels} kernels are for π0 and π0.5, and {folder} is neither")
    model = source.build(device, torch_dtype(dtype))
    if verify:
        own = pipeline if unknown(source.facts) else make_pipeline(source.config, source.facts)
        example = load_example(folder) if adapters is None else None
        verify_example(Checkpoint(model, own, example))  # it was stored with the checkpoint's own
    sampler: ActionModel = model
    if isinstance(model, Pi0):
        sampler = FastSampler(model, kernels=kernels, keep=keep, consume=True)
    return ModelPolicy(sampler, pipeline, num_steps=num_steps, seed=seed, real_time=real_time)
