"""LIBERO: a Franka arm puts things where the instruction says, in four suites of ten tasks."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from PIL import Image

from pizero.envs import offscreen
from pizero.envs.libero.simulator import Simulator, Task, suite_tasks
from pizero.envs.tasks import asked_task, distinct_tasks, draw_task
from pizero.types import RobotDict, UserError

if TYPE_CHECKING:
    from pizero.envs.libero.demonstrator import LiberoDemonstrator

SUITES = {"libero-spatial": 220, "libero-object": 280, "libero-goal": 300, "libero-10": 520}
"""Steps of an episode, as openpi's evaluation has them (examples/libero/main.py)."""
NOT_DEMONSTRATED = ("KITCHEN_SCENE6_put_the_yellow_and_white_mug_in_the_microwave_and_close_it",)
"""The demonstrator moves no doors."""
CAMERAS = {"image": "agentview", "wrist_image": "robot0_eye_in_hand"}
"""Robot camera -> LIBERO's."""
_PUBLISHED_SIZE, _SHRUNK_SIZE = 256, 224
_RENDER_SIZE = 256
_COLLISION_GROUP = 0


class LiberoEnv(gymnasium.Env[RobotDict, NDArray[np.float32]]):
    """A suite; `reset(seed)` decides where things are. From seed 1,000,000 on these are LIBERO's own initial states.

    Observation: "state" float32 [8]: x, y, z between the finger tips (m), axis times angle of the hand (3), both
    fingers (m); "images" uint8 [image_size, image_size, 3]: "image" (fixed) and "wrist_image", both mirrored as the
    published policies saw them; "prompt".
    Action [7] in [-1, 1]: step of the hand (times 5 cm and 0.5 rad), gripper (1 closes, -1 opens).
    An episode begins when things have fallen, and ends on success or is truncated after `max_steps`; the reward is 1 on
    success. At most one task's simulator is held.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012
    fps = 20.0
    state_names: tuple[str, ...] = ("x", "y", "z", "turn_x", "turn_y", "turn_z", "finger_1", "finger_2")
    action_names: tuple[str, ...] = ("dx", "dy", "dz", "turn_x", "turn_y", "turn_z", "gripper")
    demonstration_noise = 0.05
    most_at_once = 2
    """Simulators that memory has room for; evaluation and recording then go task by task."""

    def __init__(
        self,
        suite: str,
        tasks: Sequence[str] | None = None,
        image_size: int | None = None,
        render_in_step: bool = True,
        published_images: bool = False,
    ) -> None:
        """suite: of `SUITES`. tasks: LIBERO's names or their numbers from 0 (None: all ten).

        published_images: drawn as those of the published data, with reflections and smooth edges at 256 pixels, then
        shrunk to `image_size` (None: 224, openpi's); four times slower. Else None means 128.
        With `render_in_step=False`, `reset` and `step` return no images; `observe` still draws.
        Raises UserError for an unknown task, when LIBERO is not installed, or when images need an OpenGL that is not
        there.
        """
        self._tasks = {task.name: task for task in suite_tasks(suite.replace("-", "_"))}
        names = tuple(self._tasks)
        self.task_names = names if tasks is None else distinct_tasks([_task_name(name, names) for name in tasks])
        if not self.task_names:
            raise UserError(f"tasks is empty: name some of {', '.join(names)}, or their numbers from 0")
        self._known = names
        self.demonstrated_tasks = tuple(name for name in self.task_names if name not in NOT_DEMONSTRATED)
        """What is recorded where nobody names tasks."""
        if render_in_step:
            offscreen.require_opengl()
        self.max_steps = SUITES[suite]
        self.render_mode = "rgb_array"
        self.image_size = image_size or (_SHRUNK_SIZE if published_images else 128)
        self.render_in_step, self._published_images = render_in_step, published_images
        image = spaces.Box(0, 255, (self.image_size, self.image_size, 3), np.uint8)
        self.observation_space = spaces.Dict(
            {
                "state": spaces.Box(-np.inf, np.inf, (8,), np.float32),
                "images": spaces.Dict(dict.fromkeys(CAMERAS, image)),
                "prompt": spaces.Text(max_length=160, charset=string.ascii_letters + string.digits + " "),
            }
        )
        self.action_space = spaces.Box(-1.0, 1.0, (7,), np.float32)
        self._simulator: Simulator | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[RobotDict, dict[str, Any]]:
        """Starts an episode of `options["task"]` (None: drawn from the seed). Same seed and task, same episode."""
        super().reset(seed=seed)
        drawn = draw_task(self.np_random, self.task_names)
        name = _task_name(asked_task(options, drawn), self._known)
        if name not in self.task_names:
            raise UserError(f"task {name!r} is not one of this environment's: {', '.join(self.task_names)}")
        simulator = self._simulate(self._tasks[name])
        self._numbers = simulator.reset(int(self.np_random.integers(1_000_000)) if seed is None else seed)
        self._steps = 0
        return self._observation(self.render_in_step), {"success": False, "task": name}

    def step(self, action: NDArray[np.float32]) -> tuple[RobotDict, float, bool, bool, dict[str, Any]]:
        """Applies an action [7] in [-1, 1] (clipped). Raises UserError for another shape or a value not finite."""
        simulator = self._running()
        move = np.asarray(action, np.float64)
        if move.shape != (7,) or not np.isfinite(move).all():
            raise UserError(
                f"action is {move.tolist()}, expected 7 finite numbers: step of the hand (6), gripper (1 closes)"
            )
        self._numbers, success = simulator.step(move.clip(-1.0, 1.0))
        self._steps += 1
        truncated = self._steps >= self.max_steps and not success
        info = {"success": success, "task": simulator.task.name}
        return self._observation(self.render_in_step), float(success), success, truncated, info

    def observe(self) -> RobotDict:
        """The present observation, with images."""
        self._running()
        return self._observation(with_images=True)

    def render(self) -> NDArray[np.uint8]:
        """The fixed view for people to look at, not mirrored: [256, 256, 3]."""
        return np.ascontiguousarray(self._draw("image", _RENDER_SIZE)[:, ::-1])

    def demonstrator(self) -> LiberoDemonstrator:
        """The scripted demonstrator, for the present episode. UserError for a task with a door."""
        from pizero.envs.libero.demonstrator import LiberoDemonstrator

        return LiberoDemonstrator(self._running())

    def close(self) -> None:
        """Drops the simulator and what was uploaded of it. The renderer is shared and lives until the process ends."""
        if self._simulator is not None:
            offscreen.forget(self._simulator.task)
            self._simulator.close()
            self._simulator = None

    def _running(self) -> Simulator:
        if self._simulator is None:
            raise UserError("the environment has no episode yet: call reset() first")
        return self._simulator

    def _simulate(self, task: Task) -> Simulator:
        if self._simulator is None or self._simulator.task != task:
            self.close()
            self._simulator = Simulator(task)
        return self._simulator

    def _observation(self, with_images: bool) -> RobotDict:
        observation: RobotDict = {
            "state": robot_state(self._numbers),
            "prompt": self._running().task.instruction,
        }
        if with_images:
            observation["images"] = {name: self._picture(name) for name in CAMERAS}
        return observation

    def _picture(self, camera: str) -> NDArray[np.uint8]:
        if not self._published_images:
            return self._draw(camera, self.image_size)
        picture = self._draw(camera, _PUBLISHED_SIZE)
        return np.asarray(
            Image.fromarray(picture).resize((self.image_size, self.image_size), Image.Resampling.BILINEAR)
        )

    def _draw(self, camera: str, size: int) -> NDArray[np.uint8]:
        """Mirrored: LIBERO's pictures come upside down, and the published policies saw them turned by half a circle."""
        mujoco, simulator = offscreen.import_mujoco(), self._running()
        view = mujoco.MjvCamera()
        view.type = mujoco.mjtCamera.mjCAMERA_FIXED.value
        view.fixedcamid = simulator.model.camera(CAMERAS[camera]).id
        picture = offscreen.shared_renderer().frame(
            simulator.task, simulator.model, simulator.data, view, size,
            hidden_group=_COLLISION_GROUP, exact=self._published_images,
        )  # fmt: skip
        return np.ascontiguousarray(picture[:, ::-1])


def robot_state(numbers: dict[str, NDArray[np.float64]]) -> NDArray[np.float32]:
    """State [8] of robosuite's numbers; its quaternion is x, y, z, w. Angles are 0 to 2 pi, as in openpi's client."""
    *axis, w = numbers["robot0_eef_quat"].tolist()
    w = min(max(w, -1.0), 1.0)
    sine = math.sqrt(1.0 - w * w)
    turn = np.zeros(3) if math.isclose(sine, 0.0) else np.array(axis) * (2.0 * math.acos(w) / sine)
    return np.concatenate([numbers["robot0_eef_pos"], turn, numbers["robot0_gripper_qpos"]]).astype(np.float32)


def _task_name(name: str, known: tuple[str, ...]) -> str:
    """LIBERO's name of a task given by that or by its number; UserError when it is neither."""
    if name in known:
        return name
    if name.isdecimal() and int(name) < len(known):
        return known[int(name)]
    raise UserError(
        f"unknown LIBERO task {name!r}: choose a number from 0 to {len(known) - 1}, or a name: {', '.join(known)}"
    )
