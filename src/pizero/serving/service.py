"""What the parts of one server share: its checkpoints, who is connected, the turns they take, the figures."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from pizero.serving.config import ServeConfig
from pizero.serving.gate import Gate
from pizero.serving.hosted import Hosted, Load
from pizero.serving.live import Live, Robot
from pizero.serving.metrics import Metrics
from pizero.serving.turns import Turns
from pizero.serving.vla_eval import PATH
from pizero.types import RobotDict


class Service:
    """checkpoints: name -> how its policy is loaded; the first is the one at /. Loads them, which may take minutes."""

    def __init__(self, checkpoints: Mapping[str, Load], config: ServeConfig) -> None:
        self.config = config
        self.hosted = {name: Hosted.start(name, load, config) for name, load in checkpoints.items()}
        self.live, self.metrics, self.gate, self.turns = Live(), Metrics(), Gate(config), Turns()
        self.draining = False
        for name, hosted in self.hosted.items():
            self.metrics.watch_queue(name, lambda hosted=hosted: hosted.batcher.length)

    def find(self, path: str) -> Hosted | None:
        """The checkpoint at a path; None where there is none."""
        name = path.removesuffix(PATH).strip("/")
        return self.hosted.get(name) if name else next(iter(self.hosted.values()))

    def ill(self) -> str:
        """Why robots get no answers; nothing where they do."""
        stuck = {name: hosted.batcher.calling for name, hosted in self.hosted.items() if hosted.batcher.stuck}
        return "; ".join(f"the model call of {name} runs for {seconds:.0f} s" for name, seconds in stuck.items())

    async def ask(
        self, hosted: Hosted, robot: Robot, observation: RobotDict, prepared: RobotDict, started: float
    ) -> dict[str, Any]:
        """The reply to an observation, with "server_timing"; the robot's figures, the metrics and the recording learn
        of it. started: when its preparation did.
        """
        robot.prompt = robot.prompt if robot.new_prompt is not None else observation.get("prompt", "")
        seconds = {"prepare": time.monotonic() - started}
        answer = await hosted.batcher.ask(prepared, owner=robot.owner, robot=robot)
        seconds |= {"queue": answer.queued, "infer": answer.inferred}
        for stage, value in seconds.items():
            self.metrics.stages.labels(hosted.name, stage).observe(value)
        self.metrics.batches.labels(hosted.name).observe(answer.batch)
        self.metrics.requests.labels(hosted.name).inc()
        robot.figures.timing = {f"{stage}_ms": 1000 * value for stage, value in seconds.items()} | {
            "batch": answer.batch
        }
        robot.remember(observation, answer.reply, time.monotonic() - started)
        if hosted.recorder is not None:
            reply = answer.reply
            await hosted.recorder.add(robot.number, observation, reply["actions"][0], reply.get("subtask"))
        return {**answer.reply, "server_timing": robot.figures.timing}
