"""The ladder from the diffusion policy to π0: what each rung changes, and the studies beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pizero.baseline.config import BaselineConfig, ladder_config, small_baseline
from pizero.configs.presets import ModelName, Preset, get_preset
from pizero.model.config import SMALL_SIZES
from pizero.model.pi0_fast import Pi0FastConfig
from pizero.types import UserError, check_least

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
    "one model that writes the actions as tokens: π0-FAST",
)
"""By rung, each on top of the one before; the last two are each beside rung 7."""

PI0_RUNG = 7
_NETWORKS: dict[int, ModelName] = {PI0_RUNG: "pi0", 8: "pi05", 9: "pi0-fast"}
HORIZON = 32
"""Actions per chunk from rung 2 on."""


@dataclass(frozen=True)
class Variant:
    """One network that is trained and measured: a rung, or a rung with something else.

    fields, vision, train: of the network's, its vision tower's and the training's config, changed. demonstrations: of
    each task; 0 takes the comparison's number. rate: the rung's learning rate is multiplied by it.
    """

    name: str
    rung: int
    change: str
    fields: Mapping[str, Any] = field(default_factory=dict[str, Any])
    vision: Mapping[str, Any] = field(default_factory=dict[str, Any])
    train: Mapping[str, Any] = field(default_factory=dict[str, Any])
    demonstrations: int = 0
    rate: float = 1.0


_MUON = {"optimizer": "muon", "learning_rate": 2e-3}
"""As the presets of suites have it (presets.py)."""


def _single(name: str, change: str, **fields: Any) -> Variant:
    return Variant(f"single_{name}", 0, change, fields)


STUDIES: dict[str, tuple[Variant, ...]] = {
    "ladder": tuple(Variant(f"rung{rung}", rung, change) for rung, change in enumerate(CHANGES)),
    "single": (
        _single("state", "state input", state_input=True),
        _single("horizon32", "action horizon 32", action_horizon=32),
        _single("horizon50", "action horizon 50", action_horizon=50),
        _single("sincos", "sine-cosine time embedding", step_embedding="sincos"),
        _single("flow", "flow matching, 10 steps", objective="flow"),
        _single("apart", "ego and top images apart", image_fusion="separate"),
        _single("instruction", "instruction", instruction=True),
        _single("history1", "1 observation instead of 5", num_history=1),
        Variant("rung6_history1", 6, "rung 6 with 1 observation: instead of 5", {"num_history": 1}),
        Variant("rung7_muon", PI0_RUNG, "π0 with Muon: instead of AdamW", train=_MUON),
        Variant(
            "rung7_stem",
            PI0_RUNG,
            "π0 with Muon and a stem: convolutions before the patches",
            vision={"stem_width": 16},
            train=_MUON,
        ),
    ),
    "demonstrations": tuple(
        Variant(f"rung{rung}_demonstrations{count}", rung, CHANGES[rung], demonstrations=count)
        for rung in (0, 4, PI0_RUNG)
        for count in (10, 25, 50, 100)
    ),
    "rates": tuple(
        Variant(f"rung{rung}_rate{rate:g}", rung, CHANGES[rung], rate=rate)
        for rung in range(len(CHANGES))
        for rate in (0.4, 1.0, 2.5)
    ),
}
"""What `pizero compare --study` trains. "single" changes one thing at a time: of rung 0, then of rungs 6 and 7."""

STEP_RUNGS = (3, 4, PI0_RUNG)
STEP_COUNTS = (1, 2, 5, 10, 20, 50, 100)
"""The study "steps" evaluates these trained rungs with these numbers of inference steps; 3 and 4 differ in nothing but
the objective."""


@dataclass(frozen=True)
class LadderConfig:
    """What all variants share: environment, budget, batch, draws, actions played per chunk.

    steps: of the optimizer. seconds: above 0 the budget is that many CPU seconds of one core instead, turned into steps
    by a short measurement of each variant. draws: (noise, time) pairs per sample, for every network.
    learning_rates: by rung; docs/results/ladder.md has the sweep.
    """

    env: str = "metaworld"
    """Simulator, and the preset of the same name; for a recording a preset alone."""
    size: str = "full"
    """full, or nano for a check of the machinery."""
    steps: int = 1_500
    seconds: float = 0.0
    batch_size: int = 32
    draws: int = 2
    learning_rates: tuple[float, ...] = (*[2.5e-3] * PI0_RUNG, *[3.75e-3] * 3)
    execution_horizon: int = 8

    def __post_init__(self) -> None:
        if self.size not in ("full", "nano"):
            raise UserError(f"size is {self.size!r}; expected full or nano")
        if ":" in self.env:
            raise UserError(f"{self.env}: a comparison needs a simulator and a preset of one name (docs/simulators.md)")
        check_least(1, steps=self.steps, batch_size=self.batch_size, draws=self.draws)
        check_least(0, seconds=self.seconds)
        if len(self.learning_rates) != len(CHANGES):
            raise UserError(f"learning_rates: got {len(self.learning_rates)}, expected one for each of the rungs")


def rung_preset(rung: int, config: LadderConfig, seed: int) -> Preset:
    """The preset of a rung: the environment's own, with the rung's network and the shared budget."""
    if not 0 <= rung < len(CHANGES):
        raise UserError(f"rung {rung} does not exist; the ladder has 0 to {len(CHANGES) - 1}")
    return variant_preset(STUDIES["ladder"][rung], config, seed)


def variant_preset(variant: Variant, config: LadderConfig, seed: int) -> Preset:
    """Model and training of a variant, on one CPU thread."""
    rung = variant.rung
    preset = get_preset(config.env, _NETWORKS.get(rung, "diffusion"))
    nano = config.size == "nano"
    if isinstance(preset.model, BaselineConfig):
        model = ladder_config(rung, _nano_baseline(preset.model) if nano else preset.model)
    else:
        sizes = SMALL_SIZES["nano"]
        names = [part for part in ("vision", "prefix", "expert", "image_size") if hasattr(preset.model, part)]
        parts = {part: sizes[part] for part in names} if nano else {}
        vision = dataclasses.replace(parts.pop("vision", preset.model.vision), stem_width=0)
        model = dataclasses.replace(preset.model, action_horizon=HORIZON, vision=vision, **parts)
    train = dataclasses.replace(
        preset.train, steps=config.steps, batch_size=config.batch_size, seed=seed, threads=1,
        draws=1 if isinstance(preset.model, Pi0FastConfig) else config.draws,
        learning_rate=variant.rate * config.learning_rates[rung], warmup_steps=min(100, config.steps // 10),
        log_every=min(50, config.steps), validate_every=config.steps, save_every=max(config.steps // 3, 1), keep=1,
        optimizer="adamw", early_frames=0.0,
    )  # fmt: skip
    model, train = dataclasses.replace(model, **variant.fields), dataclasses.replace(train, **variant.train)
    if variant.vision and not nano and not isinstance(model, BaselineConfig):
        model = dataclasses.replace(model, vision=dataclasses.replace(model.vision, **variant.vision))
    return dataclasses.replace(preset, model=model, train=train, execution_horizon=config.execution_horizon)


def _nano_baseline(base: BaselineConfig) -> BaselineConfig:
    """The smallest networks for the same robot and the same tokenizer."""
    kept = ("action_dim", "state_dim", "action_horizon", "num_history", "cameras", "vocab_size", "prompt_length")
    image_size = SMALL_SIZES["nano"]["image_size"]
    return small_baseline("nano", image_size=image_size, **{name: getattr(base, name) for name in kept})
