"""The same episodes on both sides: pizero's simulators as LeRobot has them, and pizero's own rollouts with rewards.

As a command it is lerobot-eval with two more environments: --env.type=pizero_tabletop, the built-in simulator, and
--env.type=pizero_so101.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
from gymnasium import spaces
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig

from pizero.envs.env import make_env
from pizero.evaluation.rollout import EpisodeSpec, rollout
from pizero.workflows.policies import open_policy

TASKS = {"tabletop": "lift", "so101": "lift_cube"}
SIZE = 64


class LeRobotSimulator(gymnasium.Env[Any, Any]):
    """One of pizero's simulators in the shape of LeRobot's environments: pixels and agent_pos."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, name: str) -> None:
        self._env = make_env(name, image_size=SIZE)  # of all tasks: the scene of a seed depends on how many there are
        self._task = TASKS[name]
        self.render_mode, self._max_episode_steps = "rgb_array", self._env.max_steps
        self.task = self.task_description = ""
        seen = self._env.observation_space
        self.observation_space = spaces.Dict({"pixels": seen["images"], "agent_pos": seen["state"]})
        self.action_space = self._env.action_space

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, Any]:
        observation, _ = self._env.reset(seed=seed, options={"task": self._task})
        self.task = self.task_description = observation["prompt"]
        return self._seen(observation), {"is_success": False}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, Any]:
        observation, reward, terminated, truncated, info = self._env.step(action)
        done = bool(info["success"]) or terminated
        return self._seen(observation), float(reward), done, truncated, {"is_success": bool(info["success"])}

    def render(self) -> Any:
        return self._env.render()

    def _seen(self, observation: Any) -> Any:
        return {"pixels": observation["images"], "agent_pos": observation["state"]}


class SimulatorConfig(EnvConfig):
    """--env.type=pizero_NAME."""

    def __post_init__(self) -> None:
        env = make_env(self.simulator, image_size=SIZE)
        images = env.observation_space["images"]
        self.features = {
            "action": PolicyFeature(FeatureType.ACTION, env.action_space.shape),
            "agent_pos": PolicyFeature(FeatureType.STATE, env.observation_space["state"].shape),
            **{f"pixels/{camera}": PolicyFeature(FeatureType.VISUAL, (SIZE, SIZE, 3)) for camera in images},
        }
        self.features_map = {
            "action": "action", "agent_pos": "observation.state",
            **{f"pixels/{camera}": f"observation.images.{camera}" for camera in images},
        }  # fmt: skip

    @property
    def simulator(self) -> str:
        return self.type.removeprefix("pizero_")

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        return {}

    def create_envs(self, n_envs: int, use_async_envs: bool = False) -> Any:
        modes = {"autoreset_mode": gymnasium.vector.AutoresetMode.SAME_STEP}
        makers = [partial(LeRobotSimulator, self.simulator)] * n_envs
        return {self.type: {0: gymnasium.vector.SyncVectorEnv(makers, **modes)}}


@EnvConfig.register_subclass("pizero_tabletop")
@dataclass
class TabletopConfig(SimulatorConfig):
    task: str | None = TASKS["tabletop"]
    fps: int = 10


@EnvConfig.register_subclass("pizero_so101")
@dataclass
class SO101Config(SimulatorConfig):
    task: str | None = TASKS["so101"]
    fps: int = 15


class WithRewards(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Keeps the rewards of each episode."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self.rewards: list[list[float]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.env, name)

    def reset(self, **options: Any) -> Any:
        self.rewards.append([])
        return self.env.reset(**options)

    def step(self, action: Any) -> Any:
        answer = self.env.step(action)
        self.rewards[-1].append(float(answer[1]))
        return answer


def our_episodes(
    env: str, task: str, checkpoint: Path, seeds: list[int], execution_horizon: int
) -> tuple[list[bool], list[list[float]]]:
    """Success and rewards of pizero's own rollout of each seed, as `pizero evaluate` plays them one by one."""
    simulator = WithRewards(make_env(env, image_size=SIZE if env in TASKS else None))
    specs = [EpisodeSpec(task, seed) for seed in seeds]
    results = rollout(open_policy(checkpoint), [simulator], specs, execution_horizon)  # pyright: ignore
    assert not [result.error for result in results if result.error]
    return [result.success for result in results], simulator.rewards


if __name__ == "__main__":
    from lerobot.scripts.lerobot_eval import main

    main()
