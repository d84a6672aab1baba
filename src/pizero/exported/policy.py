"""An exported policy: robot dictionaries in, action chunks in robot units out, as `ModelPolicy` has it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pizero.data.example import Example
from pizero.data.layouts import Layout
from pizero.data.old_chunk import old_chunk
from pizero.data.pipeline import Pipeline
from pizero.data.robot_values import FAR, float_array
from pizero.exported.manifest import Manifest, read_manifest
from pizero.exported.samplers import SAMPLERS, Prefix
from pizero.types import RobotDict, UserError, check_whole

EXAMPLE = "example.npz"
TOLERANCES = {"float32": 1e-3, "bfloat16": 1e-1, "float16": 3e-2, "int8": 3e-1}
"""Largest difference from pizero's own chunk, as a part of each action dimension's largest value, by dtype."""


def load_exported(
    folder: Path | str, *, seed: int = 0, threads: int | None = None, verify: bool = False
) -> ExportedPolicy:
    """The policy that `pizero export` wrote to a folder. UserError where a file is missing, changed or foreign.

    seed: of the noise; other numbers than those of a `ModelPolicy` with the same seed. threads: of the runtime; None
    lets it choose. verify: read and hash all weights, and run the stored example.
    """
    folder = Path(folder)
    if threads is not None:
        check_whole("threads", threads)
    manifest = read_manifest(folder, verify)
    pipeline = Pipeline.load(folder)
    model, known = (manifest.action_dim, manifest.num_history), (pipeline.action_dim, pipeline.num_history)
    writes = pipeline.text_length > 0
    if model != known or pipeline.cameras != manifest.cameras or writes != manifest.writes_text:
        raise UserError(f"{folder}: pipeline.json and manifest.json do not fit together; copy the export again")
    policy = ExportedPolicy(manifest, pipeline, SAMPLERS[manifest.kind](folder, manifest, threads), seed)
    if verify:
        reproduce(policy, Example.load(folder / EXAMPLE))
    return policy


def reproduce(policy: ExportedPolicy, example: Example) -> tuple[float, float]:
    """Runs the stored example; the largest difference, as for `TOLERANCES`, and in robot units. UserError when the
    first is above.
    """
    asked = policy.noise_shape, policy.num_steps, policy.takes_subtask
    if (example.noise.shape, example.num_steps, "subtask" in example.observation) != asked:
        raise UserError("the stored example is of another model; copy the export again")
    actions = policy.infer({**example.observation, "noise": example.noise})["actions"]
    error = example.error(actions)
    tolerance = TOLERANCES[policy.manifest.dtype]
    if not error <= tolerance:  # NaN fails as well
        raise UserError(
            f"the exported policy's chunk is not pizero's: {error:.2g} of an action dimension's largest value apart, "
            f"at most {tolerance:g} allowed in {policy.manifest.dtype}"
        )
    if policy.manifest.dtype == "float32" and (texts := other_text(policy, example)):
        raise UserError(f"for the stored example the exported policy writes {texts[0]!r}, pizero {texts[1]!r}")
    return error, float(np.abs(actions - example.actions).max())


def other_text(policy: ExportedPolicy, example: Example) -> tuple[str, str] | None:
    """What a policy writes for the stored example, and what pizero wrote; None where it is the same, or no text."""
    if not policy.takes_subtask:
        return None
    expected = example.observation["subtask"]
    written = policy.infer({**example.observation, "subtask": None})["subtask"]
    return None if written == expected else (written, expected)


class ExportedPolicy:
    """Implements `Policy`. Observations of a batch run one after the other."""

    subtask_every = 1

    def __init__(self, manifest: Manifest, pipeline: Pipeline, sampler: Any, seed: int = 0) -> None:
        self.manifest, self.pipeline, self.num_steps = manifest, pipeline, manifest.num_steps
        self.num_history = manifest.num_history
        self.noise_shape: tuple[int, int] = (manifest.action_horizon, manifest.action_dim)
        """Of one observation's noise: (H, action_dim)."""
        self.horizon = manifest.action_horizon - manifest.past_actions
        """Actions of a chunk that are played."""
        self._sampler = sampler
        self._generator = np.random.default_rng(seed)

    @property
    def takes_subtask(self) -> bool:
        """As `ModelPolicy.takes_subtask`: without the key "subtask", or with None, the model writes it itself."""
        return self.manifest.writes_text

    def infer(self, observation: RobotDict) -> dict[str, Any]:
        """As `ModelPolicy.infer`; "previous_actions" are continued by an export of a model that was trained with
        delays, UserError otherwise.
        """
        marks = [time.perf_counter()]
        noise = self._noise(observation)
        settled = self._settled(observation)
        timing: dict[str, float] = {}
        written: dict[str, Any] = {}
        if self.takes_subtask and observation.get("subtask") is None:
            observation, written["written"] = self._with_text(observation)
            marks.append(time.perf_counter())
            timing["text_ms"] = 1000 * (marks[1] - marks.pop(0))
        inputs = self.pipeline.robot_inputs([observation])
        marks.append(time.perf_counter())
        with np.errstate(over="ignore", invalid="ignore"):
            chunk = self._sampler(inputs, noise, settled, **written)
        marks.append(time.perf_counter())
        if not np.isfinite(chunk).all():
            raise RuntimeError("the exported model gave NaN or Inf actions; check the weights, or export in float32")
        state = np.asarray(observation["state"])[None]
        actions = self.pipeline.robot_actions(chunk[None, self.manifest.past_actions :], state)[0]
        marks.append(time.perf_counter())
        stages = ("inputs_ms", "model_ms", "outputs_ms")
        timing |= {stage: 1000 * (b - a) for stage, a, b in zip(stages, marks, marks[1:], strict=False)}
        answer: dict[str, Any] = {"actions": actions, "policy_timing": timing}
        return {**answer, "subtask": observation["subtask"]} if self.takes_subtask else answer

    def _with_text(self, observation: RobotDict) -> tuple[RobotDict, Prefix]:
        """The observation with the subtask that the model writes for it, and what its images and prompt came to."""
        pipeline = self.pipeline
        assert pipeline.layout is not None
        layout = Layout(pipeline.layout, pipeline.tokenizer)
        question = pipeline.robot_inputs([{**observation, "subtask": None}], question=True)
        tokens, prefix = self._sampler.write(question, pipeline.text_length, layout.closing, pipeline.prompt_length)
        return {**observation, "subtask": layout.read(tokens)}, prefix

    def infer_batch(self, observations: Sequence[RobotDict]) -> list[dict[str, Any]]:
        return [self.infer(observation) for observation in observations]

    def warm_up(self, observation: RobotDict, max_batch: int) -> None:
        """Nothing: a graph is ready when it is opened."""

    def prepare(self, observation: RobotDict) -> RobotDict:
        """The observation, checked by itself. UserError as for `infer`."""
        inputs = self.pipeline.robot_inputs([observation])
        if "state" in inputs and not (np.abs(inputs["state"][0]) <= FAR).all():
            raise UserError("state: it lies further from the training data than any robot's")
        self._settled(observation)
        if observation.get("noise") is not None:
            self._noise(observation)
        return observation

    def _noise(self, observation: RobotDict) -> NDArray[np.float32]:
        given = observation.get("noise")
        if given is None:
            return self._generator.standard_normal(self.noise_shape, np.float32)
        noise = float_array("noise", given)
        if noise.shape != self.noise_shape or not (np.abs(noise) <= FAR).all():
            raise UserError(
                f"noise: got shape {noise.shape}, expected {self.noise_shape} (H, action_dim), within {FAR:g}"
            )
        return noise

    def _settled(self, observation: RobotDict) -> NDArray[np.float32] | None:
        """Actions [n, action_dim] that the chunk begins with, at most as many as the model was trained to continue."""
        if "previous_actions" not in observation:
            return None
        if not self.manifest.max_delay:
            raise UserError(
                "previous_actions: this export cannot continue a chunk, since its model was not trained with delays "
                "(pizero train --max-delay); play whole chunks of it"
            )
        old = old_chunk(observation, self.pipeline, self.manifest.action_horizon)
        return old.actions[: min(old.delay, self.manifest.max_delay)]
