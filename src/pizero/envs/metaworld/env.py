"""Meta-World v3: fifty tasks of a Sawyer arm, simulated by MuJoCo, each with a scripted demonstrator."""

from __future__ import annotations

import copy
import difflib
import functools
import importlib.util
import math
import pickle
import string
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from pizero.envs import offscreen
from pizero.envs.metaworld.tasks import DEFAULT_TASKS, PROMPTS
from pizero.envs.tasks import asked_task, distinct_tasks, draw_task
from pizero.types import RobotDict, UserError

_RENDER_SIZE = 256
# Meta-World's cameras that are used; both hang upside down. "corner" sees the central two thirds of the published
# data sets' view. "corner2" stands where LeRobot moves it: the whole of that view.
_FIXED = {"corner": "corner4", "corner2": "corner2"}
_CORNER_CROP = 2 / 3
_CORNER2_PLACE = (0.75, 0.075, 0.7)
# Cameras that follow the gripper, looking at a point given in metres from the hand. "gripper": from behind its right
# side, where the arm does not stand between. "side": across that view, so that both together show all three directions.
_FOLLOWING: dict[str, dict[str, Any]] = {
    "gripper": {"azimuth": 110.0, "elevation": -30.0, "distance": 0.5, "lookat": (0.0, 0.05, -0.08)},
    "side": {"azimuth": 190.0, "elevation": -20.0, "distance": 0.7, "lookat": (0.0, 0.08, -0.1)},
}


class MetaWorldEnv(gymnasium.Env[RobotDict, NDArray[np.float32]]):
    """Meta-World: objects are placed anew in every episode, and `reset(seed)` decides where.

    Observation: "state" float32 [4]: gripper x, y, z in metres, gripper opening (0 closed, 1 open); "images" uint8
    [image_size, image_size, 3] by `camera_names`: "corner" (fixed), "gripper" (follows the gripper); "prompt".
    Action [4] in [-1, 1]: dx, dy, dz (times 1 cm), gripper (1 closes, -1 opens).
    An episode ends on success, or is truncated after `max_steps`; the reward is Meta-World's, 0 to 10.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 80}  # noqa: RUF012
    fps = 80.0
    state_names: tuple[str, ...] = ("x", "y", "z", "opening")
    action_names: tuple[str, ...] = ("dx", "dy", "dz", "gripper")
    camera_names: tuple[str, ...] = ("corner", "gripper")
    default_tasks: tuple[str, ...] = DEFAULT_TASKS
    prompts: Mapping[str, str] = PROMPTS
    demonstration_noise = 0.2
    max_steps = 300  # demonstrators need 97 at most on the default tasks; on all fifty, 6 of 1,000 episodes need more

    def __init__(self, tasks: Sequence[str] | None = None, image_size: int = 64, render_in_step: bool = True) -> None:
        """tasks: names with or without "-v3" (None: `default_tasks`).

        With `render_in_step=False`, `reset` and `step` return no images and need no OpenGL; `observe` still draws.
        Raises UserError for an unknown task, when Meta-World is not installed, or when images need an OpenGL that is
        not there.
        """
        given = self.default_tasks if tasks is None else tasks
        self.task_names = distinct_tasks([_task_name(name, tuple(PROMPTS)) for name in given])
        if not self.task_names:
            raise UserError("tasks is empty: name at least one Meta-World task, or None for the default ones")
        if importlib.util.find_spec("metaworld") is None:
            raise UserError("metaworld is not installed; install the sim extra: pip install 'pizero[sim]'")
        if render_in_step:
            offscreen.require_opengl()
        self.render_mode = "rgb_array"
        self.image_size = image_size
        self.render_in_step = render_in_step
        image = spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        self.observation_space = spaces.Dict(
            {
                "state": spaces.Box(np.array([-1, 0, -1, 0], np.float32), np.array([1, 2, 1, 1], np.float32)),
                "images": spaces.Dict(dict.fromkeys(self.camera_names, image)),
                "prompt": spaces.Text(max_length=64, charset=string.ascii_letters + string.digits + " ,-"),
            }
        )
        self.action_space = spaces.Box(-1.0, 1.0, (4,), np.float32)
        self._simulator: Any = None
        self._task = ""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[RobotDict, dict[str, Any]]:
        """Starts an episode of `options["task"]` (None: drawn from the seed). Same seed and task, same episode."""
        super().reset(seed=seed)
        drawn = draw_task(self.np_random, self.task_names)
        placement_seed = int(self.np_random.integers(2**31))
        self._task = _task_name(asked_task(options, drawn), self.task_names)
        self._simulator = _simulate(self._task, placement_seed)
        self._true_state: NDArray[np.float64] = self._simulator._get_obs()
        self._steps = 0
        return self._observation(self.render_in_step), {"success": False, "task": self._task}

    def step(self, action: NDArray[np.float32]) -> tuple[RobotDict, float, bool, bool, dict[str, Any]]:
        """Applies an action [4] in [-1, 1] (clipped). Raises UserError for another shape or a value not finite."""
        self._check_running()
        action = np.asarray(action, np.float32)
        if action.shape != (4,) or not np.isfinite(action).all():
            raise UserError(f"action is {action.tolist()}, expected 4 finite numbers: dx, dy, dz, gripper")
        self._true_state, reward, _, _, details = self._simulator.step(action.clip(-1.0, 1.0))
        self._steps += 1
        success = bool(details["success"])
        truncated = self._steps >= self.max_steps and not success
        info = {"success": success, "task": self._task}
        return self._observation(self.render_in_step), float(reward), success, truncated, info

    def observe(self) -> RobotDict:
        """The present observation, with images."""
        self._check_running()
        return self._observation(with_images=True)

    def render(self) -> NDArray[np.uint8]:
        """The corner view for people to look at: [256, 256, 3]."""
        self._check_running()
        return self._picture("corner", _RENDER_SIZE)

    def demonstrator(self) -> MetaWorldDemonstrator:
        """Meta-World's scripted policy for the present episode."""
        self._check_running()
        return MetaWorldDemonstrator(self)

    def true_state(self) -> NDArray[np.float64]:
        """What the demonstrator reads, [39]: gripper, objects' positions and rotations, the same a step ago, goal."""
        self._check_running()
        return self._true_state.copy()

    def close(self) -> None:
        """Drops the simulator. The renderer is shared and lives until the process ends."""
        self._simulator = None

    @property
    def task(self) -> str:
        """The present episode's task, with its "-v3"."""
        self._check_running()
        return self._task

    def _check_running(self) -> None:
        if self._simulator is None:
            raise UserError("the environment has no episode yet: call reset() first")

    def _observation(self, with_images: bool) -> RobotDict:
        observation: RobotDict = {"state": self._true_state[:4].astype(np.float32), "prompt": self.prompts[self._task]}
        if with_images:
            observation["images"] = {name: self._picture(name, self.image_size) for name in self.camera_names}
        return observation

    def _picture(self, name: str, size: int) -> NDArray[np.uint8]:
        mujoco = offscreen.import_mujoco()
        simulator, camera = self._simulator, mujoco.MjvCamera()
        if name in _FOLLOWING:
            camera.type = mujoco.mjtCamera.mjCAMERA_FREE.value
            for field, value in _FOLLOWING[name].items():
                setattr(camera, field, value)
            camera.lookat += simulator.data.body("hand").xpos
        else:
            camera.type = mujoco.mjtCamera.mjCAMERA_FIXED.value
            camera.fixedcamid = simulator.model.camera(_FIXED[name]).id
        picture = offscreen.shared_renderer().frame(self._task, simulator.model, simulator.data, camera, size)
        return picture if name in _FOLLOWING else np.ascontiguousarray(picture[::-1, ::-1])


class MetaWorldDemonstrator:
    """The scripted policy of one task; it reads the environment's true state."""

    def __init__(self, env: MetaWorldEnv) -> None:
        from metaworld.policies import ENV_POLICY_MAP

        self._env = env
        self._policy: Any = ENV_POLICY_MAP[env.task]()

    def act(self) -> NDArray[np.float32]:
        """The action [4] for the present state, clipped to [-1, 1]."""
        with warnings.catch_warnings():  # the script warns when it asks for more than 1, and is clipped here
            warnings.simplefilter("ignore")
            action = self._policy.get_action(self._env.true_state())
        return np.asarray(action, np.float32).clip(-1.0, 1.0)


def _task_name(name: str, known: tuple[str, ...]) -> str:
    """The full name of a task given with or without its "-v3"; UserError when it is not one of `known`."""
    full = name if name.endswith("-v3") else f"{name}-v3"
    if full in known:
        return full
    if full in PROMPTS:
        raise UserError(f"task {name!r} is not one of this environment's: {', '.join(known)}")
    near = difflib.get_close_matches(full, PROMPTS, n=4, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else f"known are {', '.join(PROMPTS)}"
    raise UserError(f"unknown Meta-World task {name!r}: {hint}")


def _simulate(task: str, seed: int) -> Any:
    """A simulator at the start of an episode. A fresh one each time, so that nothing of the last episode is left."""
    from metaworld.types import Task

    simulator_class = _simulator_class(task)
    simulator = simulator_class()
    settings = {"env_cls": simulator_class.__base__, "rand_vec": None, "partially_observable": False}
    simulator.set_task(Task(env_name=task, data=pickle.dumps(settings)))
    simulator._freeze_rand_vec = False
    simulator.seeded_rand_vec = True  # otherwise placements come from NumPy's global generator
    simulator.seed(seed)
    simulator.reset()
    # Meta-World places some objects without updating what follows from it, and would report where they were before.
    offscreen.import_mujoco().mj_forward(simulator.model, simulator.data)
    simulator._prev_obs = simulator._get_curr_obs_combined_no_goal()
    return simulator


@functools.cache
def _simulator_class(task: str) -> Any:
    """Meta-World's class for the task, made to copy a model compiled once: 10 ms instead of 400."""
    from metaworld.env_dict import ENV_CLS_MAP

    mujoco = offscreen.import_mujoco()
    base = ENV_CLS_MAP[task]
    compiled = base().model
    corner = compiled.camera(_FIXED["corner"])
    corner.fovy = 2 * math.degrees(math.atan(_CORNER_CROP * math.tan(math.radians(corner.fovy[0] / 2))))
    compiled.camera(_FIXED["corner2"]).pos = _CORNER2_PLACE

    def initialize(self: Any) -> tuple[Any, Any]:
        model = copy.copy(compiled)
        return model, mujoco.MjData(model)

    return type(base.__name__, (base,), {"_initialize_simulation": initialize})
