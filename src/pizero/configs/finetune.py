"""Presets of the full sizes, π0, π0.5 and π0-FAST, with openpi's numbers (src/openpi/training/config.py).
`--checkpoint` names the weights to start from: openpi's own are pi0_base, pi05_base and pi0_fast_base in
gs://openpi-assets/checkpoints. `--lora` trains adapters.

Each header has command, hardware, time and expected result.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pizero.configs.preset import OWN, ModelName, Preset, norm_mode
from pizero.model.config import Pi0Config
from pizero.model.pi0_fast import Pi0FastConfig
from pizero.train.config import LoraConfig, TrainConfig
from pizero.types import UserError

_DEFAULTS = TrainConfig(precision="mixed")
"""openpi's: 30,000 steps of 32 samples, 2.5e-5 after 1,000 steps down to 2.5e-6, average 0.99."""


def full(model: ModelName = "pi0") -> Preset:
    """Any robot with the full sizes: the dataset's own columns and cameras, absolute actions, chunks of 50.

    command   pizero train DATASET --preset full --checkpoint gs://openpi-assets/checkpoints/pi0_base --lora
              --output RUN
    hardware  as for aloha
    time      20,000 steps of 32 samples
    result    not measured here
    """
    return _full(OWN, model, replace(_DEFAULTS, steps=20_000), execution_horizon=25)


def aloha(model: ModelName = "pi0") -> Preset:
    """Two ALOHA arms: openpi's pi0_aloha_pen_uncap and pi05_aloha_pen_uncap.

    command   pizero train DATASET --preset aloha --checkpoint gs://openpi-assets/checkpoints/pi0_base --output RUN
    hardware  openpi's README: 70 GB of GPU memory for all weights, 22.5 GB with LoRA
    time      20,000 steps of 32 samples (π0.5: 64)
    result    not measured here
    """
    train = replace(_DEFAULTS, steps=20_000, batch_size=64 if model == "pi05" else 32)
    return _full("aloha", model, train, execution_horizon=25)


def droid(model: ModelName = "pi0") -> Preset:
    """A DROID arm of one's own: openpi's pi05_droid_finetune, and the same for π0.

    Statistics of the released checkpoint fit better than those of a small dataset, where the robot is the same.

    command   pizero train DATASET --preset droid --model pi05 --checkpoint gs://openpi-assets/checkpoints/pi05_droid
              --norm-stats gs://openpi-assets/checkpoints/pi05_droid --output RUN
    hardware  as for aloha
    time      20,000 steps of 32 samples
    result    not measured here
    """
    return _full("droid", model, replace(_DEFAULTS, steps=20_000), execution_horizon=8, action_horizon=16)


def so101(model: ModelName = "pi0") -> Preset:
    """An SO-101 with a camera on the table and one on the hand: joint targets relative to the state, chunks of 50.

    Settings of openpi's small fine-tunes of one arm's own data, as of `droid`; LeRobot records 30 frames a second, so a
    chunk is 1.7 s long and half a second of it is played.

    command   pizero train DATASET --preset so101 --checkpoint pi05 --lora --output RUN
    hardware  as for aloha
    time      20,000 steps of 32 samples
    result    not measured here
    """
    return _full("so101", model, replace(_DEFAULTS, steps=20_000), execution_horizon=15)


def libero(model: ModelName = "pi0") -> Preset:
    """LIBERO's four suites: openpi's pi0_libero and pi05_libero. The latter does not see the state.

    command   pizero train DATASET --preset libero --model pi05 --checkpoint gs://openpi-assets/checkpoints/pi05_base
              --output RUN
    hardware  as for aloha; openpi's π0.5 run has batches of 256
    time      30,000 steps of 32 samples (π0.5: 256)
    result    not measured here; openpi reports 96.85 % for π0.5 over the four suites (examples/libero/README.md)
    """
    if model != "pi05":
        return _full("libero", model, _DEFAULTS, execution_horizon=5)
    train = replace(
        _DEFAULTS, batch_size=256, warmup_steps=10_000, learning_rate=5e-5, final_learning_rate=5e-5, ema_decay=0.999
    )
    return _full("libero", model, train, execution_horizon=5, action_horizon=10, state_input="none")


def metaworld_full(model: ModelName = "pi0") -> Preset:
    """Meta-World with the full sizes and openpi's defaults.

    command   pizero train DATASET --preset metaworld-full --checkpoint gs://openpi-assets/checkpoints/pi0_base
              --output RUN
    hardware  as for aloha
    time      30,000 steps of 32 samples
    result    not measured here; 47.9 % on the 50 tasks in SmolVLA's paper (arXiv 2506.01844)
    """
    return _full("metaworld", model, _DEFAULTS, execution_horizon=8, action_horizon=16)


def tabletop_full(model: ModelName = "pi0") -> Preset:
    """The built-in simulator with the full sizes, for trying a fine-tune from end to end.

    command   pizero train DATASET --preset tabletop-full --checkpoint gs://openpi-assets/checkpoints/pi0_base --lora
              --output RUN
    hardware  as for aloha
    time      5,000 steps of 32 samples
    result    not measured here
    """
    return _full("tabletop", model, replace(_DEFAULTS, steps=5_000), execution_horizon=2, action_horizon=4)


def with_lora(preset: Preset, **changes: Any) -> Preset:
    """Adapters on both experts, of openpi's ranks, and no average, as in its pi0_libero_low_mem_finetune.

    changes: of the training settings, made at once.
    """
    parts = replace(changes.get("parts", preset.train.parts), lora=LoraConfig())
    train = replace(preset.train, **{"ema_decay": 0.0, **changes, "parts": parts})
    return replace(preset, train=train)


def _full(embodiment: str, model: ModelName, train: TrainConfig, execution_horizon: int, **changes: Any) -> Preset:
    if model == "diffusion":
        raise UserError(
            "presets of the full sizes are for pi0, pi05 and pi0-fast; a diffusion policy has tabletop and metaworld"
        )
    if model == "pi0-fast":
        changes.pop("state_input", None)
        config = Pi0FastConfig(**changes)
    else:
        config = (Pi0Config.pi05 if model == "pi05" else Pi0Config.pi0)(**changes)
    return Preset(embodiment, config, train, norm_mode(model), 384, execution_horizon)
