"""Six Meta-World tasks: one language-conditioned policy from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pizero.configs.presets import Pi0Name, metaworld
from pizero.envs.metaworld.tasks import DEFAULT_TASKS
from pizero.workflows.collect import CollectConfig
from pizero.workflows.demo import DemoConfig, run_demo
from pizero.workflows.evaluate import EvaluateConfig


def metaworld_demo(folder: Path, model: Pi0Name = "pi0") -> dict[str, Any]:
    """50 demonstrations and 50 episodes of evaluation for each task."""
    preset = metaworld(model)
    size = preset.model.image_size
    config = DemoConfig(
        command="make demo-metaworld",
        collect=CollectConfig("metaworld", tasks=DEFAULT_TASKS, episodes=300, image_size=size, workers=2),
        evaluate=EvaluateConfig(
            env="metaworld", tasks=DEFAULT_TASKS, episodes=50, image_size=size, num_envs=4, num_videos=6,
            execution_horizon=preset.execution_horizon,
        ),
        baseline_episodes=10,
    )  # fmt: skip
    return run_demo(config, preset, folder)
