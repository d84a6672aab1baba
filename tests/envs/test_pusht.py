"""PushT: the published facts, pictures, the planner, and the whole way from demonstrations to rollouts."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from pizero.data.embodiments import EMBODIMENTS
from pizero.envs.pusht.env import PROMPT, PushTEnv, load_gym_pusht
from pizero.types import Env, UserError

try:
    load_gym_pusht()
except UserError as missing:
    pytest.skip(str(missing), allow_module_level=True)

from pizero.envs.pusht.planner import Planner
from pizero.envs.pusht.shape import GOAL, corners, coverage, distance_to_block, errors
from pizero.envs.pusht.way import Way


@pytest.fixture
def env() -> PushTEnv:
    env = PushTEnv(image_size=48)
    env.reset(seed=3)
    return env


@pytest.mark.filterwarnings("ignore:.*symmetric and normalized")
def test_keeps_the_protocol_and_fits_the_embodiment(env: PushTEnv) -> None:
    assert isinstance(env, Env)
    observation, info = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    assert observation["prompt"] == PROMPT
    assert (info["success"], info["task"]) == (False, "push_t")
    robot = EMBODIMENTS["pusht"]()
    assert set(observation["images"]) == set(robot.cameras.values())
    assert (observation["state"].shape, env.action_space.shape) == ((robot.state_dim,), (robot.action_dim,))
    check_env(PushTEnv(image_size=16), skip_render_check=True)
    assert env.render().shape == (256, 256, 3)


def test_seed_decides_the_episode_and_it_is_gym_pushts(env: PushTEnv) -> None:
    def episode(seed: int) -> np.ndarray:
        start, _ = env.reset(seed=seed)
        seen = [start["state"], env.block()]
        for target in ((100, 400), (300, 250), (420, 100)) * 4:
            observation, *_ = env.step(np.array(target, np.float32))
            seen += [observation["state"], env.block(), observation["images"]["ego"]]
        return np.concatenate([np.ravel(value) for value in seen])

    first = episode(5)
    np.random.seed(1)  # the global generator must have no part in it
    np.testing.assert_array_equal(first, episode(5))
    assert not np.array_equal(first, episode(6))
    published = load_gym_pusht()(obs_type="state")
    state, _ = published.reset(seed=5)
    np.testing.assert_array_equal(first[:2], state[:2].astype(np.float32))
    np.testing.assert_allclose(first[2:4], state[2:4])


def test_top_is_what_gym_pusht_draws_and_ego_follows_the_disc(env: PushTEnv) -> None:
    published = load_gym_pusht()(obs_type="pixels", observation_width=48, observation_height=48)
    pixels, _ = published.reset(seed=3)
    observation = env.observe()
    np.testing.assert_array_equal(observation["images"]["top"], pixels)
    for target in ((60, 60), (450, 450), (450, 60)):
        for _ in range(12):
            observation, *_ = env.step(np.array(target, np.float32))
        red, _, blue = observation["images"]["ego"][24, 24].astype(int)
        assert blue - red > 100, "the blue disc is in the middle"
    corner = PushTEnv(image_size=512)
    corner.reset(seed=3)
    ego = corner.observe()["images"]["ego"]
    blue = (ego[..., 2].astype(int) - ego[..., 0]) > 100
    assert np.ptp(np.flatnonzero(blue.any(0))) == pytest.approx(2 * 30, abs=4)  # twice its 30 pixels


def test_render_in_step_false_gives_no_images_but_observe_does() -> None:
    env = PushTEnv(render_in_step=False)
    start, _ = env.reset(seed=0)
    after, *_ = env.step(np.full(2, 256, np.float32))
    assert set(start) == set(after) == {"state", "prompt"}
    assert env.observe()["images"]["top"].shape == (96, 96, 3)


def test_success_truncation_and_clipping(env: PushTEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    block = env.simulator.block
    block.angle, block.position = float(GOAL[2]), (256.0, 256.0)
    _, reward, terminated, truncated, info = env.step(env.agent())
    assert (reward, terminated, truncated, info["success"]) == (1.0, True, False, True)
    assert info["coverage"] == pytest.approx(1.0, abs=1e-3)
    assert info["score"] == 1.0
    monkeypatch.setattr(PushTEnv, "max_steps", 3)
    env.reset(seed=3)
    assert [env.step(np.array([900, 900], np.float32))[3] for _ in range(3)] == [False, False, True]
    assert (env.agent() <= 512).all()


def test_mistakes_are_told(env: PushTEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    for action in (np.zeros(3), np.array([np.nan, 0])):
        with pytest.raises(UserError, match="2 finite numbers"):
            env.step(action)
    with pytest.raises(UserError, match="reset"):
        PushTEnv().step(np.zeros(2))
    with pytest.raises(UserError, match="PushT has one, push_t"):
        PushTEnv(tasks=["lift"])
    with pytest.raises(UserError, match="PushT has one, push_t"):
        env.reset(options={"task": "lift"})
    monkeypatch.setitem(sys.modules, "gym_pusht.envs.pusht", None)
    with pytest.raises(UserError, match=r"cannot be loaded.*libgl1.*headless"):
        PushTEnv()
    monkeypatch.setitem(sys.modules, "gym_pusht", None)
    with pytest.raises(UserError, match=r"pip install 'pizero\[pusht\]'"):
        PushTEnv()


def test_planner_knows_the_block_as_the_simulator_does(env: PushTEnv) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        pose = GOAL + rng.normal(0, [10, 10, 0.2])
        env.simulator.block.angle, env.simulator.block.position = pose[2], tuple(pose[:2])
        assert coverage(pose[None])[0] == pytest.approx(env.simulator._get_coverage(), abs=1e-6)
    np.testing.assert_allclose(sorted(corners(pose).tolist()), sorted(_vertices(env)), atol=1e-6)
    assert errors(GOAL[None])[0] == 0
    assert errors(GOAL[None] + (3, 4, 0))[0] == pytest.approx(5)


def test_planned_push_is_what_happens(env: PushTEnv) -> None:
    """The planner's space moves the block as the simulator does, though there the disc speeds up and slows down."""
    pose, start = np.array([300.0, 200.0, 0.3]), np.array([280.0, 150.0])
    direction = np.array([0.3, 1.0]) / np.hypot(0.3, 1.0)
    simulator = env.simulator
    simulator.block.angle, simulator.block.position, simulator.agent.position = pose[2], tuple(pose[:2]), tuple(start)
    end = start + 100 * direction
    for _ in range(25):
        env.step(end.astype(np.float32))
    expected = Planner(type(simulator)).simulate(pose, start, direction, length=100)[-1]
    assert np.abs(corners(expected) - corners(pose)).max() > 20, "the block was moved"
    assert np.abs(corners(expected) - corners(env.block())).max() < 1.5


def test_way_leads_around_the_block() -> None:
    pose = np.array([256.0, 200.0, 0.0])  # the stem points down
    way = Way(pose)
    left, right = np.array([180.0, 270.0]), np.array([330.0, 270.0])
    assert way.lengths(left, right[None])[0] > 200
    at, passed = left, [left]
    while np.abs(at - right).max() > 1e-9:
        at = way.next_point(at, right)
        passed.append(at)
        assert len(passed) < 12
    for a, b in itertools.pairwise(passed):
        assert distance_to_block(np.linspace(a, b, 50) - pose[:2]).min() > 15
    assert way.lengths(left, np.array([[180.0, 400.0]]))[0] == pytest.approx(130)


def test_demonstrator_solves_it_the_same_way_each_time() -> None:
    env = PushTEnv(render_in_step=False)

    def episode() -> list[np.ndarray]:
        env.reset(seed=3)
        demonstrator, actions, done = env.demonstrator(), [], False
        while not done and len(actions) < 120:
            actions.append(demonstrator.act())
            assert env.action_space.contains(actions[-1])
            done = env.step(actions[-1])[4]["success"]
        assert done, env.coverage
        return actions

    np.testing.assert_array_equal(episode(), episode())


def test_a_wedged_disc_backs_out(env: PushTEnv) -> None:
    """Between stem and bar it cannot go around the block to any push; seen while recording with noise."""
    pose, agent = np.array([327.34, 352.02, 0.301]), np.array([362.0, 364.0])
    assert Planner(type(env.simulator)).plan(pose, agent) is None
    simulator = env.simulator
    simulator.block.angle, simulator.block.position, simulator.agent.position = pose[2], tuple(pose[:2]), tuple(agent)
    demonstrator = env.demonstrator()
    for _ in range(5):
        env.step(demonstrator.act())
    assert Planner(type(simulator)).plan(env.block(), env.agent()) is not None


def test_from_demonstrations_to_rollouts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pizero.configs.ladder import LadderConfig, rung_preset
    from pizero.data.datasets.lerobot import LeRobotDataset
    from pizero.workflows.collect import CollectConfig, collect
    from pizero.workflows.evaluate import EvaluateConfig, evaluate_checkpoint
    from pizero.workflows.train import train_policy

    data = tmp_path / "data"
    result = collect(CollectConfig("pusht", episodes=2, noise=0.0, seed=3, image_size=28, image_format="png"), data)
    assert result.episodes == 2
    dataset = LeRobotDataset(data)
    actions = dataset.window("action", np.arange(result.frames), 1)[0]
    assert actions.max() > 100, "pixels, not clipped to 1"
    assert dataset.tasks == [PROMPT]
    monkeypatch.setattr(PushTEnv, "max_steps", 16)
    for rung in (0, 7):
        preset = rung_preset(rung, LadderConfig("pusht", size="nano", steps=2, batch_size=4), seed=0)
        run = tmp_path / f"rung{rung}"
        train_policy(data, run, dataclasses.replace(preset, execution_horizon=8))
        few = EvaluateConfig("pusht", episodes=1, execution_horizon=8, num_steps=1, num_videos=1, threads=1)
        results = evaluate_checkpoint(run, few, run)
        assert (results["episodes"], results["errors"]) == (1, 0)
        assert list((run / "videos").glob("push_t_*.mp4"))


def _vertices(env: PushTEnv) -> list[list[float]]:
    """The corners of both boxes that are corners of the T."""
    block = env.simulator.block
    points = [block.local_to_world(v) for shape in block.shapes for v in shape.get_vertices()]
    return [[point.x, point.y] for point in points]
