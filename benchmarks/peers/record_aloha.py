"""Records what gym-aloha's own environment does with a demonstrator's actions, for tests/envs/test_aloha.py.

Needs an environment with the extras sim and aloha (so with dm_control), and EGL or OSMesa:
    PYTHONPATH=src MUJOCO_GL=egl python benchmarks/peers/record_aloha.py tests/golden/aloha
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gym_aloha  # noqa: F401  # registers the environments
import gymnasium
import numpy as np

from pizero.envs.aloha.env import AlohaEnv

NAMES = {"transfer_cube": "gym_aloha/AlohaTransferCube-v0", "insertion": "gym_aloha/AlohaInsertion-v0"}
SEED = 4


def main(folder: Path) -> None:
    for task, name in NAMES.items():
        theirs = gymnasium.make(name, obs_type="pixels_agent_pos", disable_env_checker=True).unwrapped
        physics: Any = type(theirs._env.physics)
        draw = physics.render
        physics.render = lambda self, height, width, camera_id: np.zeros((height, width, 3), np.uint8)  # three a step
        ours = AlohaEnv([task], render_in_step=False)
        ours.reset(seed=SEED)
        demonstrator = ours.demonstrator()
        observation, _ = theirs.reset(seed=SEED)
        states, actions, rewards, terminated = [observation["agent_pos"]], [], [], False
        objects = [theirs._env.physics.data.qpos[16:].copy()]
        while not terminated:
            actions.append(demonstrator.act())
            ours.step(actions[-1])
            observation, reward, terminated, _, _ = theirs.step(actions[-1].astype(np.float64))
            states.append(observation["agent_pos"])
            objects.append(theirs._env.physics.data.qpos[16:].copy())
            rewards.append(reward)
        top = draw(theirs._env.physics, height=480, width=640, camera_id="top")
        physics.render = draw
        np.savez_compressed(
            folder / f"{task}.npz", actions=np.array(actions, np.float32), states=np.array(states, np.float32),
            objects=np.array(objects, np.float32), rewards=np.array(rewards, np.uint8),
            top=top.reshape(48, 10, 64, 10, 3).mean((1, 3)).round().astype(np.uint8),
        )  # fmt: skip
        print(task, len(actions), "steps, final reward", rewards[-1])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
