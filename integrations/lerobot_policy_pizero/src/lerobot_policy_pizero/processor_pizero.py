"""LeRobot's processors of the policy: they change no number, since pizero's pipeline normalises."""

from __future__ import annotations

from typing import Any

from lerobot.policies.factory import PolicyProcessorPipeline
from lerobot.processor import make_default_pre_post_processors

from lerobot_policy_pizero.configuration_pizero import PizeroConfig


def make_pizero_pre_post_processors(
    config: PizeroConfig, dataset_stats: dict[str, Any] | None = None
) -> tuple[PolicyProcessorPipeline[Any, Any], PolicyProcessorPipeline[Any, Any]]:
    """Rename, add a batch axis, move to the device; and back to the CPU. The normalising steps, which LeRobot's
    commands want to find, have the mode IDENTITY."""
    return make_default_pre_post_processors(config)
