"""ALOHA: two arms hand over a cube, or put a peg into a socket, simulated by MuJoCo as gym-aloha does it."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from pizero.envs import offscreen
from pizero.envs.aloha.scene import JOINTS, SIDES, SUCCESS, Scene, action_range, assets
from pizero.envs.tasks import choose_tasks, episode_task
from pizero.types import RobotDict, UserError

if TYPE_CHECKING:
    from pizero.envs.aloha.demonstrator import AlohaDemonstrator

PROMPTS = {
    "transfer_cube": "hand the red cube over from the right arm to the left arm",
    "insertion": "put the red peg into the blue socket",
}
MAX_STEPS = {"transfer_cube": 300, "insertion": 400}
_NAMES = tuple(f"{side}_{joint}" for side in SIDES for joint in (*JOINTS, "gripper"))
_RENDER_SIZE = 256
_HAND_VIEW = {"elevation": -40.0, "distance": 0.35}  # from behind the hand, so to say over its shoulder
_HAND_AZIMUTH = {"left": 30.0, "right": 150.0}
_TIPS_AHEAD = 0.12  # metres from the gripper's frame to what the hand's camera looks at


class AlohaEnv(gymnasium.Env[RobotDict, NDArray[np.float32]]):
    """gym-aloha's tasks: `reset(seed)` places the objects as it does for that seed.

    Observation: "state" float32 [14]: six joint angles (rad) and the gripper (0 closed, 1 open) of the left arm, then
    of the right; "images" uint8 [image_size, image_size, 3]: "top" (from above, the middle of gym-aloha's picture),
    "left_hand" and "right_hand" (follow the grippers); "prompt".
    Action [14]: targets of the same, absolute.
    An episode ends on success, or is truncated after 300 steps (transfer_cube) or 400 (insertion); the reward is
    gym-aloha's, 0 to 4.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 50}  # noqa: RUF012
    fps = 50.0
    max_steps = max(MAX_STEPS.values())
    state_names: tuple[str, ...] = _NAMES
    action_names: tuple[str, ...] = _NAMES
    demonstration_noise = 0.0  # at 50 Hz it moves no hand, and shakes what is held out of it
    demonstration_pushes = 0.04

    def __init__(self, tasks: Sequence[str] | None = None, image_size: int = 128, render_in_step: bool = True) -> None:
        """tasks: of `PROMPTS` (None: both).

        With `render_in_step=False`, `reset` and `step` return no images and need no OpenGL; `observe` still draws.
        Raises UserError for an unknown task, when gym-aloha is not installed, or when images need an OpenGL that is not
        there.
        """
        self.task_names = choose_tasks(tasks, PROMPTS)
        assets()
        if render_in_step:
            offscreen.require_opengl()
        self.render_mode = "rgb_array"
        self.image_size = image_size
        self.render_in_step = render_in_step
        self._scenes: dict[str, Scene] = {}
        self.scene: Scene | None = None
        image = spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        self.observation_space = spaces.Dict(
            {
                "state": spaces.Box(-np.inf, np.inf, (14,), np.float32),
                "images": spaces.Dict({"top": image, "left_hand": image, "right_hand": image}),
                "prompt": spaces.Text(max_length=64, charset=string.ascii_lowercase + " "),
            }
        )
        self.action_space = spaces.Box(*action_range())

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[RobotDict, dict[str, Any]]:
        """Starts an episode of `options["task"]` (None: drawn from the seed). Same seed and task, same episode."""
        super().reset(seed=seed)
        task = episode_task(self.np_random, self.task_names, options)
        if task not in self._scenes:
            self._scenes[task] = Scene(task)
        self.scene = self._scenes[task]
        self._seed = int(self.np_random.integers(2**31)) if seed is None else seed
        self.scene.reset(self._seed)
        self._steps = 0
        return self._observation(self.scene, self.render_in_step), {"success": False, "task": task}

    def step(self, action: NDArray[np.float32]) -> tuple[RobotDict, float, bool, bool, dict[str, Any]]:
        """Goes towards joint targets [14] for 0.02 s. Raises UserError for another shape or a value not finite."""
        scene = self._running()
        targets = np.asarray(action, np.float64)
        if targets.shape != (14,) or not np.isfinite(targets).all():
            raise UserError(
                f"action is {targets.tolist()}, expected 14 finite numbers: six joints (rad) and gripper of each arm"
            )
        scene.step(targets)
        self._steps += 1
        reward = scene.reward()
        success = reward == SUCCESS
        truncated = self._steps >= min(MAX_STEPS[scene.task], self.max_steps) and not success
        info = {"success": success, "task": scene.task}
        return self._observation(scene, self.render_in_step), reward, success, truncated, info

    def observe(self) -> RobotDict:
        """The present observation, with images."""
        return self._observation(self._running(), with_images=True)

    def render(self) -> NDArray[np.uint8]:
        """The view from above for people to look at: [256, 256, 3]."""
        return self._top(self._running(), _RENDER_SIZE)

    def demonstrator(self) -> AlohaDemonstrator:
        """The scripted demonstrator, for the present episode."""
        from pizero.envs.aloha.demonstrator import AlohaDemonstrator

        return AlohaDemonstrator(self._running(), np.random.default_rng(self._seed))

    def close(self) -> None:
        """Drops the simulator. The renderer is shared and lives until the process ends."""
        self.scene = None
        self._scenes.clear()

    def _running(self) -> Scene:
        if self.scene is None:
            raise UserError("the environment has no episode yet: call reset() first")
        return self.scene

    def _observation(self, scene: Scene, with_images: bool) -> RobotDict:
        observation: RobotDict = {"state": scene.state().astype(np.float32), "prompt": PROMPTS[scene.task]}
        if with_images:
            hands = {f"{side}_hand": self._hand(scene, side) for side in SIDES}
            observation["images"] = {"top": self._top(scene, self.image_size), **hands}
        return observation

    def _top(self, scene: Scene, size: int) -> NDArray[np.uint8]:
        mujoco = offscreen.import_mujoco()
        camera = mujoco.MjvCamera()
        camera.type = mujoco.mjtCamera.mjCAMERA_FIXED.value
        camera.fixedcamid = scene.model.camera("top").id
        return offscreen.shared_renderer().frame(scene.task, scene.model, scene.data, camera, size)

    def _hand(self, scene: Scene, side: str) -> NDArray[np.uint8]:
        mujoco = offscreen.import_mujoco()
        camera = mujoco.MjvCamera()
        camera.type = mujoco.mjtCamera.mjCAMERA_FREE.value
        gripper = scene.data.body(f"vx300s_{side}/gripper_link")
        camera.lookat[:] = gripper.xpos + _TIPS_AHEAD * gripper.xmat.reshape(3, 3)[:, 0]
        camera.azimuth = _HAND_AZIMUTH[side]
        for name, value in _HAND_VIEW.items():
            setattr(camera, name, value)
        return offscreen.shared_renderer().frame(scene.task, scene.model, scene.data, camera, self.image_size)
