"""Records what openpi's LIBERO client sends, from LIBERO's own environment, for tests/envs/test_libero.py.

Needs an environment with the extra libero, and EGL or OSMesa:
    MUJOCO_GL=egl python benchmarks/peers/record_libero.py tests/golden/libero/spatial_0.npz

The loop is that of openpi's examples/libero/main.py: own initial state, ten steps until things have fallen, pictures of
256 pixels turned by half a circle and shrunk to 224, state of eight numbers. Pictures are stored as means of 8 x 8
pixels.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from libero.libero import benchmark
from libero.libero.envs.env_wrapper import OffScreenRenderEnv
from numpy.typing import NDArray
from PIL import Image
from robosuite.utils.transform_utils import quat2axisangle

NUMBERS = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")
STATE = 3
"""Which of the initial states."""


def shrunk(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    turned = Image.fromarray(np.ascontiguousarray(image[::-1, ::-1])).resize((224, 224), Image.Resampling.BILINEAR)
    return np.asarray(turned).reshape(28, 8, 28, 8, 3).mean((1, 3)).round().astype(np.uint8)


def main(path: Path) -> None:
    suite = benchmark.get_benchmark("libero_spatial")()
    env = OffScreenRenderEnv(bddl_file_name=suite.get_task_bddl_file_path(0), camera_heights=256, camera_widths=256)
    env.seed(STATE)
    env.reset()
    seen = [env.set_init_state(suite.get_task_init_states(0)[STATE])]
    for _ in range(10):
        seen = [env.step([0.0] * 6 + [-1.0])[0]]
    ticks = np.arange(12)[:, None]
    actions = np.sin(ticks * np.array([0.3, 0.5, 0.4, 0.7, 0.6, 0.9, 1.0]) + np.arange(7)).astype(np.float32)
    for action in actions:
        seen.append(env.step(action.tolist())[0])
    np.savez_compressed(
        path, actions=actions, instruction=suite.get_task(0).language,
        states=[
            np.concatenate([s[NUMBERS[0]], quat2axisangle(s[NUMBERS[1]].copy()), s[NUMBERS[2]]]).astype(np.float32)
            for s in seen
        ],
        **{name: np.array([s[name] for s in seen]) for name in NUMBERS},
        **{
            ours: [shrunk(s[f"{theirs}_image"]) for s in (seen[0], seen[-1])]
            for ours, theirs in (("image", "agentview"), ("wrist_image", "robot0_eye_in_hand"))
        },
    )  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]))
