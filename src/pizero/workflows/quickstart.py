"""The quick start: a tiny π0 in the built-in simulator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pizero.configs.presets import Pi0Name, Preset, tabletop
from pizero.workflows.collect import CollectConfig
from pizero.workflows.demo import DemoConfig, run_demo
from pizero.workflows.evaluate import EvaluateConfig


def quickstart_config(preset: Preset) -> DemoConfig:
    """5,000 demonstrations, 200 episodes of evaluation: 40 of each of five kinds of task."""
    size = preset.model.image_size
    return DemoConfig(
        command="pizero quickstart",
        collect=CollectConfig(env="tabletop", episodes=5_000, image_size=size, image_format="png", workers=2),
        evaluate=EvaluateConfig(
            env="tabletop", episodes=40, image_size=size, num_videos=10, execution_horizon=preset.execution_horizon
        ),
        baseline_episodes=20,
    )


def quickstart(folder: Path, model: Pi0Name = "pi0") -> dict[str, Any]:
    preset = tabletop(model)
    return run_demo(quickstart_config(preset), preset, folder)
