"""ALOHA: gym-aloha's own numbers, conventions, demonstrators, and the way from demonstrations to a trained policy."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from pizero.data.embodiments import EMBODIMENTS
from pizero.envs.aloha.env import MAX_STEPS, PROMPTS, AlohaEnv
from pizero.types import Env, UserError
from pizero.workflows.collect import record_episode

if importlib.util.find_spec("gym_aloha") is None or importlib.util.find_spec("mujoco") is None:
    pytest.skip("gym-aloha is not installed (make setup does)", allow_module_level=True)

GOLDEN = Path(__file__).parents[1] / "golden" / "aloha"
SEED = 4  # of the golden files
FREE = 85  # steps before a gripper meets an object; from there on a difference of 1e-15 grows to millimetres


@pytest.fixture(scope="module")
def blind() -> AlohaEnv:
    return AlohaEnv(render_in_step=False)


@pytest.mark.parametrize("task", PROMPTS)
def test_start_state_and_reward_are_gym_alohas_to_the_episodes_end(blind: AlohaEnv, task: str) -> None:
    """golden: recorded by benchmarks/peers/record_aloha.py; the demonstrator still plays what was recorded."""
    golden = np.load(GOLDEN / f"{task}.npz")
    observation, _ = blind.reset(seed=SEED, options={"task": task})
    demonstrator, rewards = blind.demonstrator(), []
    states, objects = [observation["state"]], [blind.scene.data.qpos[16:].copy()]
    for number, action in enumerate(golden["actions"]):
        if number < 60:
            np.testing.assert_allclose(demonstrator.act(), action, atol=1e-4)
        observation, reward, success, truncated, info = blind.step(action)
        states.append(observation["state"])
        objects.append(blind.scene.data.qpos[16:].copy())
        rewards.append(reward)
    for ours, theirs in ((states, golden["states"]), (objects, golden["objects"])):
        np.testing.assert_allclose(ours[:FREE], theirs[:FREE], atol=1e-6)
        np.testing.assert_allclose(ours, theirs, atol=0.03)
    assert (np.array(rewards) == golden["rewards"]).mean() > 0.985, (
        "of transfer_cube 0.97 where the other finger counts"
    )
    assert rewards[-1] == golden["rewards"][-1] == 4
    assert set(golden["rewards"]) >= {0, 4}
    assert (success, truncated, info["success"]) == (True, False, True)


@pytest.mark.opengl
@pytest.mark.parametrize("task", PROMPTS)
def test_top_is_the_middle_of_gym_alohas_picture_without_its_shadows(task: str) -> None:
    golden = np.load(GOLDEN / f"{task}.npz")
    env = AlohaEnv([task], image_size=48, render_in_step=False)
    env.reset(seed=SEED)
    for action in golden["actions"]:
        env.step(action)
    theirs = golden["top"][:, 8:-8].astype(int)
    difference = np.abs(env.observe()["images"]["top"].astype(int) - theirs)
    assert difference.mean() < 4
    assert np.quantile(difference, 0.9) < 16


@pytest.mark.parametrize("task", PROMPTS)
def test_demonstrator_succeeds_where_objects_lie_at_the_edges(blind: AlohaEnv, task: str) -> None:
    """Another start than the golden one. Forearms and wrists stay on one side: where forearm and hand are in line, they
    turned by half a circle, in some episodes one way and in others the other, which no policy learned.
    """
    observation, _ = blind.reset(seed=11, options={"task": task})
    demonstrator, done, states = blind.demonstrator(), False, [observation["state"]]
    while not done:
        action = demonstrator.act()
        assert (action >= blind.action_space.low - 1e-5).all()
        assert (action <= blind.action_space.high + 1e-5).all()
        observation, _, success, truncated, _ = blind.step(action)
        states.append(observation["state"])
        done = success or truncated
    assert success
    turned = np.abs(np.stack(states))
    assert turned[:, [3, 10, 12]].max() < 0.7, "both forearms and the right wrist; the left one is rolled to hand over"


def test_a_hand_that_lost_its_object_grasps_it_again(blind: AlohaEnv) -> None:
    """And the other hand waits: the peg is put 6 cm aside while the right hand closes."""
    blind.reset(seed=3, options={"task": "insertion"})
    demonstrator, success = blind.demonstrator(), False
    for number in range(MAX_STEPS["insertion"]):
        if number == 100:
            blind.scene.data.qpos[17] += 0.06
        success = blind.step(demonstrator.act())[4]["success"]
        if success:
            break
    assert success
    assert number > 300, "265 without the accident"


def test_recording_pushes_the_arms_off_their_way_and_the_demonstrator_comes_back(
    blind: AlohaEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recorded actions are clean ones; without noise, as with `--noise 0`, they are those that are executed."""
    executed: list[np.ndarray] = []
    step, reset = blind.step, blind.reset

    def recorded(action: np.ndarray) -> tuple:
        executed.append(action)
        observation, *rest = step(action)
        return {**observation, "images": {}}, *rest

    def started(**options: object) -> tuple:
        observation, info = reset(**options)
        return {**observation, "images": {}}, info

    monkeypatch.setattr(blind, "step", recorded)
    monkeypatch.setattr(blind, "reset", started)
    off = {}
    for noise in (None, 0.0):
        executed.clear()
        demonstration = record_episode(blind, "transfer_cube", 4, noise)  # with noise by its seed
        assert demonstration.success
        off[noise] = np.abs(np.stack(executed) - demonstration.actions)[:, 1:6].max(1)  # joints that reach no limit
    assert 0.1 < (off[None] > 0.02).mean() < 0.6, "at times"
    assert off[None].max() > 0.05
    assert off[0.0].max() < 1e-6


@pytest.mark.opengl
@pytest.mark.filterwarnings("ignore:.*symmetric and normalized", "ignore:.*infinity")
def test_keeps_the_protocol_and_fits_the_embodiment() -> None:
    env = AlohaEnv(image_size=24)
    assert isinstance(env, Env)
    observation, info = env.reset(seed=0, options={"task": "insertion"})
    assert env.observation_space.contains(observation)
    assert observation["prompt"] == PROMPTS["insertion"]
    assert info == {"success": False, "task": "insertion"}
    robot = EMBODIMENTS["aloha_sim"]()
    assert set(observation["images"]) == set(robot.cameras.values())
    assert (observation["state"].shape, env.action_space.shape) == ((robot.state_dim,), (robot.action_dim,))
    assert [env.state_names[index] for index in robot.grippers] == ["left_gripper", "right_gripper"]
    assert env.render().shape == (256, 256, 3)
    check_env(AlohaEnv(image_size=8, tasks=["transfer_cube"]), skip_render_check=True)


def test_state_and_action_are_joints_and_grippers_of_both_arms(blind: AlohaEnv) -> None:
    start, _ = blind.reset(seed=0, options={"task": "transfer_cube"})
    np.testing.assert_allclose(start["state"], [0, -0.96, 1.16, 0, -0.3, 0, 0.1] * 2, atol=2e-3)
    target = start["state"].copy()
    target[[0, 6, 8, 13]] = (0.3, 1.0, -0.8, 0.5)  # left waist and gripper, right shoulder and gripper
    for _ in range(50):
        after, *_ = blind.step(target)
    np.testing.assert_allclose(after["state"], target, atol=0.06)
    assert set(after) == {"state", "prompt"}


def test_seed_decides_the_episode(blind: AlohaEnv) -> None:
    def episode(seed: int) -> np.ndarray:
        start, info = blind.reset(seed=seed)
        objects = blind.scene.data.qpos[16:].copy()
        demonstrator = blind.demonstrator()
        seen = [blind.step(demonstrator.act())[0]["state"] for _ in range(30)]
        return np.concatenate([start["state"], objects, *seen, [len(info["task"])]])

    first = episode(5)
    np.random.seed(1)  # the global generator must have no part in it
    np.testing.assert_array_equal(first, episode(5))
    assert not np.array_equal(first[:20], episode(6)[:20])


def test_each_task_has_its_own_number_of_steps(blind: AlohaEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MAX_STEPS, "transfer_cube", 2)
    monkeypatch.setitem(MAX_STEPS, "insertion", 3)
    for task, expected in (("transfer_cube", [False, True]), ("insertion", [False, False, True])):
        start, _ = blind.reset(seed=0, options={"task": task})
        assert [blind.step(start["state"])[3] for _ in expected] == expected


def test_mistakes_are_told(blind: AlohaEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    for action in (np.zeros(7), np.full(14, np.nan)):
        with pytest.raises(UserError, match="14 finite numbers"):
            blind.step(action)
    with pytest.raises(UserError, match="reset"):
        AlohaEnv(render_in_step=False).step(np.zeros(14))
    for tasks, words in ((["lift"], "transfer_cube, insertion"), ([], "tasks is empty")):
        with pytest.raises(UserError, match=words):
            AlohaEnv(tasks)
    with pytest.raises(UserError, match="unknown task 'insertion': expected some of transfer_cube"):
        AlohaEnv(["transfer_cube"], render_in_step=False).reset(options={"task": "insertion"})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'pizero\[aloha\]'"):
        AlohaEnv()


def test_dm_control_is_not_imported() -> None:
    assert not {"gym_aloha", "dm_control"} & set(sys.modules)


@pytest.mark.opengl
def test_from_demonstrations_to_rollouts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pizero.configs.presets import get_preset
    from pizero.data.datasets.lerobot import LeRobotDataset
    from pizero.model.config import CAMERAS, small_config
    from pizero.workflows.collect import CollectConfig, collect
    from pizero.workflows.evaluate import EvaluateConfig, evaluate_checkpoint
    from pizero.workflows.train import train_policy

    data, run = tmp_path / "data", tmp_path / "run"
    monkeypatch.setattr("pizero.envs.aloha.env.SUCCESS", 1.0)  # the right hand touches the cube: half an episode
    few = CollectConfig("aloha", episodes=1, tasks=("transfer_cube",), image_size=28, image_format="png")
    result = collect(few, data)
    dataset = LeRobotDataset(data)
    assert (result.episodes, dataset.tasks, dataset.fps) == (1, [PROMPTS["transfer_cube"]], 50)
    actions = dataset.window("action", np.arange(result.frames), 1)[0]
    assert actions[..., 2].max() > 1.1, "radians, not clipped to 1"
    preset = get_preset("aloha-sim")
    model = small_config("nano", cameras=CAMERAS, state_dim=14, action_dim=14, action_horizon=8, vocab_size=384)
    train = dataclasses.replace(preset.train, steps=2, batch_size=4)
    train_policy(data, run, dataclasses.replace(preset, model=model, train=train, execution_horizon=8))
    monkeypatch.setitem(MAX_STEPS, "transfer_cube", 16)
    few = EvaluateConfig("aloha", episodes=1, tasks=("transfer_cube",), num_steps=1, num_videos=1, threads=1)
    results = evaluate_checkpoint(run, few, run)
    assert (results["episodes"], results["errors"], results["mean_steps"]) == (1, 0, 16)
    assert list((run / "videos").glob("transfer_cube_*.mp4"))
