"""The ladder from the diffusion policy to π0: what each rung changes, and its preset in an environment."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from pizero.baseline.config import BaselineConfig, ladder_config, small_baseline
from pizero.configs.presets import ModelName, Preset, get_preset
from pizero.model.config import SMALL_SIZES
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

    The learning rates are those of the presets; no sweep was made yet.
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
    name: ModelName = "diffusion" if rung < PI0_RUNG else "pi0" if rung == PI0_RUNG else "pi05"
    preset = get_preset(config.env, name)
    nano = config.size == "nano"
    if isinstance(preset.model, BaselineConfig):
        model = ladder_config(rung, _nano_baseline(preset.model) if nano else preset.model)
        rate, draws = config.baseline_learning_rate, 1
    else:
        sizes = SMALL_SIZES["nano"]
        parts = {part: sizes[part] for part in ("vision", "prefix", "expert", "image_size")} if nano else {}
        model = dataclasses.replace(preset.model, action_horizon=HORIZON, **parts)
        rate, draws = config.pi0_learning_rate, preset.train.draws
    train = dataclasses.replace(
        preset.train, steps=config.steps, batch_size=config.batch_size, learning_rate=rate, draws=draws, seed=seed,
        warmup_steps=min(100, config.steps // 10), log_every=min(50, config.steps), validate_every=config.steps,
        save_every=max(config.steps // 3, 1), keep=1, optimizer="adamw", early_frames=0.0,
    )  # fmt: skip
    return dataclasses.replace(preset, model=model, train=train, execution_horizon=config.execution_horizon)


def _nano_baseline(base: BaselineConfig) -> BaselineConfig:
    """The smallest networks for the same robot and the same tokenizer."""
    kept = ("action_dim", "state_dim", "action_horizon", "num_history", "cameras", "vocab_size", "prompt_length")
    image_size = SMALL_SIZES["nano"]["image_size"]
    return small_baseline("nano", image_size=image_size, **{name: getattr(base, name) for name in kept})
