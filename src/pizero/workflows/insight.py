"""`pizero inspect` with an observation: a page, and a recording for Rerun, of what a policy does inside."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pizero.checkpoints.load import load_plain_policy
from pizero.data.robot_columns import action_names
from pizero.envs.env import make_env
from pizero.evaluation.rollout import joined
from pizero.policy.policy import ModelPolicy
from pizero.report.insight.measure import Insight, look_inside
from pizero.report.insight.page import insight_page
from pizero.report.insight.recording import check_rerun, write_recording
from pizero.types import RobotDict, UserError
from pizero.workflows.progress import console, progress_bar
from pizero.workflows.replay import open_episode, recorded_observation


@dataclass(frozen=True)
class InsightConfig:
    """Which observation: `frame` of `episode` of `dataset`, or what `env` shows at the start of the episode of `seed`
    with `task`; seed is of the noise too. num_steps: of sampling; None takes the model's own number.
    """

    dataset: Path | None = None
    episode: int = 0
    frame: int = 0
    env: str | None = None
    task: str | None = None
    seed: int = 0
    num_steps: int | None = None
    arch: Path | None = None
    rerun: Path | None = None

    def __post_init__(self) -> None:
        if (self.dataset is None) == (self.env is None):
            raise UserError("give one of --dataset and --env: the page shows what the policy does with one observation")


def inspect_inside(checkpoint: str, config: InsightConfig, output: Path) -> Insight:
    """Writes the page `output`, and the recording where one is asked for; returns what they show."""
    if config.rerun is not None:
        check_rerun()
    policy = load_plain_policy(checkpoint, num_steps=config.num_steps, arch=config.arch)
    robot, names, source = _recorded(policy, config) if config.dataset is not None else _simulated(policy, config)
    with progress_bar() as bars:
        bar = bars.add_task("looking inside", total=None, note="")
        insight = look_inside(policy, robot, names, config.seed, lambda part: bars.update(bar, note=part))
    insight_page(output, insight, f"pizero inspect: {Path(checkpoint).name}, {source}")
    console.print(f"page: {output}")
    if config.rerun is not None:
        write_recording(config.rerun, insight)
        console.print(f"recording: {config.rerun}; open it with `rerun {config.rerun}`")
    return insight


def _recorded(policy: ModelPolicy, config: InsightConfig) -> tuple[RobotDict, tuple[str, ...], str]:
    assert config.dataset is not None
    robot = policy.pipeline.embodiment
    dataset = open_episode(policy, config.dataset, config.episode, "give the dataset that it was trained on")
    if not 0 <= config.frame < dataset.num_frames:
        raise UserError(f"frame must be 0 to {dataset.num_frames - 1} in episode {config.episode}, got {config.frame}")
    names = tuple(action_names(dataset, robot) or ())
    observation = recorded_observation(dataset, policy.pipeline, config.frame)
    return observation, names, f"{config.dataset.name}, episode {config.episode}, frame {config.frame}"


def _simulated(policy: ModelPolicy, config: InsightConfig) -> tuple[RobotDict, tuple[str, ...], str]:
    assert config.env is not None
    env = make_env(config.env, image_size=max(policy.pipeline.image_size), render_in_step=False)
    try:
        env.reset(seed=config.seed, options=None if config.task is None else {"task": config.task})
        seen = joined([env.observe()] * policy.num_history)
        return seen, tuple(env.action_names), f"{config.env}, seed {config.seed}"
    finally:
        env.close()
