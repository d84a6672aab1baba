"""The ladder from the diffusion policy to π0: what each rung changes, and its preset in an environment."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from pizero.baseline.config import BaselineConfig, ladder_config, small_baseline
from pizero.configs.presets import Pi0Name, Preset, get_preset
from pizero.model.config import Pi0Config, small_config
from pizero.types import UserError

CHANGES = (
    "diffusion policy: no state, 5 observations, 16 actions, 20 steps",
    "+ state input",
    "+ action horizon 32",
    "+ sine-cosine time embedding",
    "flow matching instead of diffusion, 10 steps",
    "ego and top images apart",
    "+ instruction",
    "dual experts, one observation: π0",
    "π0.5",
)
"""By rung, each on top of the one before."""

PI0_RUNG = 7
HORIZON = 32
"""Actions per chunk from rung 2 on."""


@dataclass(frozen=True)
class LadderConfig:
    """What all rungs share: environment, sample budget, learning rate of each kind of network.

    The learning rates come from a sweep of the same size for both kinds (docs/results/ladder.md).
    """

    env: str = "metaworld"
    size: str = "full"
    """full, or nano for a check of the machinery."""
    steps: int = 2_500
    batch_size: int = 32
    baseline_learning_rate: float = 1e-3
    pi0_learning_rate: float = 1.5e-3
    execution_horizon: int = 8

    def __post_init__(self) -> None:
        if self.size not in ("full", "nano"):
            raise UserError(f"size is {self.size!r}; expected full or nano")


def rung_preset(rung: int, config: LadderConfig, seed: int) -> Preset:
    """The preset of a rung: the environment's own, with the rung's network and the shared budget."""
    if not 0 <= rung < len(CHANGES):
        raise UserError(f"rung {rung} does not exist; the ladder has 0 to {len(CHANGES) - 1}")
    kind: Pi0Name = "pi05" if rung > PI0_RUNG else "pi0"
    preset = get_preset(config.env, kind)
    if rung < PI0_RUNG:
        model: Pi0Config | BaselineConfig = _baseline(rung, config)
        rate, draws, average = config.baseline_learning_rate, 1, {"ema_decay": 0.9999, "ema_power": 0.75}
    else:
        assert isinstance(preset.model, Pi0Config)
        sizes: dict[str, Any] = {
            "vision": preset.model.vision,
            "prefix": preset.model.prefix,
            "expert": preset.model.expert,
        }
        if config.size == "nano":
            nano = small_config("nano")
            sizes = {"vision": nano.vision, "prefix": nano.prefix, "expert": nano.expert, "image_size": 28}
        model = dataclasses.replace(preset.model, action_horizon=HORIZON, **sizes)
        rate, draws, average = config.pi0_learning_rate, preset.train.draws, {}
    train = dataclasses.replace(
        preset.train, steps=config.steps, batch_size=config.batch_size, learning_rate=rate, draws=draws, seed=seed,
        warmup_steps=min(100, config.steps // 10), log_every=min(50, config.steps), validate_every=config.steps,
        save_every=max(config.steps // 3, 1), keep=1, optimizer="adamw", early_frames=0.0, **average,
    )  # fmt: skip
    return dataclasses.replace(preset, model=model, train=train, execution_horizon=config.execution_horizon)


def _baseline(rung: int, config: LadderConfig) -> BaselineConfig:
    base = get_preset(config.env, "diffusion").model
    assert isinstance(base, BaselineConfig)
    if config.size == "nano":
        shared = {name: getattr(base, name) for name in ("action_dim", "state_dim", "cameras", "vocab_size")}
        lengths = {"action_horizon": 16, "num_history": 5, "image_size": 28, "prompt_length": base.prompt_length}
        base = small_baseline("nano", **shared, **lengths)
    return ladder_config(rung, base)
