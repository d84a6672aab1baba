"""Meta-World as a benchmark: MT10 and MT50 with this project's cameras, and MT50 as LeRobot's data and evaluation."""

from __future__ import annotations

from pizero.envs.metaworld.env import MetaWorldEnv
from pizero.envs.metaworld.tasks import MT10, PROMPTS, PUBLISHED_PROMPTS, TIERS


class MT10Env(MetaWorldEnv):
    """Ten tasks. A third camera, "side", looks across the gripper's view: goals are marked by a ball of 4 cm in the
    air, and from one direction its distance is hard to see.
    """

    camera_names = ("corner", "gripper", "side")
    default_tasks = MT10
    tiers = TIERS
    max_steps = 400


class MT50Env(MT10Env):
    """All fifty tasks."""

    default_tasks = tuple(PROMPTS)


class LeRobotMT50Env(MetaWorldEnv):
    """All fifty tasks by the protocol of LeRobot's evaluation: one camera, its instructions, 500 steps; success at any
    step. Placements are drawn from the episode's seed, and pictures have no shadows, so both differ from LeRobot's.
    """

    camera_names = ("corner2",)
    default_tasks = tuple(PROMPTS)
    prompts = PUBLISHED_PROMPTS
    tiers = TIERS
    max_steps = 500
