"""The registry of environments."""

import subprocess
import sys

import pytest

from pizero.envs import ENVS, make_env
from pizero.types import Env, UserError


def test_makes_the_tabletop_with_its_options() -> None:
    env = make_env("tabletop", image_size=24, tasks=["lift"], render_in_step=False)
    assert isinstance(env, Env)
    assert env.task_names == ("lift",)
    observation, _ = env.reset(seed=0)
    assert observation["images"]["top"].shape == (24, 24, 3)


def test_image_size_is_the_environments_own_by_default() -> None:
    observation, _ = make_env("tabletop").reset(seed=0)
    assert observation["images"]["ego"].shape == (64, 64, 3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "tabeltop"}, ["tabeltop", *ENVS]),
        ({"name": "tabletop", "image_size": 0}, ["image_size is 0"]),
        ({"name": "tabletop", "tasks": ["fly"]}, ["fly", "reach"]),
        ({"name": "tabletop", "tasks": []}, ["expected some of"]),
    ],
)
def test_mistakes_get_one_line(arguments: dict, words: list[str]) -> None:
    with pytest.raises(UserError) as raised:
        make_env(**arguments)
    message = str(raised.value)
    assert "\n" not in message
    assert all(word in message for word in words)


def test_the_tabletop_needs_no_simulator_and_no_torch() -> None:
    code = (
        "import sys; from pizero.envs import make_env; make_env('tabletop').reset(seed=0);"
        "print([m for m in ('torch', 'mujoco', 'metaworld') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
