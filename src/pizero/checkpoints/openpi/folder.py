"""What openpi's two formats have in common: the sizes, config.json, and assets/<id>/norm_stats.json.

openpi keeps the sizes of a model in its source, not in the checkpoint. The PyTorch port's config.json names two
variants and openpi does not read it, so what we write has all our sizes and switches under one more key, `pizero`.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pizero.checkpoints.format import Arch, Facts
from pizero.checkpoints.models import Network
from pizero.data.fast.codec import FastCodec
from pizero.data.norm_stats import EPSILON, FieldStats, Mode, NormStats
from pizero.data.pipeline import CODEC
from pizero.files import read_json, values_of, write_bytes
from pizero.model.config import CAMERAS, GEMMA_2B, GEMMA_300M, GemmaConfig, Pi0Config, SiglipConfig
from pizero.model.pi0_fast import Pi0FastConfig
from pizero.types import UserError, as_tuple

CONFIG, ASSETS, STATS, OURS = "config.json", "assets", "norm_stats.json", "pizero"
DUMMY = GemmaConfig(width=64, depth=4, mlp_dim=128, num_heads=8, num_kv_heads=1, head_dim=16)
VARIANTS = {"gemma_2b": GEMMA_2B, "gemma_300m": GEMMA_300M, "dummy": DUMMY}
"""Sizes by openpi's names (openpi src/openpi/models/gemma.py, get_config)."""
HORIZON_UNKNOWN = (
    "openpi's files do not record the action horizon: {} steps are taken; give an arch for another one (pizero inspect "
    "--json writes one to change)"
)
STATE_UNKNOWN = (
    "openpi's files do not record whether the prompt holds the state: it is taken to; for a π0.5 trained with "
    "discrete_state_input=False (as pi05_libero) give an arch with state_input 'none'"
)


def config_from_arch(arch: Arch) -> Pi0Config:
    """Pi0Config itself, from our own JSON, or from the layout of `tiny_config.json` (pi05, vision, vlm, ...)."""
    if isinstance(arch, Pi0Config):
        return arch
    if isinstance(arch, Pi0FastConfig):
        raise UserError("the arch given is of a π0-FAST, the weights are not")
    with values_of("arch"):
        return _config_from_arch(arch)


def _config_from_arch(values: Mapping[str, Any]) -> Pi0Config:
    if "vlm" not in values:
        return Pi0Config.from_json(values)
    if "pi05" not in values:
        raise UserError("arch has no 'pi05' (true or false), so it does not say which model it is; add it")
    preset = Pi0Config.pi05 if values["pi05"] else Pi0Config.pi0
    vision = {name: values["vision"][name] for name in ("width", "depth", "mlp_dim", "num_heads")}
    return preset(
        vision=SiglipConfig(patch_size=values["patch_size"], **vision),
        prefix=GemmaConfig(**values["vlm"]),
        expert=GemmaConfig(**values["action_expert"]),
        vocab_size=values["vocab_size"],
        image_size=values["image_size"],
        prompt_length=values["max_token_len"],
        state_dim=values["action_dim"],
        action_dim=values["action_dim"],
        action_horizon=values["action_horizon"],
    )


def given_config(arch: Arch | None, folder: Path, adaptive: bool) -> Pi0Config | None:
    """What `arch` or a config.json of ours says; None when neither is there.

    adaptive: whether the weights have adaptive norms; UserError when the config says otherwise.
    """
    if arch is None:
        values = config_file(folder).get(OURS)
        with values_of(folder / CONFIG):
            config = None if values is None else Pi0Config.from_json(values)
    else:
        config = config_from_arch(arch)
    if config is not None and config.adaptive != adaptive:
        raise UserError(
            f"the weights are {'' if adaptive else 'not '}of the adaptive-norm kind, the arch says otherwise"
        )
    return config


def given_fast_config(arch: Arch | None, folder: Path) -> Pi0FastConfig | None:
    """The same for the weights of a π0-FAST; UserError when the config is of another model."""
    values = config_file(folder).get(OURS) if arch is None else arch
    if values is None or isinstance(values, Pi0FastConfig):
        return values
    if isinstance(values, Pi0Config) or "pi05" in values or "expert" in values:
        raise UserError("the weights are of a π0-FAST, without an action expert, and the arch is of a π0")
    with values_of(folder / CONFIG if arch is None else "arch"):
        if "vlm" not in values:
            return Pi0FastConfig.from_json(values)
        vision = {name: values["vision"][name] for name in ("width", "depth", "mlp_dim", "num_heads")}
        sizes = ("vocab_size", "image_size", "action_dim", "action_horizon")
        return Pi0FastConfig(
            vision=SiglipConfig(patch_size=values["patch_size"], **vision),
            prefix=GemmaConfig(**values["vlm"]),
            prompt_length=values["max_token_len"],
            cameras=as_tuple(values.get("cameras", CAMERAS)),
            **{name: values[name] for name in sizes},
        )


def config_file(folder: Path) -> dict[str, Any]:
    """The content of config.json; empty when there is none."""
    path = folder / CONFIG
    return read_json(path) if path.is_file() else {}


def write_config(folder: Path, config: Pi0Config | Pi0FastConfig, dtype: torch.dtype) -> None:
    """openpi's five keys and ours."""
    names = {sizes: name for name, sizes in VARIANTS.items()}
    values = {
        "action_dim": config.action_dim,
        "action_horizon": config.action_horizon,
        "paligemma_variant": names.get(config.prefix, "other"),
        **({} if isinstance(config, Pi0FastConfig) else {"action_expert_variant": names.get(config.expert, "other")}),
        "precision": str(dtype).removeprefix("torch."),
        OURS: config.to_json(),
    }
    write_bytes(folder / CONFIG, (json.dumps(values, indent=2) + "\n").encode())


def writable_config(model: Network) -> Pi0Config | Pi0FastConfig:
    """The config of a model that openpi can run; UserError for one that it would run differently, or not at all."""
    config = model.config
    if isinstance(config, Pi0FastConfig):
        check_no_stem(config.vision)
        return config
    if not isinstance(config, Pi0Config):
        raise UserError(f"openpi has no {type(model).__name__}; only native folders hold it")
    if config.action_attention != "bidirectional":
        raise UserError(
            "openpi has no causal attention among actions: it would compute other actions from these weights"
        )
    if config.adaptive == config.has_state_token:
        raise UserError(
            "openpi has a state token without adaptive norms (π0) or adaptive norms without a state token (π0.5); "
            f"this model has state_input {config.state_input!r} and time_conditioning {config.time_conditioning!r}"
        )
    if config.cameras != tuple(name for name in CAMERAS if name in config.cameras):
        raise UserError(
            f"openpi sees the cameras {', '.join(CAMERAS)} alone, in this order; this model has "
            f"{', '.join(config.cameras)}: openpi would compute other actions from these weights"
        )
    check_no_own_weights(config)
    return config


def check_no_own_weights(config: Pi0Config) -> None:
    """UserError for what the other projects' formats have no place for: a convolutional stem, the input of a one-step
    model, and a head beside the token table.
    """
    check_no_stem(config.vision)
    if config.one_step:
        raise UserError(
            "a one-step model has an input that the other projects' models lack (target_time); it is stored in native "
            "folders alone: write native, or lerobot-plugin"
        )
    if config.language is not None and not config.language.tied_head:
        raise UserError("a model whose text has a head of its own (tied_head false) is stored in native folders alone")


def check_no_stem(vision: SiglipConfig) -> None:
    if vision.stem_width:
        raise UserError(
            f"a vision tower with a convolutional stem (stem_width {vision.stem_width}) is stored in native folders "
            "alone; the other projects' models read patches"
        )


def read_facts(folder: Path, config: Pi0Config | Pi0FastConfig) -> tuple[Facts, tuple[str, ...]]:
    """The norm stats of the only robot among the assets, and warnings about them; the codec that we
    wrote beside a π0-FAST.
    """
    facts, notes = _read_stats(folder, config)
    if isinstance(config, Pi0FastConfig) and (folder / CODEC).is_dir():
        facts = replace(facts, codec=FastCodec.load(folder / CODEC))
    return facts, notes


def _read_stats(folder: Path, config: Pi0Config | Pi0FastConfig) -> tuple[Facts, tuple[str, ...]]:
    found = sorted((folder / ASSETS).rglob(STATS))
    if not found:
        return Facts(), ()
    if len(found) > 1:
        names = ", ".join(str(path.parent.relative_to(folder / ASSETS)) for path in found)
        return Facts(), (
            f"{folder} has the norm stats of several robots ({names}); none is taken: choose a file among its {ASSETS}",
        )
    try:
        return Facts(norm_stats=NormStats.load(found[0], mode_of(config))), ()
    except UserError as error:
        return Facts(), (f"its norm stats are not used: {error}",)


def write_assets(folder: Path, config: Pi0Config | Pi0FastConfig, facts: Facts) -> None:
    """assets/<name of the embodiment, or "robot">/norm_stats.json, if the statistics are known, and the codec of a
    π0-FAST, which openpi takes from the hub unless its config names a folder.

    openpi derives the mode from the model and has one epsilon: UserError for another mode; another epsilon goes into
    the spread, which gives the same numbers.
    """
    if facts.codec is not None:
        facts.codec.save(folder / CODEC)
        warnings.warn(
            f"openpi takes the action codec of physical-intelligence/fast; this model's lies in {CODEC}: give that "
            "folder, with physical-intelligence/fast's Python file in it, as fast_tokenizer_path of its FASTTokenizer",
            stacklevel=3,
        )
    if facts.norm_stats is None:
        return
    if facts.convention != "openpi":
        warnings.warn(
            "openpi shrinks images with a low-pass filter and cleans prompts; this model was trained otherwise, so its "
            f"actions differ a little for images that are not {config.image_size} wide",
            stacklevel=3,
        )
    stats = facts.norm_stats.in_convention("openpi")
    if stats.mode != mode_of(config):
        raise UserError(
            f"the norm stats are for mode {stats.mode!r}, but openpi would use {mode_of(config)!r} with this model; "
            "leave them out, or train with openpi's mode"
        )
    name = facts.embodiment.name if facts.embodiment else "robot"
    save_stats(stats, folder / ASSETS / name / STATS)


def save_stats(stats: NormStats, path: Path) -> None:
    """openpi's norm_stats.json, which records neither mode nor epsilon nor extremes."""
    stats = stats.in_convention("openpi")
    values = {
        name: {key: value for key, value in _widen(field, stats).to_json().items() if key not in ("min", "max")}
        for name, field in (("state", stats.state), ("actions", stats.actions))
    }
    write_bytes(path, json.dumps({"norm_stats": values}, indent=2).encode())


def mode_of(config: Pi0Config | Pi0FastConfig) -> Mode:
    """openpi src/openpi/training/config.py: quantiles for everything but π0."""
    return "quantile" if isinstance(config, Pi0FastConfig) or config.adaptive else "zscore"


def _widen(field: FieldStats, stats: NormStats) -> FieldStats:
    """The same normalisation with openpi's epsilon."""
    more = stats.epsilon - EPSILON
    if stats.mode == "zscore":
        return replace(field, std=field.std + more)
    assert field.q99 is not None  # NormStats refuses statistics without quantiles in this mode
    return replace(field, q99=field.q99 + more)
