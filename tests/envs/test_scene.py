"""Units of the actions, as pages show them."""

from __future__ import annotations

from pizero.data.embodiments import EMBODIMENTS
from pizero.envs.aloha.env import AlohaEnv
from pizero.envs.libero.env import LiberoEnv
from pizero.envs.metaworld.env import MetaWorldEnv
from pizero.envs.pusht.env import PushTEnv
from pizero.envs.scene import ACTION_UNITS, with_units
from pizero.envs.so101.env import SO101Env
from pizero.envs.tabletop.env import TabletopEnv


def test_every_dimension_of_every_simulator_has_a_unit() -> None:
    envs = {
        "tabletop": TabletopEnv, "pusht": PushTEnv, "metaworld": MetaWorldEnv, "so101": SO101Env,
        "aloha_sim": AlohaEnv, "libero_sim": LiberoEnv,
    }  # fmt: skip
    assert set(envs) <= set(EMBODIMENTS)
    assert {name: len(env.action_names) for name, env in envs.items()} == {
        name: len(units) for name, units in ACTION_UNITS.items()
    }
    assert with_units("aloha_sim", AlohaEnv.action_names)[7] == "right_waist (rad)"


def test_names_without_known_units_stay_as_they_are() -> None:
    assert with_units("my_arm", ["a", "b"]) == ("a", "b")
    assert with_units("tabletop", ["x"]) == ("x",)
