"""Presets: complete settings of a training, one short function each. PRESETS lists the names that users type.

Each header has command, hardware, time and expected result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pizero.baseline.config import small_baseline
from pizero.configs.finetune import aloha, droid, full, libero, metaworld_full, so101, tabletop_full
from pizero.configs.preset import OWN, ModelName, Pi0Name, Preset, norm_mode
from pizero.configs.preset_file import preset_of_file
from pizero.data.fast.tokens import SKIP
from pizero.model.config import CAMERAS, Pi0Config, small_config
from pizero.model.pi0_fast import Pi0FastConfig
from pizero.plugins import Registry
from pizero.train.config import TrainConfig
from pizero.types import UserError

__all__ = ["OWN", "PRESETS", "ModelName", "Pi0Name", "Preset", "get_preset", "metaworld", "pusht", "small", "tabletop"]


def small(model: ModelName = "pi0") -> Preset:
    """Small π0 for any robot, from scratch: cameras, image size, dimensions and horizon are the dataset's.

    command   pizero train DATASET --preset small --output RUN
    hardware  2 CPU cores
    time      20 to 30 minutes with two cameras: 82 samples a second of one core with chunks of 30 actions
    result    not measured; with the same weights and fewer steps 99 % on six Meta-World tasks (`metaworld`)
    """
    preset = metaworld(model)
    return replace(preset, embodiment=OWN, from_data=True, train=replace(preset.train, steps=5_000))


def tabletop(model: ModelName = "pi0") -> Preset:
    """Tiny π0 for the built-in simulator.

    command   pizero quickstart
    hardware  2 CPU cores
    time      3 to 5 minutes
    result    98 to 100 % over 200 episodes, π0.5 94.5 % (docs/results/quickstart.md)
    """
    config = small_config(
        "tiny", pi05=model == "pi05", state_dim=7, action_dim=5, action_horizon=4, **_prompt(model, 16, 72)
    )
    train = TrainConfig(
        steps=1_600, batch_size=32, learning_rate=3e-3, final_learning_rate=2e-5, warmup_steps=50, ema_decay=0.99,
        optimizer="muon", early_frames=1.5, draws=4, augmentation="none", log_every=20, validate_every=800,
        save_every=800, validation_fraction=0.02, seed=0,
    )  # fmt: skip
    preset = Preset("tabletop", config, train, norm_mode(model), 384, execution_horizon=2)
    return _of_kind(preset, model)


def metaworld(model: ModelName = "pi0") -> Preset:
    """Small π0 for six Meta-World tasks, one language-conditioned policy from scratch.

    command   make demo-metaworld
    hardware  2 CPU cores
    time      5 minutes of demonstrations, 10 of training, 3 of evaluation
    result    99 % on the mean of six tasks, 50 episodes each (docs/results/metaworld.md)
    """
    config = small_config("small", pi05=model == "pi05", **_prompt(model, 16, 48))
    preset = Preset("metaworld", config, _small_train(3_000), norm_mode(model), 384, execution_horizon=8)
    return _of_kind(preset, model)


def metaworld_mt10(model: ModelName = "pi0") -> Preset:
    """Small π0 for the ten tasks of Meta-World's MT10, one language-conditioned policy from scratch.

    command   pizero train DATASET --preset metaworld-mt10 --output RUN
    hardware  1 CPU core
    result    94.4 % of 500 episodes (docs/results/benchmarks.md)
    """
    config = small_config("small", pi05=model == "pi05", cameras=CAMERAS, action_horizon=10, **_prompt(model, 24, 56))
    config = _with_convolutions(config)
    preset = Preset(
        "metaworld_mt", config, _muon_train(10_000, early_frames=0.5), norm_mode(model), 384, execution_horizon=5
    )
    return _of_kind(preset, model)


def metaworld_mt50(model: ModelName = "pi0") -> Preset:
    """The same for all fifty tasks.

    command   pizero train DATASET --preset metaworld-mt50 --output RUN
    hardware  1 CPU core
    result    87.8 % with 10,000 steps and 16 demonstrations of each task (docs/results/benchmarks.md)
    """
    preset = metaworld_mt10(model)
    return replace(preset, train=replace(preset.train, steps=30_000, validation_fraction=0.02))


def pusht(model: ModelName = "pi0") -> Preset:
    """Small π0 for PushT, from scratch: chunks of a second of positions relative to the disc.

    command   pizero train DATASET --preset pusht --output RUN
    hardware  1 CPU core; needs the `pusht` extra for demonstrations and evaluation
    result    68.5 % of 200 episodes, coverage 0.96, with 450 demonstrations (docs/results/benchmarks.md)
    """
    config = small_config("small", pi05=model == "pi05", image_size=96, action_horizon=10, **_prompt(model, 16, 48))
    train = _muon_train(8_000, early_frames=0.3)
    preset = Preset("pusht", _with_convolutions(config), train, norm_mode(model), 384, execution_horizon=5)
    return _of_kind(preset, model)


def aloha_sim(model: ModelName = "pi0") -> Preset:
    """Small π0 for simulated ALOHA, from scratch: three cameras, chunks of 0.4 seconds of relative joint targets.

    command   pizero train DATASET --preset aloha-sim --output RUN
    hardware  1 CPU core; needs the `aloha` extra for demonstrations and evaluation
    result    transfer_cube 96 %, insertion 62 % with 200 demonstrations of each (docs/results/benchmarks.md)
    """
    config = small_config(
        "small", pi05=model == "pi05", image_size=128, cameras=CAMERAS, state_dim=14, action_dim=14, action_horizon=20,
        **_prompt(model, 24, 96),
    )  # fmt: skip
    train = _muon_train(5_000, early_frames=0.3)
    preset = Preset("aloha_sim", _with_convolutions(config), train, norm_mode(model), 384, execution_horizon=10)
    return _of_kind(preset, model)


def so101_sim(model: ModelName = "pi0") -> Preset:
    """Tiny π0 for the simulated SO-101, from scratch: two cameras of 64 px, chunks of one second.

    command   pizero train DATASET --preset so101-sim --output RUN
    hardware  1 CPU core; needs the `so101` extra for demonstrations and evaluation
    result    docs/results/benchmarks.md
    """
    config = small_config(
        "tiny", pi05=model == "pi05", image_size=64, state_dim=6, action_dim=6, **_prompt(model, 16, 56)
    )
    config = replace(config, vision=replace(config.vision, patch_size=16))
    train = TrainConfig(
        steps=3_000, batch_size=32, learning_rate=3e-3, final_learning_rate=2e-5, warmup_steps=50, ema_decay=0.99,
        optimizer="muon", draws=4, augmentation="none", log_every=50, validate_every=500, save_every=500,
        validation_fraction=0.04, seed=0,
    )  # fmt: skip
    return _of_kind(Preset("so101", config, train, norm_mode(model), 384, execution_horizon=8), model)


def libero_sim(model: ModelName = "pi0") -> Preset:
    """Small π0 for a suite of LIBERO, from scratch.

    command   pizero train DATASET --preset libero-sim --output RUN
    hardware  1 CPU core; needs the `libero` extra for demonstrations and evaluation
    result    80.5 % of libero-spatial with 20 demonstrations of each task, 63 % of libero-goal with 15; 95 % of
              libero-object with 15, in 2,500 steps and without the convolutions (docs/results/benchmarks.md)
    """
    config = small_config(
        "small", pi05=model == "pi05", image_size=128, action_horizon=10, vocab_size=512, **_prompt(model, 40, 80)
    )
    preset = Preset(
        "libero_sim", _with_convolutions(config), _muon_train(5_000), norm_mode(model), 512, execution_horizon=5
    )
    return _of_kind(preset, model)


PRESETS: dict[str, Callable[[ModelName], Preset]] = {
    "small": small, "tabletop": tabletop, "metaworld": metaworld, "metaworld-mt10": metaworld_mt10,
    "metaworld-mt50": metaworld_mt50, "pusht": pusht, "aloha-sim": aloha_sim, "so101-sim": so101_sim,
    "libero-sim": libero_sim, "full": full, "aloha": aloha, "droid": droid, "so101": so101, "libero": libero,
    "metaworld-full": metaworld_full, "tabletop-full": tabletop_full,
}  # fmt: skip


_REGISTRY = Registry("preset", "pizero.presets", PRESETS, "a TOML file or module:function")


def get_preset(name: str, model: ModelName = "pi0") -> Preset:
    """A preset by name (a key of `PRESETS`, or an entry point of the group pizero.presets), as module:function, or by
    the path of a TOML file (examples/my_preset.toml). UserError says what is wrong.
    """
    if name.endswith(".toml"):
        return preset_of_file(Path(name), lambda like: get_preset(like, model))
    preset = _REGISTRY.make(name, model)
    if not isinstance(preset, Preset):
        raise UserError(f"preset {name!r}: expected a Preset, got a {type(preset).__name__}")
    return preset


def _of_kind(preset: Preset, model: ModelName) -> Preset:
    """The preset of a π0 or π0.5 with another network in its place where one is asked for."""
    if model == "diffusion":
        return _rung_0(preset)
    return _writing(preset) if model == "pi0-fast" else preset


def _writing(preset: Preset) -> Preset:
    """π0-FAST in place of a preset's π0, from scratch: its vision tower and prefix, which write the actions as tokens.

    The vocabulary has the words of the dataset's prompts and after them a codec that is fitted to its actions.

    command   pizero train DATASET --preset tabletop --model pi0-fast --output RUN
    hardware  1 CPU core
    result    docs/results/pi05.md
    """
    pi0, codec_size = preset.model, 512
    assert isinstance(pi0, Pi0Config)
    model = Pi0FastConfig(
        vision=pi0.vision, prefix=pi0.prefix, vocab_size=preset.tokenizer_size + codec_size + SKIP,
        cameras=pi0.cameras, image_size=pi0.image_size, prompt_length=pi0.prompt_length, state_dim=pi0.state_dim,
        action_dim=pi0.action_dim, action_horizon=pi0.action_horizon,
    )  # fmt: skip
    return replace(preset, model=model, train=replace(preset.train, draws=1), codec_size=codec_size)


def _rung_0(preset: Preset) -> Preset:
    """The diffusion policy in place of a preset's π0, with the same images, samples and steps: rung 0 of the ladder.

    It sees five observations of the stacked cameras, neither state nor instruction, and gives chunks of 16 actions. As
    in the paper the actions are scaled to [-1, 1], here by their quantiles, and DDIM clips to that range.

    command   pizero train DATASET --preset tabletop --model diffusion --output RUN
    hardware  2 CPU cores; needs the `baseline` extra
    result    28 % on six Meta-World tasks with 48,000 samples; flow matching instead: 95 % (docs/results/ladder.md)
    """
    pi0 = preset.model
    assert isinstance(pi0, Pi0Config)
    model = small_baseline(
        "tiny", cameras=pi0.cameras, image_size=pi0.image_size, state_dim=pi0.state_dim, action_dim=pi0.action_dim,
        vocab_size=pi0.vocab_size, prompt_length=pi0.prompt_length,
        stem_stride=min(max(pi0.image_size // 16, 1), 4),  # leaves 4 x 4 positions for the keypoints, 6 x 6 at 96 px
    )  # fmt: skip
    train = replace(preset.train, optimizer="adamw", learning_rate=1e-3, ema_decay=0.9999, ema_power=0.75)
    return replace(preset, model=model, train=train, norm_mode="quantile")


def _small_train(steps: int) -> TrainConfig:
    """From scratch, on images of a simulator."""
    return TrainConfig(
        steps=steps, batch_size=32, learning_rate=2e-3, final_learning_rate=1e-5, warmup_steps=100, ema_decay=0.995,
        optimizer="muon", draws=2, augmentation="shift", log_every=50, validate_every=1_000, save_every=1_000, seed=0,
    )  # fmt: skip


def _muon_train(steps: int, early_frames: float = 0.0) -> TrainConfig:
    """From scratch, on suites of tasks."""
    return TrainConfig(
        steps=steps, batch_size=32, learning_rate=2e-3, final_learning_rate=1e-5, warmup_steps=100, ema_decay=0.998,
        optimizer="muon", early_frames=early_frames, draws=4, augmentation="none", log_every=50, validate_every=500,
        save_every=500, validation_fraction=0.04, seed=0,
    )  # fmt: skip


def _with_convolutions(config: Pi0Config) -> Pi0Config:
    """The model with convolutions before its patches (docs/results/benchmarks.md)."""
    return replace(config, vision=replace(config.vision, stem_width=16))


def _prompt(model: ModelName, without_state: int, with_state: int) -> dict[str, int]:
    return {"prompt_length": with_state if model in ("pi05", "pi0-fast") else without_state}
