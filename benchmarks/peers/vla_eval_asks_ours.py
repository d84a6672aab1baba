"""allenai's vla-eval harness, unmodified, plays episodes with a running `pizero serve`.

benchmarks/peers/ask_server.py starts the server and runs this where vla-eval is, and pizero is not:

    python vla_eval_asks_ours.py ws://127.0.0.1:8000

The benchmark is a stand-in that sends random pictures; connection, messages and episode runner are the harness's own.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import numpy as np
from vla_eval.benchmarks.base import StepBenchmark, StepResult
from vla_eval.connection import Connection
from vla_eval.protocol.numpy_codec import set_image_format
from vla_eval.runners.sync_runner import SyncEpisodeRunner

STEPS = 25


class Pictures(StepBenchmark):
    """A robot of two cameras, seven numbers of state and five of action, that succeeds after `STEPS` actions."""

    def __init__(self) -> None:
        super().__init__()
        self.actions: list[np.ndarray] = []

    def get_tasks(self) -> list[dict[str, Any]]:
        return [{"name": "reach the red block"}]

    def reset(self, task: dict[str, Any]) -> Any:
        self.actions = []

    def step(self, action: dict[str, Any]) -> StepResult:
        self.actions.append(action["actions"])
        done = len(self.actions) >= STEPS
        return StepResult(obs=None, reward=float(done), done=done, info={})

    def make_obs(self, raw_obs: Any, task: dict[str, Any]) -> dict[str, Any]:
        rng = np.random.default_rng(len(self.actions))
        images = {name: rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for name in ("agentview", "wrist")}
        return {"images": images, "states": rng.uniform(-1, 1, 7), "task_description": task["name"]}

    def check_done(self, step_result: StepResult) -> bool:
        return step_result.done

    def get_step_result(self, step_result: StepResult) -> dict[str, Any]:
        return {"success": step_result.done}

    def get_metadata(self) -> dict[str, Any]:
        return {"max_steps": 50}

    def get_action_spec(self) -> Any:
        raise NotImplementedError

    get_observation_spec = get_action_spec


async def main(uri: str) -> None:
    benchmark, runner = Pictures(), SyncEpisodeRunner()
    async with Connection(uri + "/vla-eval") as connection:
        print("server", connection.server_info)
        for image_format in ("png", "jpeg", "raw"):
            set_image_format(image_format)
            result = await runner.run_episode(benchmark, benchmark.get_tasks()[0], connection)
            assert result["metrics"] == {"success": True}, result
            assert result["steps"] == STEPS, result
            assert all(action.shape == (5,) and action.dtype == np.float32 for action in benchmark.actions)
            assert np.isfinite(benchmark.actions).all()
            print(f"an episode of {STEPS} actions, pictures as {image_format}")
        try:
            await connection.act({"images": {}, "task_description": "wait"})
        except RuntimeError as error:
            print("an error is told:", error)
        else:
            raise AssertionError("a wrong observation was taken")
        await runner.run_episode(benchmark, benchmark.get_tasks()[0], connection)
        print("and the connection goes on")


asyncio.run(main(sys.argv[1]))
