"""Reads diffusion policies of LeRobot (0.6.1): config.json of type "diffusion", model.safetensors, the processors.

The network is our diffusion policy with `BaselineConfig.lerobot`. Image statistics are part of the model; those of
state and action go into `Facts`. A setting that is not known, or that our policy cannot express, raises UserError.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from pizero.baseline.config import BaselineConfig
from pizero.baseline.lerobot_style import LerobotStyle
from pizero.checkpoints.files.json_file import Settings, peek, read_object
from pizero.checkpoints.files.keymap import Entry, matched
from pizero.checkpoints.files.safetensors_file import SafetensorsWeights
from pizero.checkpoints.format import Arch, Facts, StoredCheckpoint
from pizero.checkpoints.lerobot.diffusion_processors import (
    Normaliser,
    image_statistics,
    norm_stats,
    read_normaliser,
)  # fmt: skip
from pizero.checkpoints.lerobot.keys import POSTPROCESSOR, PREPROCESSOR
from pizero.checkpoints.lerobot.stats import ACTION, STATE
from pizero.checkpoints.models import Network, empty_model
from pizero.data.embodiments import Embodiment
from pizero.data.tokenizer import PaligemmaTokenizer
from pizero.types import UserError

NAME = "lerobot-diffusion"
_IMAGES = "observation.images."
_FIXED = {"vision_backbone": "resnet18", "beta_schedule": "squaredcos_cap_v2", "n_groups": 8, "use_peft": False}
"""What our policy cannot do in another way. (The last block of LeRobot's UNet has 8 groups whatever n_groups says.)"""
_WITHOUT_EFFECT = {
    "type", "device", "use_amp", "push_to_hub", "repo_id", "private", "tags", "license", "pretrained_path",
    "pretrained_revision", "drop_n_last_frames", "crop_ratio", "crop_is_random", "pretrained_backbone_weights",
    "gradient_checkpointing", "compile_model", "compile_mode", "do_mask_loss_for_padding", "beta_start", "beta_end",
    "optimizer_lr", "optimizer_betas", "optimizer_eps", "optimizer_weight_decay", "scheduler_name",
    "scheduler_warmup_steps", "normalization_mapping",
}  # fmt: skip
"""Settings of training and of places, and two that are read elsewhere: the crop's shape and the processor's own map."""
_READ = {
    "n_obs_steps", "input_features", "output_features", "horizon", "n_action_steps", "resize_shape", "crop_shape",
    "use_group_norm", "spatial_softmax_num_keypoints", "use_separate_rgb_encoder_per_camera", "down_dims",
    "kernel_size", "diffusion_step_embed_dim", "use_film_scale_modulation", "noise_scheduler_type",
    "num_train_timesteps", "prediction_type", "clip_sample", "clip_sample_range", "num_inference_steps",
}  # fmt: skip
_LARGEST = 10_000
"""Of a number that no tensor's shape confirms."""


def detect(folder: Path) -> bool:
    """Recognised by the type in config.json."""
    return peek(folder / "config.json").get("type") == "diffusion"


def read(folder: Path, arch: Arch | None = None) -> StoredCheckpoint:
    """The policy in `folder`, strictly; its config has all sizes but the encoder's, which the tensors have."""
    if arch is not None:
        raise UserError(f"{folder} holds a diffusion policy, which knows its own sizes; leave arch out")
    settings = read_object(folder / "config.json")
    if unknown := sorted(set(settings) - _READ - _WITHOUT_EFFECT - set(_FIXED)):
        raise UserError(f"{settings.where}: {', '.join(unknown)} is no setting of LeRobot 0.6.1; it is not guessed")
    weights = SafetensorsWeights(folder)
    if any(name.startswith(("normalize_inputs.", "unnormalize_outputs.")) for name in weights):
        raise UserError(
            f"{folder} was saved by an older LeRobot, with statistics among the weights; run LeRobot's "
            "migrate_policy_normalization on it first"
        )
    features = _features(settings)
    before = read_normaliser(folder, PREPROCESSOR)
    config = _config(settings, features, before, weights)
    _check_grids(weights, config)
    ignored = [name for name in weights if name.endswith((".pos_grid", ".num_batches_tracked"))]
    tensors = matched(weights, key_table(config, settings.flag("use_film_scale_modulation")), ignored)
    stats, notes = norm_stats(features.state_dim, features.action_dim, before, read_normaliser(folder, POSTPROCESSOR))
    embodiment = None if before.renamed else _embodiment(features)
    facts = Facts(embodiment, stats, PaligemmaTokenizer.bytes())  # no prompt is read
    if before.renamed:
        notes.append(f"{folder}: the preprocessor renames observations; say yourself which camera is which")
    return StoredCheckpoint(NAME, config, tensors, facts, (*weights.notes, *notes, *_sampling_notes(settings, config)))


def write(folder: Path, model: Network, facts: Facts) -> None:
    raise UserError(f"{NAME} checkpoints are read only; save the policy as native")


def key_table(config: BaselineConfig, film_scale: bool = True) -> list[Entry]:
    """A row for every tensor of our policy.

    film_scale: false for one that modulates with a shift alone; ours has a scale, which is then 1.
    """
    ours = list(empty_model(config).state_dict())
    rows = [Entry(name, _their_name(name, config)) for name in ours]
    if film_scale:
        return rows
    return [replace(row, to_ours=_with_scale) if ".modulation." in row.ours else row for row in rows]


def _with_scale(shift: Tensor) -> Tensor:
    """Weight [W, C] or bias [W] of a shift -> of scale and shift: in front a scale of 1, whatever the conditioning."""
    return torch.cat([torch.ones_like(shift) if shift.ndim == 1 else torch.zeros_like(shift), shift])


# -------------------------------------------------------------------- names

_ENCODER = [
    (r"^stem\.", "backbone.0."),
    (r"^stem_norm\.", "backbone.1."),
    (r"^keypoints\.", "pool.nets."),
    (r"^output\.", "out."),
    (r"\.norm([12])\.", r".bn\1."),
    (r"\.shortcut\.", ".downsample."),
]
_UNET = [
    (r"^step_encoder\.mlp_in\.", "diffusion_step_encoder.1."),
    (r"^step_encoder\.mlp_out\.", "diffusion_step_encoder.3."),
    (r"^final\.", "final_conv.0.block."),
    (r"^output\.", "final_conv.1."),
    (r"^middle\.", "mid_modules."),
    (r"^(down|up)\.", r"\1_modules."),
    (r"\.(conv[12])\.", r".\1.block."),
    (r"\.modulation\.", ".cond_encoder.1."),
    (r"\.shortcut\.", ".residual_conv."),
    (r"\.first\.", ".0."),
    (r"\.second\.", ".1."),
    (r"\.resize\.", ".2."),
]


def _their_name(name: str, config: BaselineConfig) -> str:
    part, rest = name.split(".", 1)
    if part == "unet":
        return "diffusion.unet." + _renamed(rest, _UNET)
    encoder, rest = rest.split(".", 1)
    number = f"{config.cameras.index(encoder)}." if config.image_fusion == "separate" else ""
    rest = re.sub(r"^levels\.(\d+)\.", lambda found: f"backbone.{int(found[1]) + 4}.", rest)
    return f"diffusion.rgb_encoder.{number}{_renamed(rest, _ENCODER)}"


def _renamed(name: str, rules: list[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


# -------------------------------------------------------------------- config


@dataclass(frozen=True)
class _Features:
    """cameras: our name and LeRobot's key, in order."""

    cameras: dict[str, str]
    image_shape: tuple[int, int]
    state_dim: int
    action_dim: int


def _features(settings: Settings) -> _Features:
    inputs, outputs = settings.inner("input_features"), settings.inner("output_features")
    keys: list[str] = []
    shapes: set[tuple[int, ...]] = set()
    for key in inputs:
        feature = inputs.inner(key)
        kind = feature.text("type")
        if kind == "VISUAL":
            keys.append(key)
            shapes.add(feature.sizes("shape"))
        elif key != STATE:
            raise UserError(
                f"{settings.where}: the input {key} ({kind}) is neither an image nor {STATE}; not supported"
            )
    if len(shapes) != 1 or len(shape := next(iter(shapes))) != 3 or shape[0] != 3:
        raise UserError(f"{settings.where}: expected images of three colours and one size, got {sorted(shapes)}")
    if STATE not in inputs or list(outputs) != [ACTION]:
        raise UserError(f"{settings.where}: expected the input {STATE} and the output {ACTION} alone")
    widths = [part.inner(key).sizes("shape") for part, key in ((inputs, STATE), (outputs, ACTION))]
    if any(len(width) != 1 for width in widths):
        raise UserError(f"{settings.where}: expected a vector for state and action, got {widths}")
    prefix = _IMAGES if all(key.startswith(_IMAGES) for key in keys) else "observation."
    names = [key.removeprefix(prefix).replace(".", "_") for key in keys]
    return _Features(dict(zip(names, keys, strict=True)), (shape[1], shape[2]), widths[0][0], widths[1][0])


def _config(settings: Settings, features: _Features, before: Normaliser, weights: SafetensorsWeights) -> BaselineConfig:
    for name, value in _FIXED.items():
        if name in settings and settings.values[name] != value:
            raise UserError(f"{settings.where}: {name} is {settings.values[name]!r}; only {value!r} is supported")
    for name, known in (("prediction_type", ("epsilon", "sample")), ("noise_scheduler_type", ("DDPM", "DDIM"))):
        if settings.text(name) not in known:
            raise settings.wrong(name, f"{known[0]!r} or {known[1]!r}")
    for name in ("num_train_timesteps", "horizon"):
        if settings.whole(name) > _LARGEST:
            raise settings.wrong(name, f"at most {_LARGEST}")
    if settings.whole("n_obs_steps") > settings.whole("horizon"):
        raise settings.wrong("n_obs_steps", "at most the horizon")
    if settings.flag("clip_sample") and settings.real("clip_sample_range") <= 0:
        raise settings.wrong("clip_sample_range", "a number above 0")
    separate = settings.flag("use_separate_rgb_encoder_per_camera")
    root = f"diffusion.rgb_encoder.{'0.' if separate else ''}backbone."
    levels = [f"{root}{index}.0.conv1.weight" for index in range(4, 8)]
    if missing := [name for name in levels if name not in weights]:
        raise UserError(f"weights do not fit: {missing[0]} is missing; config.json describes another policy")
    mean, std = image_statistics(before, list(features.cameras.values()))
    style = LerobotStyle(
        image_shape=features.image_shape,
        image_mean=mean,
        image_std=std,
        resize=_pair(settings, "resize_shape"),
        crop=_pair(settings, "crop_shape"),
        batch_norm=not settings.flag("use_group_norm"),
        predicts_actions=settings.text("prediction_type") == "sample",
        num_steps=_ddim_steps(settings),
    )
    return BaselineConfig(
        action_horizon=settings.whole("horizon"),
        action_dim=features.action_dim,
        state_dim=features.state_dim,
        num_history=settings.whole("n_obs_steps"),
        cameras=tuple(features.cameras),
        state_input=True,
        image_fusion="separate" if separate else "shared",
        step_embedding="sincos",
        diffusion_steps=settings.whole("num_train_timesteps"),
        clip_range=settings.real("clip_sample_range") if settings.flag("clip_sample") else 0.0,
        down_dims=settings.sizes("down_dims"),
        kernel_size=settings.whole("kernel_size"),
        step_width=settings.whole("diffusion_step_embed_dim"),
        encoder_widths=tuple(size for name in levels for size in weights.shape(name)[:1]),
        keypoints=settings.whole("spatial_softmax_num_keypoints"),
        lerobot=style,
    )


def _pair(settings: Settings, name: str) -> tuple[int, int] | None:
    if settings.values.get(name) is None:
        return None
    sizes = settings.sizes(name)
    if len(sizes) != 2:
        raise settings.wrong(name, "a height and a width")
    return sizes[0], sizes[1]


def _check_grids(weights: SafetensorsWeights, config: BaselineConfig) -> None:
    """The positions that the keypoints are means of: ours are made, theirs are stored."""
    assert config.lerobot is not None
    height, width = (-(-size // config.encoder_stride) for size in config.lerobot.encoded_shape)
    for name in weights:
        if name.endswith(".pos_grid") and not _is_grid(weights[name], height, width):
            raise UserError(f"weights do not fit: {name} is not the grid of {height} x {width} positions")


def _is_grid(stored: Tensor, height: int, width: int) -> bool:
    if stored.shape != (height * width, 2):
        return False
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    return torch.allclose(stored.float(), torch.stack([x.flatten(), y.flatten()], dim=-1), atol=1e-5)


def _their_steps(settings: Settings) -> int:
    """How often LeRobot calls its network for a chunk."""
    given = settings.values.get("num_inference_steps") is not None
    return settings.whole("num_inference_steps" if given else "num_train_timesteps")


def _ddim_steps(settings: Settings) -> int | None:
    """LeRobot's own number where it samples as we do: with DDIM, in a divisor of the training steps."""
    steps = _their_steps(settings)
    ours = settings.text("noise_scheduler_type") == "DDIM" and settings.whole("num_train_timesteps") % steps == 0
    return steps if ours else None


def _sampling_notes(settings: Settings, config: BaselineConfig) -> list[str]:
    if _ddim_steps(settings) is not None:
        return []
    theirs = f"{settings.text('noise_scheduler_type')} in {_their_steps(settings)} steps"
    ours = f"DDIM, in {config.default_num_steps} steps unless num_steps says otherwise"
    return [f"{settings.where} samples with {theirs}; here it is {ours}"]


def _embodiment(features: _Features) -> Embodiment:
    keys = features.cameras.values()
    prefix = _IMAGES if all(key.startswith(_IMAGES) for key in keys) else "observation."
    cameras = {name: key.removeprefix(prefix) for name, key in features.cameras.items()}
    return Embodiment("lerobot", cameras, features.state_dim, features.action_dim, image_prefix=prefix)
