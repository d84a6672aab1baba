"""PushT: a disc pushes a T-shaped block onto its outline on the table. Physics and drawing are those of gym-pusht."""

from __future__ import annotations

import importlib.util
import os
import string
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from PIL import Image

from pizero.envs.pusht.demonstrator import PushTDemonstrator
from pizero.envs.tasks import asked_task
from pizero.types import RobotDict, UserError

TASK = "push_t"
PROMPT = "push the T block onto the target"
BOARD = 512.0
"""Pixels per side, the unit of all positions."""
EGO_ZOOM = 2
_RENDER_SIZE = 256
_WHITE = 255


class PushTEnv(gymnasium.Env[RobotDict, NDArray[np.float32]]):
    """PushT as published: a board of 512 x 512, block and disc placed by the seed, the goal always the same.

    Observation: "state" float32 [2]: x, y of the disc in pixels, y down; "images" uint8 [image_size, image_size, 3]:
    "top" (the board, as gym-pusht draws it at that size), "ego" (its part around the disc, twice as large); "prompt".
    Action [2]: where the disc shall go, in pixels, 0 to 512; a PD controller takes it there.
    An episode ends when the block covers more than 95 % of the goal, or is truncated after `max_steps`; the reward is
    gym-pusht's, coverage / 0.95, at most 1; `info["score"]` is the same, of which published tables give the mean of
    each episode's highest.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012
    fps = 10.0
    max_steps = 300
    task_names: tuple[str, ...] = (TASK,)
    state_names: tuple[str, ...] = ("x", "y")
    action_names: tuple[str, ...] = ("x", "y")
    demonstration_noise = 4.0

    def __init__(self, tasks: Sequence[str] | None = None, image_size: int = 96, render_in_step: bool = True) -> None:
        """tasks: there is one, "push_t". Raises UserError for another one, or when gym-pusht is not installed."""
        if tasks is not None and tuple(tasks) != (TASK,):
            raise UserError(f"tasks are {list(tasks)}; PushT has one, {TASK}")
        simulator_class = load_gym_pusht()
        self.render_mode = "rgb_array"
        self.image_size = image_size
        self.render_in_step = render_in_step
        image = spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        self.observation_space = spaces.Dict(
            {
                "state": spaces.Box(0.0, BOARD, (2,), np.float32),
                "images": spaces.Dict({"top": image, "ego": image}),
                "prompt": spaces.Text(max_length=64, charset=string.ascii_letters + " "),
            }
        )
        self.action_space = spaces.Box(0.0, BOARD, (2,), np.float32)
        self.simulator: Any = simulator_class(obs_type="state")
        self.coverage = 0.0
        self._started = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[RobotDict, dict[str, Any]]:
        """Starts the episode of the seed, the same that gym-pusht starts."""
        super().reset(seed=seed)
        task = asked_task(options, TASK)
        if task != TASK:
            raise UserError(f"unknown task {task!r}: PushT has one, {TASK}")
        self.simulator.reset(seed=seed)
        self._started, self._steps = True, 0
        self.coverage = float(self.simulator._get_coverage())
        return self._observation(self.render_in_step), self._info(success=False)

    def step(self, action: NDArray[np.float32]) -> tuple[RobotDict, float, bool, bool, dict[str, Any]]:
        """Goes towards a position [2] in pixels (clipped to the board) for 0.1 s.

        Raises UserError for another shape or a value not finite.
        """
        self._check_running()
        target = np.asarray(action, np.float64)
        if target.shape != (2,) or not np.isfinite(target).all():
            raise UserError(f"action is {target.tolist()}, expected 2 finite numbers: x, y in pixels, 0 to 512")
        _, reward, success, _, details = self.simulator.step(target.clip(0.0, BOARD))
        self._steps += 1
        self.coverage, success = float(details["coverage"]), bool(success)
        truncated = self._steps >= self.max_steps and not success
        return self._observation(self.render_in_step), float(reward), success, truncated, self._info(success)

    def observe(self) -> RobotDict:
        """The present observation, with images."""
        self._check_running()
        return self._observation(with_images=True)

    def render(self) -> NDArray[np.uint8]:
        """The board for people to look at: [256, 256, 3]."""
        self._check_running()
        return self._top(self.simulator._draw(), _RENDER_SIZE)

    def demonstrator(self) -> PushTDemonstrator:
        """The planner, for the present episode."""
        self._check_running()
        return PushTDemonstrator(self)

    def agent(self) -> NDArray[np.float64]:
        """Position [2] of the disc, pixels."""
        self._check_running()
        return np.array(self.simulator.agent.position)

    def block(self) -> NDArray[np.float64]:
        """Pose [3] of the block: x, y of the middle of the bar's outer edge, angle in radians."""
        self._check_running()
        block = self.simulator.block
        return np.array([*block.position, block.angle])

    def close(self) -> None:
        """Nothing is held outside this object."""
        self._started = False

    def _info(self, success: bool) -> dict[str, Any]:
        score = min(self.coverage / self.simulator.success_threshold, 1.0)
        return {"success": success, "task": TASK, "coverage": self.coverage, "score": score}

    def _check_running(self) -> None:
        if not self._started:
            raise UserError("the environment has no episode yet: call reset() first")

    def _observation(self, with_images: bool) -> RobotDict:
        observation: RobotDict = {"state": self.agent().astype(np.float32), "prompt": PROMPT}
        if with_images:
            board = self.simulator._draw()
            images = {"top": self._top(board, self.image_size), "ego": self._ego(board, self.image_size)}
            observation["images"] = images
        return observation

    def _top(self, board: Any, size: int) -> NDArray[np.uint8]:
        return np.ascontiguousarray(self.simulator._get_img(board, size, size))

    def _ego(self, board: Any, size: int) -> NDArray[np.uint8]:
        """The square around the disc that is half as wide as the board; white beyond the edge."""
        import pygame

        side = int(BOARD) // EGO_ZOOM
        x, y = self.agent().round().astype(int)
        pixels = pygame.surfarray.pixels3d(board).transpose(1, 0, 2)
        margin = side // 2
        padded = np.pad(pixels, ((margin, margin), (margin, margin), (0, 0)), constant_values=_WHITE)
        x, y = (min(max(int(value), 0), int(BOARD)) for value in (x, y))
        crop = Image.fromarray(padded[y : y + side, x : x + side])
        return np.asarray(crop.resize((size, size), Image.Resampling.BOX if size < side else Image.Resampling.BILINEAR))


def load_gym_pusht() -> Any:
    """gym-pusht's environment class. Raises UserError when it is not installed or cannot be loaded."""
    if importlib.util.find_spec("gym_pusht") is None:
        raise UserError("gym-pusht is not installed; install the pusht extra: pip install 'pizero[pusht]'")
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    try:
        from gym_pusht.envs.pusht import PushTEnv as Simulator
    except ImportError as error:  # OpenCV's usual wheel needs two libraries of the system
        raise UserError(
            f"gym-pusht cannot be loaded ({error}); for OpenCV install libgl1 and libglib2.0-0, "
            "or put opencv-python-headless in the place of opencv-python"
        ) from None
    return Simulator
