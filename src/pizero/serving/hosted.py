"""One checkpoint of a server: its policy, its metadata, its queue; loaded, warmed up and loaded anew."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pizero import __version__
from pizero.data.openpi_robots import UNSEEN, from_openpi
from pizero.data.robot_values import whole_number
from pizero.exported.policy import ExportedPolicy
from pizero.policy.held_subtask import HeldSubtask
from pizero.policy.policy import ModelPolicy
from pizero.serving.batching import Batcher
from pizero.serving.config import ServeConfig
from pizero.serving.live import Live, Robot, small
from pizero.serving.log import log
from pizero.serving.protocol import Limits, ProtocolError, unpack
from pizero.serving.recorder import Recorder
from pizero.serving.turns import Turns
from pizero.serving.worker import Worker
from pizero.types import RobotDict, UserError

AnyPolicy: TypeAlias = ModelPolicy | ExportedPolicy
Load: TypeAlias = Callable[[], AnyPolicy]
Message = bytes | Callable[[], dict[str, Any]]
EXTRA = ("noise", "previous_actions", "inference_delay", "subtask")
"""What a robot may send beside its observation, handed on to the policy."""


@dataclass
class Hosted:
    """load: makes the policy, at the start and at each reload."""

    name: str
    load: Load
    policy: AnyPolicy
    metadata: dict[str, Any]
    batcher: Batcher
    limits: Limits
    default_prompt: str | None = None
    recorder: Recorder | None = None
    subtasks: Callable[[], HeldSubtask] = HeldSubtask
    """How long one holds that was written for a robot."""

    @classmethod
    def start(cls, name: str, load: Load, config: ServeConfig) -> Hosted:
        """Loads and warms up, which may take minutes."""
        policy, seconds = make_ready(load, config.max_batch)
        batcher = Batcher(
            lambda observations: hosted.policy.infer_batch(observations),
            max_batch=config.max_batch, max_wait=config.max_wait_ms / 1000, max_queue=config.max_queue,
        )  # fmt: skip
        batcher.slowest = seconds
        limits = Limits(max_bytes=config.max_message_mb << 20)
        hosted = cls(
            name, load, policy, describe(name, policy), batcher, limits, config.default_prompt,
            subtasks=partial(HeldSubtask, config.subtask_every, config.subtask_s),
        )  # fmt: skip
        if config.replica is not None:
            hosted.metadata["replica"] = config.replica
        if config.record is not None:
            robot = policy.pipeline.embodiment
            hosted.recorder = Recorder(
                config.record / name, robot.name, config.record_fps, robot.state_dims, robot.action_dims
            )
        return hosted

    def join(self, live: Live, address: str, owner: str, simulated: bool = False) -> Robot:
        """A robot of this checkpoint."""
        subtask = self.subtasks() if self.policy.takes_subtask else None
        return live.join(self.name, address, owner, simulated, subtask)

    async def reload(self, max_batch: int) -> None:
        """Loads beside the running policy, then takes its place between two batches.

        UserError, and the old one stays, where robots that are connected would notice another shape.
        """
        worker = Worker("reload")
        result = worker.run(make_ready, self.load, max_batch)
        worker.close()  # when that is done
        policy, _ = await result
        metadata = {**self.metadata, **describe(self.name, policy)}
        if changed := sorted(key for key in metadata if metadata[key] != self.metadata.get(key)):
            raise UserError(f"checkpoint {self.name}: {', '.join(changed)} changed; start the server anew")
        self.policy = policy

    async def read(self, message: Message, robot: Robot, turns: Turns) -> tuple[RobotDict, RobotDict]:
        """A request's observation and what it is prepared to for the model, when it is its owner's turn.

        message: as bytes, or what gives the robot's dictionary. robot: who asks; the page may have said other words in
        its place. ProtocolError or UserError says what is wrong with it. Images of the observation are as they came
        where they are recorded, else of a size to be shown: requests that wait keep no large ones.
        """
        return await turns.run(robot.owner, self._read, message, robot)

    def _read(self, message: Message, robot: Robot) -> tuple[RobotDict, RobotDict]:
        try:
            value: Any = unpack(message, self.limits) if isinstance(message, bytes) else message()
            if not isinstance(value, dict):
                raise ProtocolError(f"a request is a dictionary, got {type(value).__name__}")
            observation = robot_dictionary(value, self.policy)
            if "played" in value and robot.last.chunk is not None:
                observation |= _rest(robot.last.chunk, value["played"])
            if self.default_prompt is not None:
                observation.setdefault("prompt", self.default_prompt)
            observation = robot.question(observation)
            prepared = self.policy.prepare(observation)
            return (observation if self.recorder is not None else small(observation)), prepared
        except (UserError, ProtocolError):
            raise
        except (TypeError, ValueError, OverflowError) as error:
            log("unreadable observation", checkpoint=self.name, error_type=type(error).__name__, at_most=5)
            raise UserError("the observation cannot be read; expected numbers, images and texts") from error


def robot_dictionary(value: Mapping[Any, Any], policy: AnyPolicy) -> RobotDict:
    """A request as the policy takes it: in pizero's own form, or in openpi's, whatever robot it is.

    A camera that the checkpoint does not know is refused, as it would be one that the policy does not see; so is a
    subtask for a policy that takes none.
    """
    embodiment = policy.pipeline.embodiment
    if isinstance(images := value.get("images"), Mapping):
        known = set(embodiment.cameras.values())
        if unknown := sorted(map(str, set(images) - known - UNSEEN)):
            raise UserError(f"images: got cameras {unknown}, this checkpoint has {sorted(known)}")
        value = {**value, "images": {name: image for name, image in images.items() if image is not None}}
    robot = from_openpi(value, embodiment)
    robot |= {key: value[key] for key in EXTRA if key in value}
    if robot.get("subtask") is not None and not policy.takes_subtask:
        raise UserError("subtask: this policy was not trained with text and takes none; say it in the prompt")
    return robot


def _rest(chunk: NDArray[np.float32], played: Any) -> RobotDict:
    """What is left of a connection's chunk after so many of its actions, to be continued; nothing where it is over."""
    count = whole_number("played", played, "actions")
    return {"previous_actions": chunk[count:]} if count < len(chunk) else {}


def describe(name: str, policy: AnyPolicy) -> dict[str, Any]:
    """What a server says first on each connection; which dimensions it takes and gives where the robot chooses some."""
    pipeline = policy.pipeline
    chosen = {"state_dims": pipeline.embodiment.state_dims, "action_dims": pipeline.embodiment.action_dims}
    return {
        "server": "pizero",
        "version": __version__,
        "checkpoint": name,
        "embodiment": pipeline.embodiment.name,
        "cameras": list(pipeline.embodiment.cameras.values()),
        "image_size": list(pipeline.image_size),
        "state_dim": pipeline.robot_state_dim,
        "action_dim": pipeline.robot_action_dim,
        "action_horizon": policy.horizon,
        "num_history": policy.num_history,
        "num_steps": policy.num_steps,
        "takes_subtask": policy.takes_subtask,
        **{key: list(dims) for key, dims in chosen.items() if dims},
    }


def blank_observation(policy: AnyPolicy) -> RobotDict:
    """Zeros that the policy takes."""
    pipeline = policy.pipeline
    history = (policy.num_history,) if policy.num_history > 1 else ()
    image = np.zeros((*history, *pipeline.image_size, 3), np.uint8)
    return {
        "state": np.zeros((*history, pipeline.robot_state_dim), np.float32),
        "images": dict.fromkeys(pipeline.embodiment.cameras.values(), image),
        "prompt": "wait",
    }


def make_ready(load: Load, max_batch: int) -> tuple[AnyPolicy, float]:
    """The policy, warmed up, and the seconds of its largest call."""
    policy = load()
    observation = blank_observation(policy)
    policy.warm_up(observation, max_batch)
    started = time.monotonic()
    for size in sorted({1, max_batch}):
        started = time.monotonic()
        policy.infer_batch([observation] * size)
    return policy, time.monotonic() - started
