"""The built-in simulator: physics, tasks, pictures and the demonstrator."""

import math
from typing import Any

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

from pizero.envs.tabletop.env import PROMPTS, PUSH_DISTANCE, TabletopDemonstrator, TabletopEnv
from pizero.envs.tabletop.render import draw_both, draw_ego, draw_top
from pizero.envs.tabletop.world import CONTACT, HELD_OPENING, LIMIT, LOW, MAX_STEP, OBJECT_RADIUS, Thing, World
from pizero.types import UserError

KINDS = tuple(PROMPTS)
SQUEEZE = [0.0, 0.0, 0.0, 0.0, 1.0]


def make_world(*places: tuple[float, float], x: float = 0.0, y: float = 0.0, **pose: Any) -> World:
    things = [Thing(colour, "disc", *place) for colour, place in zip(("red", "blue", "green"), places, strict=False)]
    return World(things, x, y, **{"z": 0.1, "yaw": 0.0, "opening": 1.0, **pose})


def play(env: TabletopEnv, demonstrator: TabletopDemonstrator, noise: np.random.Generator | None = None) -> bool:
    """Whether the demonstrator succeeds from here, with the usual noise on its actions if asked for."""
    while True:
        action = demonstrator.act()
        if noise is not None:
            action = action + noise.normal(0.0, env.demonstration_noise, 5).astype(np.float32)
        _, _, terminated, truncated, info = env.step(action)
        assert info["success"] == terminated
        if terminated or truncated:
            return terminated


# --- interface -------------------------------------------------------------------------------------------------------


def test_gymnasium_checker_accepts_it() -> None:
    check_env(TabletopEnv(image_size=16), skip_render_check=True)


def test_seed_determines_the_episode() -> None:
    runs = []
    for _ in range(2):
        env = TabletopEnv(image_size=16)
        frames = [env.reset(seed=7)[0]]
        demonstrator = env.demonstrator()
        frames += [env.step(demonstrator.act())[0] for _ in range(5)]
        runs.append(frames)
    for one, two in zip(*runs, strict=True):
        np.testing.assert_array_equal(one["state"], two["state"])
        np.testing.assert_array_equal(one["images"]["top"], two["images"]["top"])
        np.testing.assert_array_equal(one["images"]["ego"], two["images"]["ego"])
        assert one["prompt"] == two["prompt"]
    other, _ = TabletopEnv(image_size=16).reset(seed=8)
    assert not np.array_equal(other["state"], runs[0][0]["state"])


def test_options_choose_task_and_number_of_objects() -> None:
    env = TabletopEnv(image_size=8)
    for kind in KINDS:
        for number in (1, 2, 3):
            observation, info = env.reset(seed=3, options={"task": kind, "num_objects": number})
            assert info["task"] == kind
            things = env.world.things
            assert len(things) == number
            assert observation["prompt"] == PROMPTS[kind].format(things[env.target].name)


def test_tasks_and_numbers_are_drawn_when_not_given() -> None:
    env = TabletopEnv(tasks=["lift", "turn"], image_size=8)
    drawn = [(env.reset(seed=seed)[1]["task"], len(env.world.things)) for seed in range(60)]
    assert set(drawn) == {(kind, number) for kind in ("lift", "turn") for number in (1, 2, 3)}


def test_an_instruction_names_exactly_one_object() -> None:
    env = TabletopEnv(image_size=8)
    for seed in range(100):
        env.reset(seed=seed)
        things = env.world.things
        assert len({thing.colour for thing in things}) == len(things)
        gaps = [math.hypot(a.x - b.x, a.y - b.y) for a in things for b in things if a is not b]
        assert min(gaps, default=1.0) > 2 * OBJECT_RADIUS + 0.05


def test_step_returns_images_only_when_asked_to() -> None:
    for render in (True, False):
        env = TabletopEnv(image_size=8, render_in_step=render)
        env.reset(seed=0)
        observation, *_ = env.step(np.zeros(5, np.float32))
        assert ("images" in observation) == render
        assert set(env.observe()["images"]) == {"top", "ego"}


@pytest.mark.parametrize("action", [np.zeros(4), np.zeros((1, 5)), np.array([0, 0, np.nan, 0, 0]), 0.0])
def test_a_wrong_action_gets_one_line(action: Any) -> None:
    env = TabletopEnv(image_size=8)
    env.reset(seed=0)
    with pytest.raises(UserError, match=r"^action is .*expected 5 finite numbers[^\n]*$"):
        env.step(action)


@pytest.mark.parametrize("options", [{"task": "fly"}, {"num_objects": 4}, {"num_objects": 0}, {"colour": "red"}])
def test_wrong_reset_options_get_one_line(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        TabletopEnv(image_size=8).reset(seed=0, options=options)


def test_step_before_reset_says_so() -> None:
    with pytest.raises(UserError, match=r"call reset\(\) first"):
        TabletopEnv(image_size=8).step(np.zeros(5, np.float32))


def test_an_episode_is_truncated_after_max_steps() -> None:
    env = TabletopEnv(image_size=8, render_in_step=False)
    env.reset(seed=0)
    ends = [env.step(np.zeros(5, np.float32))[2:4] for _ in range(env.max_steps)]
    assert ends[:-1] == [(False, False)] * (env.max_steps - 1)
    assert ends[-1] == (False, True)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), signs=st.lists(st.integers(-1, 1), min_size=4, max_size=4))
def test_state_and_objects_stay_within_bounds(seed: int, signs: list[int]) -> None:
    env = TabletopEnv(image_size=8, render_in_step=False)
    env.reset(seed=seed)
    rng = np.random.default_rng(seed)
    for _ in range(40):
        drift = np.array([*signs, 0.0]) + rng.uniform(-2.0, 2.0, 5)
        observation, *_ = env.step(drift.astype(np.float32))
        assert env.observation_space["state"].contains(observation["state"])
        lying = [thing for i, thing in enumerate(env.world.things) if i != env.world.held]
        assert all(max(abs(thing.x), abs(thing.y)) <= LIMIT and thing.z == 0.0 for thing in lying)


def test_every_state_dimension_varies_within_every_kind() -> None:
    for kind in KINDS:
        env, states = TabletopEnv(tasks=[kind], image_size=8, render_in_step=False), []
        for seed in range(8):
            states.append(env.reset(seed=seed)[0]["state"])
            demonstrator, ended = env.demonstrator(), False
            while not ended:
                observation, _, terminated, truncated, _ = env.step(demonstrator.act())
                states.append(observation["state"])
                ended = terminated or truncated
        low, high = np.quantile(states, [0.01, 0.99], axis=0)
        assert (high - low > 0.2).all(), kind


# --- physics ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("aside", "sticks"), [(0.5, True), (0.9, False)])
def test_a_push_within_the_friction_cone_takes_the_object_along(aside: float, sticks: bool) -> None:
    ahead = math.sqrt(1 - aside**2)
    world = make_world((CONTACT * ahead, CONTACT * aside))
    world.step([0.05, 0.0, 0.0, 0.0, 1.0])
    thing = world.things[0]
    moved = np.array([thing.x - CONTACT * ahead, thing.y - CONTACT * aside])
    apart = np.array([thing.x - world.x, thing.y - world.y])
    np.testing.assert_allclose(np.linalg.norm(apart), CONTACT, rtol=1e-9)
    if sticks:
        np.testing.assert_allclose(moved, [0.05 * MAX_STEP, 0.0], atol=1e-9)
    else:  # it slips along the contact normal
        assert moved @ apart / np.linalg.norm(moved) / np.linalg.norm(apart) > 0.999


@given(angle=st.floats(-math.pi, math.pi))
def test_a_central_push_moves_object_and_tip_alike(angle: float) -> None:
    cos, sin = math.cos(angle), math.sin(angle)
    world = make_world((CONTACT * cos, CONTACT * sin))
    world.step([cos, sin, 0.0, 0.0, 1.0])
    thing = world.things[0]
    np.testing.assert_allclose([world.x, world.y], [MAX_STEP * cos, MAX_STEP * sin], atol=1e-12)
    np.testing.assert_allclose([thing.x, thing.y], [(CONTACT + MAX_STEP) * cos, (CONTACT + MAX_STEP) * sin], atol=1e-9)


def test_a_high_tip_touches_nothing() -> None:
    world = make_world((0.2, 0.0), z=LOW + 0.05)
    for _ in range(4):
        world.step([1.0, 0.0, 0.0, 0.0, -1.0])
    assert (world.things[0].x, world.things[0].y) == (0.2, 0.0)


def test_an_object_at_the_border_blocks_the_tip() -> None:
    world = make_world((LIMIT - 0.02, 0.0), x=0.4)
    for _ in range(8):
        world.step([1.0, 0.0, 0.0, 0.0, 1.0])
    assert world.things[0].x == LIMIT
    assert world.x == pytest.approx(LIMIT - CONTACT)


def test_a_pushed_object_pushes_the_next() -> None:
    world = make_world((0.25, 0.0), (0.62, 0.0))
    world.step([0.5, 0.0, 0.0, 0.0, 1.0])
    near, far = world.things
    assert far.x > 0.63
    assert far.x - near.x == pytest.approx(2 * OBJECT_RADIUS)


def test_closing_around_an_object_holds_it_and_opening_drops_it() -> None:
    world = make_world((0.05, 0.0))
    for _ in range(2):
        world.step(SQUEEZE)
    assert world.held == 0
    assert world.opening == HELD_OPENING
    for _ in range(2):
        world.step([0.0, 0.0, 1.0, 1.0, 1.0])
    thing = world.things[0]
    assert thing.z == pytest.approx(0.1 + 2 * MAX_STEP)
    assert thing.yaw == pytest.approx(1.0)
    np.testing.assert_allclose([thing.x, thing.y], [0.05 * math.cos(1.0), 0.05 * math.sin(1.0)], atol=1e-9)
    world.step([0.0, 0.0, 0.0, 0.0, -1.0])
    assert world.held is None
    assert thing.z == 0.0


def test_closing_beside_or_above_an_object_does_not_hold_it() -> None:
    for world in (make_world((CONTACT, 0.0)), make_world((0.0, 0.0), z=LOW + 0.1)):
        for _ in range(4):
            world.step(SQUEEZE)
        assert world.held is None
        assert world.opening == 0.0


def test_closed_jaws_land_on_top_of_an_object() -> None:
    world = make_world((0.0, 0.0), z=0.5, opening=0.0)
    for _ in range(6):
        world.step([0.0, 0.0, -1.0, 0.0, 1.0])
    assert world.z == LOW
    assert world.held is None


# --- tasks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noisy", [False, True])
def test_the_demonstrator_succeeds(noisy: bool) -> None:
    env = TabletopEnv(image_size=8, render_in_step=False)
    rng = np.random.default_rng(0) if noisy else None
    done, lengths = [], []
    for seed in range(200):
        env.reset(seed=seed)
        done.append(play(env, env.demonstrator(), rng))
        lengths.append(env._steps)
    assert np.mean(done) >= 0.98
    assert np.mean(lengths) < 10


def test_the_demonstrator_depends_on_the_present_state_only() -> None:
    env = TabletopEnv(image_size=8, render_in_step=False)
    for kind in KINDS:
        env.reset(seed=5, options={"task": kind})
        lasting, ended = env.demonstrator(), False
        while not ended:
            action = lasting.act()
            np.testing.assert_array_equal(action, env.demonstrator().act())
            assert env.action_space.contains(action)
            ended = any(env.step(action)[2:4])


def test_random_actions_rarely_succeed() -> None:
    env = TabletopEnv(image_size=8, render_in_step=False)
    env.action_space.seed(0)
    done = 0
    for seed in range(60):
        env.reset(seed=seed)
        ended = False
        while not ended:
            _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            done += int(reward)
            ended = terminated or truncated
    assert done / 60 < 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_another_object_or_another_action_does_not_succeed(kind: str) -> None:
    env = TabletopEnv(image_size=8, render_in_step=False)
    done = []
    for seed in range(10):
        for played in KINDS:
            for target in (0, 1):
                if (played, target) == (kind, 0):
                    continue
                env.reset(seed=seed, options={"task": kind, "num_objects": 2})
                done.append(play(env, TabletopDemonstrator(env.world, played, target), np.random.default_rng(seed)))
    assert np.mean(done) <= 0.05


def test_a_push_fails_once_another_object_was_moved() -> None:
    env = TabletopEnv(image_size=8, render_in_step=False)
    env.reset(seed=0, options={"task": "push_left", "num_objects": 2})
    wait = np.zeros(5, np.float32)
    target, other = env.world.things
    other.x += 0.2
    assert not env.step(wait)[2]
    other.x -= 0.2
    target.x -= PUSH_DISTANCE + 0.01
    assert not env.step(wait)[2]
    env.reset(seed=0, options={"task": "push_left", "num_objects": 2})
    env.world.things[0].x -= PUSH_DISTANCE + 0.01
    assert env.step(wait)[2]


def test_passing_over_the_object_is_not_reaching_it() -> None:
    env = TabletopEnv(image_size=8, render_in_step=False)
    env.reset(seed=0, options={"task": "reach", "num_objects": 1})
    world, thing = env.world, env.world.things[0]
    world.x, world.y, world.z, world.opening = thing.x, thing.y, 0.1, 1.0
    still = np.array([world.x, world.y, world.z, world.yaw / math.pi, -1], np.float32)
    assert not env.step(still)[2]
    assert env.step(still)[2]


# --- pictures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [32, 64, 100])
def test_pictures_have_the_size_asked_for(size: int) -> None:
    env = TabletopEnv(image_size=size)
    images = env.reset(seed=0)[0]["images"]
    for image in images.values():
        assert image.shape == (size, size, 3)
        assert image.dtype == np.uint8
        assert image.flags.c_contiguous
    assert env.render().shape == (256, 520, 3)
    assert draw_both(env.world, size, gap=0).shape == (size, 2 * size, 3)


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize(
    "change",
    [
        lambda world: setattr(world.things[0], "x", 0.15),
        lambda world: setattr(world.things[1], "y", -0.15),
        lambda world: setattr(world.things[0], "colour", "yellow"),
        lambda world: setattr(world.things[0], "shape", "block"),
        lambda world: setattr(world, "x", -0.1),
        lambda world: setattr(world, "yaw", 0.4),
        lambda world: setattr(world, "opening", 0.0),
        lambda world: setattr(world, "z", 0.8),
    ],
)
def test_both_pictures_show_every_part_of_the_scene(change: Any, size: int) -> None:
    before, after = (make_world((0.25, 0.2), (-0.2, -0.3)) for _ in range(2))
    change(after)
    for draw in (draw_top, draw_ego):
        difference = np.abs(draw(before, size).astype(int) - draw(after, size))
        assert difference.max() > 25


def test_the_pictures_show_objects_where_they_are() -> None:
    world = make_world((0.55, 0.55), x=0.3, y=0.3, yaw=math.pi / 2)
    top, ego = draw_top(world, 64), draw_ego(world, 64)
    red = [230, 40, 40]
    np.testing.assert_array_equal(top[32 - round(0.55 / 2.2 * 64), 32 + round(0.55 / 2.2 * 64)], red)
    # The hand is turned by a quarter: what is right of and above the tip is right of and below it in its picture.
    offset = round(0.25 / 1.2 * 64)
    np.testing.assert_array_equal(ego[32 + offset, 32 + offset], red)


def test_small_and_large_pictures_agree() -> None:
    env = TabletopEnv(image_size=8)
    for seed in range(5):
        env.reset(seed=seed, options={"num_objects": 3})
        for draw in (draw_top, draw_ego):
            large = draw(env.world, 256).astype(float).reshape(32, 8, 32, 8, 3).mean(axis=(1, 3))
            assert np.abs(large - draw(env.world, 32)).mean() < 4.0
