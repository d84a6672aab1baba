"""Long tasks of the tabletop: steps in order, the demonstrator, and pictures that do not say which step is due."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.envs.env import make_env
from pizero.envs.tabletop.long import TASKS, TabletopLongDemonstrator, TabletopLongEnv
from pizero.envs.tabletop.plan import LAST, Place, Plan, Step
from pizero.envs.tabletop.render import draw_ego, draw_top
from pizero.envs.tabletop.world import Thing, World
from pizero.types import Env, UserError
from pizero.workflows.collect import CollectConfig, collect


def make_world(*places: float, x: float = 0.0, y: float = 0.5, z: float = 0.12, held: int | None = None) -> World:
    """Objects at these x, each in a row of its own; the hand over the first row."""
    rows = (0.5, -0.25, -0.75)
    things = [
        Thing(colour, "disc", place, row)
        for colour, place, row in zip(("red", "blue", "green"), places, rows, strict=False)
    ]
    return World(things, x, y, z, yaw=0.0, opening=0.6 if held is not None else 1.0, held=held)


def after(world: World, stages: Sequence[Sequence[Step]], *changes: Callable[[World], None]) -> Plan:
    """The plan once the world was changed step by step, and is as it was at the end."""
    plan = Plan(world, stages)
    for change in changes:
        change(world)
        plan.update()
        assert not plan.failed
    return plan


def put(world: World, index: int, x: float) -> None:
    world.things[index].x = x


# --- the tasks -------------------------------------------------------------------------------------------------------


def test_gymnasium_checker_accepts_it() -> None:
    env = make_env("tabletop-long", image_size=16)
    assert isinstance(env, Env)
    check_env(TabletopLongEnv(image_size=16), skip_render_check=True)


def test_a_seed_decides_the_episode_and_a_task_can_be_named() -> None:
    env = TabletopLongEnv(image_size=16)
    for task in TASKS:
        one, info = env.reset(seed=4, options={"task": task})
        words = env.subtask, env.subtasks
        two, _ = env.reset(seed=4, options={"task": task})
        np.testing.assert_array_equal(one["images"]["top"], two["images"]["top"])
        assert (one["prompt"], words) == (two["prompt"], (env.subtask, env.subtasks))
        assert info == {"success": False, "task": task, "subtasks": (0, env.plan.total)}
        assert 3 <= env.plan.total <= 5
        assert env.subtask in env.subtasks
    assert {env.reset(seed=seed)[1]["task"] for seed in range(40)} == set(TASKS)
    for options in ({"task": "fly"}, {"num_objects": 2}):
        with pytest.raises(UserError, match=next(iter(options))):
            env.reset(seed=0, options=options)
    with pytest.raises(UserError, match="expected some of lift_in_order, swap"):
        TabletopLongEnv(tasks=["lift"])


@pytest.mark.parametrize("noise", [0.0, TabletopLongEnv.demonstration_noise])
def test_the_demonstrator_succeeds_and_does_what_it_says(noise: float) -> None:
    env = TabletopLongEnv(image_size=8, render_in_step=False)
    won = []
    for seed in range(40):
        env.reset(seed=seed)
        demonstrator, rng = env.demonstrator(), np.random.default_rng(seed)
        said, done, ended, info = [demonstrator.subtask], 0, False, {}
        while not ended:
            action = demonstrator.act() + rng.normal(0.0, noise, 5).astype(np.float32)
            _, _, success, truncated, info = env.step(action)
            ended = success or truncated
            if info["subtasks"][0] > done:
                done = info["subtasks"][0]
                said.append(demonstrator.subtask)
        won.append(info["success"])
        if info["success"]:
            assert info["subtasks"] == (env.plan.total, env.plan.total)
            assert said == [step.words(env.plan._world.things) for step in env.plan.done] + [""]
    assert sum(won) >= (40 if noise == 0 else 38)


def test_a_recording_says_what_is_done(tmp_path: Path) -> None:
    config = CollectConfig("tabletop-long", episodes=2, tasks=("swap",), image_size=8, image_format="png")
    collect(config, tmp_path / "data")
    dataset, env = LeRobotDataset(tmp_path / "data"), TabletopLongEnv(image_size=8)
    assert dataset.subtasks is not None
    for seed in range(2):
        env.reset(seed=seed, options={"task": "swap"})
        own = [segment.text for segment in dataset.subtasks.segments if segment.episode == seed]
        assert own == list(env.subtasks)


def test_random_actions_do_not_succeed() -> None:
    env = TabletopLongEnv(image_size=8, render_in_step=False)
    rng = np.random.default_rng(0)
    for seed in range(10):
        env.reset(seed=seed)
        ends = [env.step(rng.uniform(-1, 1, 5).astype(np.float32))[2:4] for _ in range(env.max_steps)]
        assert ends == [(False, False)] * (env.max_steps - 1) + [(False, True)]


# --- steps -----------------------------------------------------------------------------------------------------------


def test_steps_of_a_stage_come_in_any_order_and_what_is_held_is_due() -> None:
    world = make_world(-0.6, -0.6, 0.6)
    plan = Plan(world, [[Step("move", 0, "right"), Step("move", 1, "right")], [Step("move", LAST, "left")]])
    assert plan.subtask == "move the red disc to the right"
    world.held = 1
    assert plan.subtask == "move the blue disc to the right"
    put(world, 1, 0.6)
    plan.update()
    assert not plan.done  # not before it was let go
    world.held = None
    plan.update()
    put(world, 0, 0.6)
    plan.update()
    assert plan.subtask == "move the red disc to the left"  # the one that was moved last
    assert "move the blue disc to the left" in plan.subtasks
    put(world, 0, -0.6)
    plan.update()
    assert plan.succeeded
    assert (plan.subtask, plan.present) == ("", None)


@pytest.mark.parametrize("what", ["held", "moved"])
def test_an_object_that_is_not_due_makes_it_a_failure(what: str) -> None:
    world = make_world(-0.6, 0.0)
    plan = Plan(world, [[Step("lift", 0)]])
    if what == "held":
        world.held = 1
    else:
        put(world, 1, 0.3)
    plan.update()
    world.held, world.z = 0, 0.6
    plan.update()
    assert plan.failed
    assert not plan.succeeded


# --- the same picture at two moments, and different actions -----------------------------------------------------------


def lift_in_order() -> tuple[Plan, Plan, World]:
    def lifted(world: World) -> None:
        world.held, world.z = 0, 0.6

    def down(world: World) -> None:
        world.held, world.z = None, 0.12

    stages = [[Step("lift", 0)], [Step("put down", 0)], [Step("lift", 1)]]
    world = make_world(0.0, 0.6)
    return Plan(world, stages), after(world, stages, lifted, down), world


def swap() -> tuple[Plan, Plan, World]:
    """The first one in the middle, the other at the left: it came from there, or it was just moved there."""
    plans: list[Plan] = []
    sides: list[tuple[Place, Place]] = [("left", "right"), ("right", "left")]
    world = make_world(0.0, -0.6, x=-0.6, y=-0.25)
    for first, second in sides:
        stages = [[Step("move", 0, "middle")], [Step("move", 1, first)], [Step("move", 0, second)]]
        here = [lambda world: put(world, 0, 0.0), lambda world: put(world, 1, -0.6)]
        put(world, 0, {"left": -0.6, "right": 0.6}[first])
        put(world, 1, {"left": -0.6, "right": 0.6}[second])
        plans.append(after(world, stages, *(here if first == "left" else here[:1])))
    return plans[0], plans[1], world


def clear_and_lift() -> tuple[Plan, Plan, World]:
    def moved(world: World) -> None:
        put(world, 0, 0.6)

    def grasped(world: World) -> None:
        world.held = 0

    stages = [[Step("move", 0, "right")], [Step("lift", 0)]]
    world = make_world(-0.6, x=0.6)
    later = after(world, stages, moved, grasped)
    put(world, 0, -0.6)
    before = after(world, stages, grasped, moved)
    return before, later, world


def sort_and_return() -> tuple[Plan, Plan, World]:
    """The last one held between the middle and its side."""

    def moved(world: World) -> None:
        put(world, 0, -0.6)

    def held_between(world: World) -> None:
        world.held = 0
        put(world, 0, -0.3)

    stages = [[Step("move", 0, "left")], [Step("move", LAST, "middle")]]
    world = make_world(0.0, 0.6, x=-0.3, z=0.42)
    later = after(world, stages, moved, held_between)
    world.held = None
    put(world, 0, 0.0)
    before = after(world, stages, held_between)
    world.things[0].z = world.z
    return before, later, world


@pytest.mark.parametrize("moments", [lift_in_order, swap, clear_and_lift, sort_and_return])
def test_the_same_picture_asks_for_different_actions(moments: Callable[[], tuple[Plan, Plan, World]]) -> None:
    one, two, world = moments()
    assert one.subtask != two.subtask
    actions = [TabletopLongDemonstrator(world, plan).act() for plan in (one, two)]
    assert np.abs(actions[0] - actions[1]).max() > 0.25
    assert draw_top(world, 64).any()  # one world, so one picture and one state for both
    assert draw_ego(world, 64).any()
