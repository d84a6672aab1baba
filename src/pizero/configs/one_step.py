"""A preset whose model learns to take a single step, from a trained π0 or π0.5 (SnapFlow, arXiv 2604.05656)."""

from __future__ import annotations

from dataclasses import replace

from pizero.checkpoints.models import NetworkConfig
from pizero.configs.preset import Preset
from pizero.model.config import Pi0Config
from pizero.types import UserError

WITHOUT_BASE = "one step is learnt from a trained policy's many; give its checkpoint with --checkpoint"
ALONE = "one step is learnt by the action expert's weights alone; leave --lora, --text, --fast and --no-insulation out"


def takes_one_step(config: NetworkConfig) -> bool:
    return isinstance(config, Pi0Config) and config.one_step


def with_one_step(preset: Preset) -> Preset:
    """Vision tower, prefix expert and token table keep their weights. UserError for another model, for adapters
    and frozen heads, and where text or FAST tokens are to be learnt beside it: what the base writes comes with it.
    """
    if not isinstance(preset.model, Pi0Config):
        raise UserError(
            "one step is learnt from the many that π0 and π0.5 integrate; π0-FAST writes tokens, and the diffusion "
            "policy has a schedule of its own (pizero evaluate --num-steps)"
        )
    if preset.model.language is not None or preset.train.parts.lora is not None:
        raise UserError(ALONE)
    if "heads" in preset.train.parts.freeze:
        raise UserError("one step is learnt by an input that is among the heads; leave --freeze heads out")
    freeze = tuple(dict.fromkeys((*preset.train.parts.freeze, "vision", "prefix")))
    train = replace(preset.train, parts=replace(preset.train.parts, freeze=freeze))
    return replace(preset, model=replace(preset.model, one_step=True), train=train)


def with_one_step_of(preset: Preset, config: NetworkConfig) -> Preset:
    """The preset for a model that goes on from one of this config: a one-step model stays one, and one that learns it
    keeps the delays that it was trained with, unless the preset has its own.
    """
    if takes_one_step(config) and not takes_one_step(preset.model):
        preset = with_one_step(preset)
    if isinstance(config, Pi0Config) and takes_one_step(preset.model) and not preset.train.max_delay:
        return replace(preset, train=replace(preset.train, max_delay=config.max_delay))
    return preset
