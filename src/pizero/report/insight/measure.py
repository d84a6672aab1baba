"""Everything that the page shows of one policy and one observation."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pizero.baseline.policy import DiffusionPolicy
from pizero.data.pipeline import Pipeline
from pizero.engine.fast_sampler import FastSampler
from pizero.envs.scene import SCENES, Scene, with_units
from pizero.model.pi0 import Pi0
from pizero.model.pi0_fast import Pi0Fast
from pizero.policy.policy import ModelPolicy
from pizero.policy.sampling import device_of, episode_noise, sampler_of
from pizero.report.architecture import Architecture, describe
from pizero.report.fast_architecture import describe_fast
from pizero.report.insight.attention import ActionAttention, Groups, key_groups, watched_attention
from pizero.report.insight.costs import ROUNDS, box_costs
from pizero.report.insight.flow import (
    Course,
    StepErrors,
    Straightness,
    adaptive_gates,
    course_of,
    step_counts,
    step_errors,
    straightness,
)  # fmt: skip
from pizero.report.insight.occlusion import Occlusion, count, occlude
from pizero.types import Observation, RobotDict, UserError

OCCLUSION_S, FINEST, COARSEST = 60.0, 16, 4
"""Seconds that the occlusion maps may take, about, and windows to a side of an image, at most and at least."""
SMALL = 100_000_000
"""Parameters up to which chunks cost next to nothing: more noises, finer steps, and the fast path beside the plain."""
GATE_TIMES = np.linspace(1.0, 0.0, 41).astype(np.float32)


@dataclass(frozen=True)
class Flow:
    """x: [steps + 1, H, d], noise to chunk in the model's units; actions: the same in robot units."""

    x: NDArray[np.float32]
    actions: NDArray[np.float32]
    straight: Straightness
    errors: StepErrors
    noises: int


@dataclass(frozen=True)
class Insight:
    """images: what the model sees, uint8 [h, w, 3] by its camera's name. words: the text of each token of the prompt.
    costs: milliseconds by box; fast_ms: a call of the fast path, timed in turn with the plain one. gates: None without
    adaptive norms. None too: attention and groups of a model without action tokens that read images, the flow of one
    that writes tokens, architecture of a diffusion policy, scene where the picture does not show positions.
    action_labels: the names with the units that are known.
    """

    kind: str
    parameters: int
    observation: Mapping[str, Any]
    num_steps: int
    action_names: tuple[str, ...]
    action_labels: tuple[str, ...]
    images: dict[str, NDArray[np.uint8]]
    words: list[str]
    architecture: Architecture | None
    costs: dict[str, float]
    fast_ms: float | None
    attention: ActionAttention | None
    groups: Groups | None
    occlusion: Occlusion
    flow: Flow | None
    gates: dict[str, NDArray[np.float32]] | None
    scene: Scene | None
    scene_camera: str = ""


def look_inside(
    policy: ModelPolicy, robot: RobotDict, action_names: tuple[str, ...] = (), seed: int = 0,
    on_part: Callable[[str], None] = lambda part: None,
) -> Insight:  # fmt: skip
    """policy: with its plain model (`load_plain_policy`). robot: what the robot saw. seed: of the noise.

    on_part is told what begins. UserError for a policy whose model was packed for the fast path.
    """
    model, pipeline = policy.model, policy.pipeline
    if not isinstance(model, Pi0 | Pi0Fast | DiffusionPolicy):
        raise UserError("to look inside a policy, load it with load_plain_policy: the fast path hides its layers")
    on_part("a chunk")
    robot = _with_subtask(policy, robot)
    device = device_of(sampler_of(model, pipeline))
    observation = pipeline.observation(pipeline.robot_inputs([robot]), device)
    noise = torch.from_numpy(episode_noise(seed, 0, policy.noise_shape))[None].to(device)
    steps, dims = policy.num_steps, pipeline.robot_action_dim

    def sample(observations: Observation) -> Tensor:
        repeated = noise.expand(observations.batch_size, -1, -1).contiguous()
        with torch.no_grad():
            return sampler_of(model, pipeline).sample_actions(observations, num_steps=steps, noise=repeated)

    attention = groups = None
    if isinstance(model, Pi0):
        with watched_attention(model) as attention:
            sample(observation)
        groups = key_groups(model, observation)
    on_part("milliseconds")
    costs, fast_ms = _costs(model, observation, lambda: sample(observation), noise, steps)
    on_part("occlusion")
    occlusion = occlude(sample, observation, _grids(model, observation, costs["TOTAL"] / 1000), dims)
    flow = None
    if not isinstance(model, Pi0Fast):
        on_part("flow")
        flow = _flow(model, observation, policy, robot, noise)
    scene = SCENES.get(pipeline.embodiment.name) if flow is not None else None
    cameras = {robot_name: name for name, robot_name in pipeline.embodiment.cameras.items()}
    action_names = action_names or tuple(f"action {i}" for i in range(dims))
    return Insight(
        kind=_kind(model), parameters=sum(parameter.numel() for parameter in model.parameters()), observation=robot,
        num_steps=steps, action_names=action_names,
        action_labels=with_units(pipeline.embodiment.name, action_names),
        images={name: _grey_levels(image) for name, image in observation.images.items()},
        words=_words(pipeline, observation), architecture=_architecture(model, observation, steps),
        costs=costs, fast_ms=fast_ms, attention=attention, groups=groups, occlusion=occlusion, flow=flow,
        gates=adaptive_gates(model, GATE_TIMES) if isinstance(model, Pi0) and model.config.adaptive else None,
        scene=scene, scene_camera=cameras.get(scene.camera, "") if scene else "",
    )  # fmt: skip


def _kind(model: Pi0 | Pi0Fast | DiffusionPolicy) -> str:
    if isinstance(model, Pi0Fast):
        return "π0-FAST"
    if isinstance(model, Pi0):
        return "π0.5" if model.config.adaptive else "π0"
    return "diffusion policy" if model.schedule is not None else "UNet with flow matching"


def _with_subtask(policy: ModelPolicy, robot: RobotDict) -> RobotDict:
    """With the text that the policy writes first, where it does."""
    if not policy.takes_subtask or robot.get("subtask") is not None:
        return robot
    return {**robot, "subtask": policy.infer(robot)["subtask"]}


def _flow(
    model: Pi0 | DiffusionPolicy, observation: Observation, policy: ModelPolicy, robot: RobotDict, noise: Tensor
) -> Flow:
    dims, past = policy.pipeline.robot_action_dim, model.config.past_actions
    small = sum(parameter.numel() for parameter in model.parameters()) <= SMALL
    noises, reference = (16, 100) if small else (4, 40)
    course: Course = course_of(model, observation)
    x = course(noise, policy.num_steps)[:, 0, past:]
    states = np.repeat(np.asarray(robot["state"])[None], len(x), axis=0)
    several = torch.randn((noises, *policy.noise_shape), generator=torch.Generator().manual_seed(0)).to(noise.device)
    counts, reference = step_counts(model, reference)
    return Flow(
        x=x[..., :dims], actions=policy.pipeline.robot_actions(x, states), noises=noises,
        straight=straightness(course, several, reference if len(counts) < 9 else 50, dims),
        errors=step_errors(course, several, counts, reference, dims),
    )  # fmt: skip


def _costs(
    model: Pi0 | Pi0Fast | DiffusionPolicy, observation: Observation, call: Callable[[], Any], noise: Tensor, steps: int
) -> tuple[dict[str, float], float | None]:
    small = sum(parameter.numel() for parameter in model.parameters()) <= SMALL
    if not (small and isinstance(model, Pi0)):
        return box_costs(model, call, ROUNDS if small else 1), None
    fast, found, seconds = FastSampler(model), list[dict[str, float]](), list[float]()
    fast.sample_actions(observation, num_steps=steps, noise=noise)
    for _ in range(ROUNDS):  # in turn, so that a machine that is busy for a while slows both
        found.append(box_costs(model, call, 1))
        start = time.perf_counter()
        fast.sample_actions(observation, num_steps=steps, noise=noise)
        seconds.append(time.perf_counter() - start)
    costs = {name: statistics.median(one[name] for one in found) for name in found[0]}
    return costs, 1000 * statistics.median(seconds)


def _grids(
    model: Pi0 | Pi0Fast | DiffusionPolicy, observation: Observation, seconds: float
) -> dict[str, tuple[int, int]]:
    """The model's own patches where the time allows; seconds: of one chunk."""
    patch = 4 if isinstance(model, DiffusionPolicy) else model.config.vision.patch_size
    finest = FINEST
    while True:
        grids = {
            name: (min(image.shape[-3] // patch, finest), min(image.shape[-2] // patch, finest))
            for name, image in observation.present_images(model.config.cameras)
        }
        if finest <= COARSEST or count(grids, observation) * seconds <= OCCLUSION_S:
            return grids
        finest //= 2


def _grey_levels(image: Tensor) -> NDArray[np.uint8]:
    """[1, (T,) h, w, 3] in [-1, 1] -> the newest, uint8 [h, w, 3]."""
    newest = image[0] if image.ndim == 4 else image[0, -1]
    return ((newest.float().cpu().numpy() + 1) * 127.5).round().clip(0, 255).astype(np.uint8)


def _words(pipeline: Pipeline, observation: Observation) -> list[str]:
    """The text that each real token adds."""
    ids = [int(token) for token in observation.prompt_tokens[0][observation.prompt_mask[0]]]
    texts = [pipeline.tokenizer.decode(ids[: end + 1]) for end in range(len(ids))]
    return [text[len(before) :] for before, text in zip(["", *texts], texts, strict=False)]


def _architecture(model: Pi0 | Pi0Fast | DiffusionPolicy, observation: Observation, steps: int) -> Architecture | None:
    if isinstance(model, DiffusionPolicy):
        return None
    cameras, tokens = len(observation.images), observation.prompt_tokens.shape[1]
    if isinstance(model, Pi0Fast):
        return describe_fast(model.config, num_cameras=cameras)
    return describe(model.config, num_cameras=cameras, prompt_tokens=tokens, num_steps=steps)
