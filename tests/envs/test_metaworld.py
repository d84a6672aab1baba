"""Meta-World: prompts, placements, demonstrators, cameras, and what a user is told when something is missing."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from pizero.envs import offscreen
from pizero.envs.env import make_env
from pizero.envs.metaworld.env import MetaWorldEnv
from pizero.envs.metaworld.tasks import DEFAULT_TASKS, MT10, PROMPTS, PUBLISHED_PROMPTS, TIERS
from pizero.types import Env, RobotDict, UserError

STILL = np.zeros(4, np.float32)


@pytest.fixture(scope="module")
def blind() -> MetaWorldEnv:
    """All fifty tasks, without images."""
    return MetaWorldEnv(tuple(PROMPTS), render_in_step=False)


@pytest.fixture(scope="module")
def seeing() -> MetaWorldEnv:
    return MetaWorldEnv(("drawer-open", "button-press-topdown"), image_size=48)


def play(env: MetaWorldEnv, steps: int) -> list[RobotDict]:
    """The first observations of the demonstrator in the running episode."""
    demonstrator = env.demonstrator()
    return [env.step(demonstrator.act())[0] for _ in range(steps)]


def test_every_task_of_the_registry_has_a_prompt_of_its_own() -> None:
    from metaworld.env_dict import ENV_CLS_MAP
    from metaworld.policies import ENV_POLICY_MAP

    assert set(PROMPTS) == set(ENV_CLS_MAP) == set(ENV_POLICY_MAP)
    assert len(set(PROMPTS.values())) == len(PROMPTS) == 50


def test_keeps_the_protocol_and_its_spaces(blind: MetaWorldEnv) -> None:
    assert isinstance(blind, Env)
    observation, info = blind.reset(seed=0, options={"task": "drawer-close"})
    assert info == {"success": False, "task": "drawer-close-v3"}
    assert set(observation) == {"state", "prompt"}
    assert observation["prompt"] == "close the drawer"
    assert blind.observation_space["state"].contains(observation["state"])
    assert all(blind.observation_space["prompt"].contains(prompt) for prompt in PROMPTS.values())
    after, reward, terminated, truncated, info = blind.step(STILL)
    assert set(after) == {"state", "prompt"}
    assert isinstance(reward, float)
    assert (terminated, truncated, info["success"]) == (False, False, False)


def test_control_rate_is_that_of_the_simulator(blind: MetaWorldEnv) -> None:
    blind.reset(seed=0, options={"task": "drawer-close"})
    before = blind._simulator.data.time
    blind.step(STILL)
    assert blind._simulator.data.time - before == pytest.approx(1 / blind.fps)


def test_action_moves_and_closes_the_gripper(blind: MetaWorldEnv) -> None:
    start, _ = blind.reset(seed=0, options={"task": "drawer-close"})
    for _ in range(15):
        after, *_ = blind.step(np.array([5.0, 0.0, 0.0, 1.0], np.float32))  # clipped to 1
    moved = after["state"] - start["state"]
    assert 0.1 < moved[0] < 0.16
    assert abs(moved[1]) < 0.02
    assert moved[3] < -0.3


def test_episode_is_truncated_after_max_steps(blind: MetaWorldEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MetaWorldEnv, "max_steps", 3)
    blind.reset(seed=0, options={"task": "drawer-open"})
    assert [blind.step(STILL)[3] for _ in range(3)] == [False, False, True]


@pytest.mark.parametrize("task", ["drawer-open-v3", "push-v3"])
def test_seed_decides_the_episode(blind: MetaWorldEnv, task: str) -> None:
    def episode(seed: int) -> list[Any]:
        blind.reset(seed=seed, options={"task": task})
        start = blind.true_state()
        return [start, *(observation["state"] for observation in play(blind, 25))]

    first = episode(7)
    other = episode(8)
    np.random.seed(5)  # the global generator must have no part in it
    again = episode(7)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.abs(first[0][4:7] - other[0][4:7]).max() > 0.005


def test_task_is_drawn_from_the_seed_and_naming_it_changes_nothing() -> None:
    env = MetaWorldEnv(("drawer-open", "drawer-close"), render_in_step=False)
    drawn = []
    for seed in range(6):
        _, info = env.reset(seed=seed)
        state = env.true_state()
        env.reset(seed=seed, options={"task": info["task"]})
        np.testing.assert_array_equal(state, env.true_state())
        drawn.append(info["task"])
    assert set(drawn) == {"drawer-open-v3", "drawer-close-v3"}


def test_reported_object_is_where_it_was_placed(blind: MetaWorldEnv) -> None:
    """Meta-World's own reset reports the drawer of the placement before."""
    blind.reset(seed=3, options={"task": "drawer-open"})
    before = blind.true_state()
    blind.step(STILL)
    np.testing.assert_allclose(before[4:7], blind.true_state()[4:7], atol=2e-3)


@pytest.mark.parametrize("task", DEFAULT_TASKS)
def test_demonstrator_succeeds(blind: MetaWorldEnv, task: str) -> None:
    successes = 0
    for seed in range(5):
        blind.reset(seed=seed, options={"task": task})
        demonstrator = blind.demonstrator()
        terminated = truncated = False
        while not (terminated or truncated):
            action = demonstrator.act()
            assert action.dtype == np.float32
            assert np.abs(action).max() <= 1
            _, _, terminated, truncated, info = blind.step(action)
        assert terminated == info["success"]
        successes += terminated
    assert successes >= 4


def test_unknown_task_is_told_with_the_nearest_names(blind: MetaWorldEnv) -> None:
    with pytest.raises(UserError, match=r"'drawer-opne'.*drawer-open-v3"):
        MetaWorldEnv(("drawer-opne",))
    with pytest.raises(UserError, match=r"'window-open' is not one of this environment's: window-close-v3"):
        MetaWorldEnv(("window-close",), render_in_step=False).reset(options={"task": "window-open"})
    with pytest.raises(UserError, match="empty"):
        MetaWorldEnv(())


def test_bad_action_and_missing_reset_are_told(blind: MetaWorldEnv) -> None:
    with pytest.raises(UserError, match="reset"):
        MetaWorldEnv(render_in_step=False).step(STILL)
    blind.reset(seed=0, options={"task": "drawer-open"})
    for action in (np.zeros(5), np.array([0, np.nan, 0, 0])):
        with pytest.raises(UserError, match="4 finite numbers"):
            blind.step(action)


def test_missing_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "metaworld", None)
    with pytest.raises(UserError, match=r"pip install 'pizero\[sim\]'"):
        MetaWorldEnv()


def test_missing_opengl_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offscreen, "opengl_backend", lambda: None)
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    with pytest.raises(UserError, match=r"no off-screen OpenGL.*libegl1.*libosmesa6"):
        MetaWorldEnv()
    monkeypatch.setenv("MUJOCO_GL", "egl")
    with pytest.raises(UserError, match=r"MUJOCO_GL=egl.*unset it"):
        MetaWorldEnv()


def test_probe_survives_a_crash_and_respects_the_users_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offscreen, "_CANDIDATES", {sys.platform: ("one", "two", "three")})
    monkeypatch.setattr(offscreen, "_PROBE", "import os\nif '{0}' == 'one': os.abort()")
    probe = offscreen._probe.__wrapped__
    assert probe("") == "two"
    assert probe("osmesa") == "osmesa"
    assert probe("disabled") is None
    monkeypatch.setattr(offscreen, "_PROBE", "raise ImportError")
    assert probe("") is None


def test_a_probe_without_an_answer_is_not_taken_for_a_missing_opengl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offscreen, "_CANDIDATES", {sys.platform: ("one", "two")})
    monkeypatch.setattr(offscreen, "_works", {"one": None, "two": True, "osmesa": None}.get)
    probe = offscreen._probe.__wrapped__
    assert probe("") == "two"
    with pytest.raises(
        UserError, match=r"test of off-screen OpenGL \(osmesa\) did not end in 180 s: the machine is busy"
    ):
        probe("osmesa")
    monkeypatch.undo()
    monkeypatch.setattr(offscreen, "_PROBE", "import time\nwhile True: time.sleep(1)")
    monkeypatch.setattr(offscreen, "_PROBE_SECONDS", 0.5)
    assert offscreen._works("osmesa") is None


@pytest.mark.opengl
def test_images_are_drawn_and_the_cameras_differ(seeing: MetaWorldEnv) -> None:
    observation, _ = seeing.reset(seed=0, options={"task": "drawer-open"})
    assert seeing.observation_space.contains(observation)
    corner, gripper = observation["images"]["corner"], observation["images"]["gripper"]
    assert corner.std() > 20
    assert gripper.std() > 20
    assert np.abs(corner.astype(int) - gripper).mean() > 10
    assert seeing.render().shape == (256, 256, 3)
    check_env(MetaWorldEnv(("drawer-open",), image_size=16), skip_render_check=True)


@pytest.mark.opengl
def test_pictures_are_upright(seeing: MetaWorldEnv) -> None:
    """The grey of the empty background is above, the table below."""
    observation, _ = seeing.reset(seed=0, options={"task": "drawer-open"})
    for name, image in observation["images"].items():
        grey = (np.ptp(image, axis=-1) < 12) & (np.abs(image.mean(-1) - 127) < 10)
        assert grey[:8].mean() > grey[-8:].mean() + 0.2, name


@pytest.mark.opengl
def test_images_follow_the_seed_and_the_episode(seeing: MetaWorldEnv) -> None:
    def pictures(seed: int) -> list[dict[str, Any]]:
        start, _ = seeing.reset(seed=seed, options={"task": "drawer-open"})
        return [start["images"], play(seeing, 20)[-1]["images"]]

    first, again, other = pictures(4), pictures(4), pictures(5)
    for camera in ("corner", "gripper"):
        for a, b in zip(first, again, strict=True):
            np.testing.assert_array_equal(a[camera], b[camera])
        assert not np.array_equal(first[0][camera], other[0][camera])
        assert np.abs(first[0][camera].astype(int) - first[1][camera]).mean() > 2
        np.testing.assert_array_equal(seeing.observe()["images"][camera], other[1][camera])


@pytest.mark.opengl
def test_environments_share_what_was_uploaded(seeing: MetaWorldEnv) -> None:
    """A second environment of the same task, at another size, draws its own objects and leaves the first alone."""
    seeing.reset(seed=0, options={"task": "drawer-open"})
    before = seeing.observe()["images"]["corner"]
    other = MetaWorldEnv(("drawer-open",), image_size=300, render_in_step=False)  # larger than any buffer so far
    other.reset(seed=1)
    large = other.observe()["images"]["corner"]
    other.close()
    assert large.shape == (300, 300, 3)
    assert large.std() > 20
    np.testing.assert_array_equal(seeing.observe()["images"]["corner"], before)


@pytest.mark.opengl
def test_first_picture_after_another_task_is_as_good_as_the_next() -> None:
    env = MetaWorldEnv(("drawer-open", "door-open"), image_size=32)
    for task in ("drawer-open", "door-open", "drawer-open", "door-open"):
        first, _ = env.reset(seed=0, options={"task": task})
        second = env.observe()
        for camera in ("corner", "gripper"):
            np.testing.assert_array_equal(first["images"][camera], second["images"][camera])


@pytest.mark.opengl
def test_process_that_drew_ends_without_complaint() -> None:
    script = "from pizero.envs.metaworld.env import MetaWorldEnv as E; E(('drawer-open',)).reset(seed=0)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def test_suites_are_the_published_ones() -> None:
    assert [list(TIERS.values()).count(tier) for tier in ("easy", "medium", "hard", "very hard")] == [28, 11, 6, 5]
    assert set(TIERS) == set(PROMPTS) == set(PUBLISHED_PROMPTS)
    assert set(MT10) < set(PROMPTS)
    for name, tasks, steps in (("mt10", 10, 400), ("mt50", 50, 400), ("mt50-lerobot", 50, 500)):
        env = make_env(f"metaworld-{name}", render_in_step=False)
        assert (len(env.task_names), env.max_steps) == (tasks, steps)
        observation, _ = env.reset(seed=0, options={"task": "push"})
        assert env.observation_space["prompt"].contains(observation["prompt"])  # type: ignore[attr-defined]
        assert (observation["prompt"] == "Push the puck to a goal") == name.endswith("lerobot")


@pytest.mark.opengl
def test_goal_is_several_pixels_wide_in_two_views_of_a_suite() -> None:
    """The goal of "push" is a ball of 4 cm, the only thing in the scene that is bright green."""
    env = make_env("metaworld-mt10", render_in_step=False)
    env.reset(seed=3, options={"task": "push"})
    images = env.observe()["images"]
    assert list(images) == ["corner", "gripper", "side"]
    green = {
        name: (image[..., 1] > 150) & (image[..., 0] < 100) & (image[..., 2] < 100) for name, image in images.items()
    }
    widths = [int(mask.any(0).sum()) for mask in green.values()]
    assert sum(width >= 3 for width in widths) >= 2, widths


@pytest.mark.opengl
def test_lerobots_view_holds_the_corner_view_in_its_middle() -> None:
    """They look from one place, the corner view at two thirds of the picture's width."""
    env = make_env("metaworld-mt50-lerobot", image_size=96, render_in_step=False)
    env.reset(seed=0, options={"task": "drawer-open"})
    wide = env.observe()["images"]["corner2"][16:80, 16:80]
    env = MetaWorldEnv(("drawer-open",), image_size=64, render_in_step=False)
    env.reset(seed=0)
    narrow = env.observe()["images"]["corner"]
    assert np.abs(wide.astype(int) - narrow).mean() < 6
