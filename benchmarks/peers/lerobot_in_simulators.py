"""The same episodes on both sides: pizero's simulators as LeRobot has them, and pizero's own rollouts with rewards.

As a command it is lerobot-eval with one more environment, --env.type=pizero_tabletop, the built-in simulator.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig

from pizero.checkpoints.load import load_policy
from pizero.envs.env import make_env
from pizero.envs.tabletop.env import TabletopEnv
from pizero.evaluation.rollout import EpisodeSpec, rollout

TASK, SIZE, CAMERAS = "lift", 64, ("top", "ego")


class LeRobotTabletop(gymnasium.Env[Any, Any]):
    """The built-in simulator in the shape of LeRobot's environments: pixels and agent_pos."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self) -> None:
        self._env = TabletopEnv()  # of all tasks: the scene of a seed depends on how many there are
        self.render_mode, self._max_episode_steps = "rgb_array", self._env.max_steps
        self.task = self.task_description = ""
        image = spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)
        pixels = spaces.Dict(dict.fromkeys(CAMERAS, image))
        self.observation_space = spaces.Dict({"pixels": pixels, "agent_pos": spaces.Box(-1e3, 1e3, (7,), np.float32)})
        self.action_space = self._env.action_space

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, Any]:
        observation, _ = self._env.reset(seed=seed, options={"task": TASK})
        self.task = self.task_description = observation["prompt"]
        return self._seen(observation), {"is_success": False}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, Any]:
        observation, reward, terminated, truncated, info = self._env.step(action)
        done = bool(info["success"]) or terminated
        return self._seen(observation), float(reward), done, truncated, {"is_success": bool(info["success"])}

    def render(self) -> Any:
        return self._env.render()

    def _seen(self, observation: Any) -> Any:
        return {"pixels": {name: observation["images"][name] for name in CAMERAS}, "agent_pos": observation["state"]}


@EnvConfig.register_subclass("pizero_tabletop")
@dataclass
class TabletopConfig(EnvConfig):
    task: str | None = TASK
    fps: int = 10
    features: dict[str, PolicyFeature] = field(
        default_factory=lambda: {
            "action": PolicyFeature(FeatureType.ACTION, (5,)),
            "agent_pos": PolicyFeature(FeatureType.STATE, (7,)),
            **{f"pixels/{name}": PolicyFeature(FeatureType.VISUAL, (SIZE, SIZE, 3)) for name in CAMERAS},
        }
    )
    features_map: dict[str, str] = field(
        default_factory=lambda: {
            "action": "action",
            "agent_pos": "observation.state",
            **{f"pixels/{name}": f"observation.images.{name}" for name in CAMERAS},
        }
    )

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        return {}

    def create_envs(self, n_envs: int, use_async_envs: bool = False) -> Any:
        modes = {"autoreset_mode": gymnasium.vector.AutoresetMode.SAME_STEP}
        return {self.type: {0: gymnasium.vector.SyncVectorEnv([LeRobotTabletop] * n_envs, **modes)}}


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
) -> tuple[list[bool], list[float]]:
    """Success and sum of rewards of pizero's own rollout of each seed, as `pizero evaluate` plays them one by one."""
    simulator = WithRewards(make_env(env))
    specs = [EpisodeSpec(task, seed) for seed in seeds]
    results = rollout(load_policy(checkpoint), [simulator], specs, execution_horizon)  # pyright: ignore
    assert not [result.error for result in results if result.error]
    return [result.success for result in results], [sum(rewards) for rewards in simulator.rewards]


if __name__ == "__main__":
    from lerobot.scripts.lerobot_eval import main

    main()
