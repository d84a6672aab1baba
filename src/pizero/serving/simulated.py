"""A robot in the built-in simulator that the server's own policy moves, so that one can watch it act."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any

import numpy as np

from pizero.data.embodiments import tabletop
from pizero.envs.tabletop.env import TabletopEnv
from pizero.envs.tabletop.long import TabletopLongEnv
from pizero.serving.batching import BusyError
from pizero.serving.hosted import Hosted
from pizero.serving.live import Robot
from pizero.serving.log import log
from pizero.serving.service import Service
from pizero.types import RobotDict

FIRST_SEED = 2_000_000
"""Far from the seeds of demonstrations and evaluations."""


class Simulation:
    """At most one simulated robot; it asks like any other, through the same queue."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._task: asyncio.Task[None] | None = None
        self.robot: Robot | None = None
        self.episodes = self.successes = self._seed = 0

    async def start(self, checkpoint: str) -> None:
        """Starts with a checkpoint that fits, unless one runs."""
        hosted = self._service.hosted.get(checkpoint)
        if hosted is None or not fits(hosted) or self._task is not None or self._service.draining:
            return
        self.episodes = self.successes = 0
        self._task = asyncio.create_task(self._play(hosted))

    async def stop(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    def to_json(self) -> dict[str, Any]:
        return {
            "checkpoints": [name for name, hosted in self._service.hosted.items() if fits(hosted)],
            "robot": None if self.robot is None else self.robot.number,
            "episodes": self.episodes,
            "successes": self.successes,
        }

    async def _play(self, hosted: Hosted) -> None:
        robot = self.robot = hosted.join(self._service.live, "built-in simulator", "simulator", simulated=True)
        log("simulated robot started", robot=robot.number, checkpoint=hosted.name)
        try:
            kind = TabletopEnv if robot.subtask is None else TabletopLongEnv
            env = kind(image_size=max(hosted.metadata["image_size"]), render_in_step=False)
            while True:
                await self._episode(env, hosted, robot)
                await asyncio.sleep(1.0)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            log("simulated robot failed", error=error)
        finally:
            self.robot, self._task = None, None
            self._service.live.leave(robot)
            hosted.batcher.forget(robot)
            log("simulated robot stopped", robot=robot.number, episodes=self.episodes)

    async def _episode(self, env: TabletopEnv, hosted: Hosted, robot: Robot) -> None:
        """One episode in real time; half of each chunk is played."""
        run = self._service.turns.run
        env.reset(seed=FIRST_SEED + self._seed)
        self._seed += 1
        execution_horizon = max(hosted.metadata["action_horizon"] // 2, 1)
        if robot.subtask is not None:
            robot.subtask.forget()
        done = own_words = False
        success = False
        while not done:
            observation = await run(robot.owner, env.observe)
            own_words |= robot.new_prompt is not None or robot.new_subtask is not None
            chunk = await self._chunk(hosted, robot, robot.question(observation))
            for action in chunk[:execution_horizon]:
                _, _, success, truncated, _ = env.step(action)
                robot.last.picture = await run(robot.owner, env.render)
                robot.last.pictures += 1
                await asyncio.sleep(1 / env.fps)
                if done := success or truncated:
                    break
            robot.last.played = chunk[:execution_horizon]
        if not own_words:  # success is of the scene's own task
            self.episodes, self.successes = self.episodes + 1, self.successes + success

    async def _chunk(self, hosted: Hosted, robot: Robot, observation: RobotDict) -> np.ndarray[Any, Any]:
        started = time.monotonic()
        prepared = await self._service.turns.run(robot.owner, hosted.policy.prepare, observation)
        while True:
            try:
                return (await self._service.ask(hosted, robot, observation, prepared, started))["actions"]
            except BusyError:
                await asyncio.sleep(0.2)


def fits(hosted: Hosted) -> bool:
    """Whether a checkpoint moves the simulator's robot."""
    robot, own = hosted.metadata, tabletop()
    expected = (own.state_dim, own.action_dim, sorted(own.cameras.values()), 1)
    return (robot["state_dim"], robot["action_dim"], sorted(robot["cameras"]), robot["num_history"]) == expected
