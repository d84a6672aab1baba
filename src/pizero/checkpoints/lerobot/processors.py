"""What a LeRobot policy folder records of the robot: features in config.json, and the two processors with statistics.

policy_preprocessor.json   rename, newline or state in the prompt, tokenise, relative actions, normalise
policy_postprocessor.json  unnormalise, absolute actions
<state_file>.safetensors   of a (un)normalise step: "observation.state.mean", "action.q99", ... in float32
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pizero.checkpoints.files.json_file import read_object
from pizero.checkpoints.files.safetensors_file import write_safetensors
from pizero.checkpoints.format import Facts
from pizero.checkpoints.lerobot.keys import (
    ABSOLUTE,
    ACTION_TOKENS,
    NORMALIZE,
    POSTPROCESSOR,
    PREPROCESSOR,
    RELATIVE,
    RENAME,
    STATE_OF_FAST,
    TOKENIZE,
    UNNORMALIZE,
    Step,
    look_at_config,
    read_steps,
)
from pizero.checkpoints.lerobot.stats import ACTION, MODES, STATE, UnknownError, read_norm_stats, width_of
from pizero.data.embodiments import Embodiment, Key
from pizero.data.norm_stats import LEROBOT_EPSILON, NormStats
from pizero.data.tokenizer import PaligemmaTokenizer
from pizero.model.config import CAMERAS, Pi0Config
from pizero.model.pi0_fast import Pi0FastConfig
from pizero.types import LARGEST, UserError

IMAGES = "observation.images."
TOKENIZER = "tokenizer.model"
"""The vocabulary, which LeRobot takes from the hub and does not look for here."""
_MOST_EMPTY = 100


@dataclass(frozen=True)
class Processors:
    """Steps before and after the model by registered name, and what is to be reported of them and of config.json.

    certain: false where something changes the robot's numbers in a way that is not done here.
    """

    before: Mapping[str, Step]
    after: Mapping[str, Step]
    notes: tuple[str, ...]
    certain: bool


# ---------------------------------------------------------------- reading


def read_config(path: Path) -> Mapping[str, Any]:
    """LeRobot's config.json; UserError where a key has another type than LeRobot writes."""
    values = read_object(path).values
    whole = (
        "chunk_size", "max_state_dim", "max_action_dim", "tokenizer_max_length", "num_inference_steps", "num_steps"
    )  # fmt: skip
    wrong = [name for name in whole if not _is_whole(values.get(name, 1)) or values.get(name, 1) < 1]
    empty = values.get("empty_cameras", 0)
    wrong += ["empty_cameras"] * (not _is_whole(empty) or not 0 <= empty <= _MOST_EMPTY)
    delay = values.get("rtc_training_max_delay") or 0
    wrong += ["rtc_training_max_delay"] * (not _is_whole(delay) or delay < 0)
    resolution = values.get("image_resolution", [1, 1])
    wrong += ["image_resolution"] * (not isinstance(resolution, list) or list(map(type, resolution)) != [int, int])
    for name in ("input_features", "output_features"):
        features = values.get(name) or {}
        fits = isinstance(features, dict) and all(
            isinstance(item, dict)
            and isinstance(item.get("type"), str)
            and isinstance(item.get("shape"), list)
            and all(_is_whole(size) and size >= 1 for size in item["shape"])
            for item in features.values()
        )
        wrong += [name] * (not fits)
    if wrong:
        raise UserError(f"{path}: {wrong[0]} is not what LeRobot writes there; copy the checkpoint again")
    chunk = values.get("chunk_size", delay + 1)
    if delay >= chunk:
        raise UserError(
            f"{path}: rtc_training_max_delay is {delay}, which leaves nothing of a chunk of {chunk} actions"
        )
    return values


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value <= LARGEST


def image_keys(values: Mapping[str, Any]) -> list[str]:
    """Keys of the policy's cameras in their order, without those that LeRobot adds as always missing."""
    empty = {f"{IMAGES}empty_camera_{number}" for number in range(values.get("empty_cameras", 0))}
    features = values.get("input_features") or {}
    return [key for key, feature in features.items() if feature["type"] == "VISUAL" and key not in empty]


def model_cameras(values: Mapping[str, Any]) -> tuple[str, ...]:
    """One for each of `image_keys`, then the empty ones; the keys' own names where those are the released cameras'.

    The released cameras where config.json names none.
    """
    keys = image_keys(values)
    if not keys:
        return CAMERAS
    count = len(keys) + values.get("empty_cameras", 0)
    names = [key.removeprefix(IMAGES) for key in keys]
    own = names if set(names) <= set(CAMERAS) else []
    more = [camera for camera in CAMERAS if camera not in own]
    more += [f"camera_{number}_rgb" for number in range(len(CAMERAS), count)]
    return tuple([*own, *more][:count])


def read_processors(folder: Path, values: Mapping[str, Any]) -> Processors:
    """Both; without steps where there are no files. values: of config.json."""
    told = look_at_config(values)
    before, after = (read_steps(folder, name, told) for name in (PREPROCESSOR, POSTPROCESSOR))
    length = before.get(TOKENIZE, Step()).config.get("max_length", 1)
    if not _is_whole(length) or length < 1:
        raise UserError(f"{folder / PREPROCESSOR}.json: max_length is no whole number of at least 1")
    if TOKENIZE in before and values.get("tokenizer_max_length", length) != length:
        told.unused.append(f"tokenizer_max_length {values['tokenizer_max_length']} (the processor's {length} counts)")
    return Processors(before, after, tuple(told.notes()), not told.changing)


def prompt_length(values: Mapping[str, Any], processors: Processors, default: int) -> int:
    """What the saved processor pads and cuts to, which LeRobot follows; else what config.json says."""
    told = values.get("tokenizer_max_length", default)
    return processors.before.get(TOKENIZE, Step()).config.get("max_length", told)


def read_facts(
    folder: Path, values: Mapping[str, Any], processors: Processors, config: Pi0Config | Pi0FastConfig
) -> tuple[Facts, list[str]]:
    """What is known, and a note for each thing that cannot. values: of config.json."""
    notes = list(processors.notes)
    before, after = processors.before, processors.after
    norm_stats = embodiment = None
    try:
        norm_stats = read_norm_stats(folder, values, before, after, notes)
    except UnknownError as unknown:
        if before or after:
            notes.append(f"the norm stats are unknown: {unknown}")
    try:
        if processors.certain:
            embodiment = _read_embodiment(values, config, before, after, norm_stats, notes)
    except UnknownError as unknown:
        notes.append(f"the embodiment is unknown: {unknown}")
    steps = values.get("num_inference_steps", values.get("num_steps", config.default_num_steps))
    if steps != config.default_num_steps:
        notes.append(f"LeRobot samples this policy in {steps} steps; give num_steps={steps} for the same actions")
    tokenizer = PaligemmaTokenizer(folder / TOKENIZER) if (folder / TOKENIZER).is_file() else None
    return Facts(embodiment, norm_stats, tokenizer, "lerobot"), notes


def _read_embodiment(
    values: Mapping[str, Any],
    config: Pi0Config | Pi0FastConfig,
    before: Mapping[str, Step],
    after: Mapping[str, Step],
    norm_stats: NormStats | None,
    notes: list[str],
) -> Embodiment:
    """The robot's columns are what the preprocessor renames to the policy's keys."""
    rename_map = before.get(RENAME, Step()).config.get("rename_map", {})
    renamed = {new: old for old, new in rename_map.items()}
    if len(renamed) < len(rename_map):
        raise UnknownError("its preprocessor renames two columns to one")
    robot_keys = [renamed.get(key, key) for key in image_keys(values)]
    if not robot_keys:
        raise UnknownError("config.json names no camera")
    prefix = next(p for p in (IMAGES, "observation.", "") if all(key.startswith(p) for key in robot_keys))
    names = [key.removeprefix(prefix) for key in robot_keys]
    action_dim = width_of(values.get("output_features"), ACTION) or config.action_dim
    state_dim = width_of(values.get("input_features"), STATE) or config.state_dim
    return Embodiment(
        "lerobot",
        dict(zip(config.cameras, names, strict=False)),
        # Features of a base checkpoint stay in config.json when it is fine-tuned; the statistics are the robot's own.
        state_dim=state_dim if norm_stats is None else norm_stats.state.dim,
        action_dim=action_dim,
        relative_mask=_read_relative_mask(values, before, after, action_dim, notes),
        state_key=renamed.get(STATE, STATE),
        action_key=ACTION,
        image_prefix=prefix,
    )


def _read_relative_mask(
    values: Mapping[str, Any],
    before: Mapping[str, Step],
    after: Mapping[str, Step],
    action_dim: int,
    notes: list[str],
) -> tuple[bool, ...]:
    """LeRobot's rule: a joint stays absolute whose name contains an excluded one; without names none does."""
    told = {
        "enabled": values.get("use_relative_actions", False),
        "exclude_joints": values.get("relative_exclude_joints", ()),
        "action_names": values.get("action_feature_names"),
        **before.get(RELATIVE, Step()).config,
    }
    if after.get(ABSOLUTE, Step({"enabled": told["enabled"]})).config.get("enabled", False) != told["enabled"]:
        raise UnknownError("one of its two processors makes actions relative, the other does not")
    if not told["enabled"]:
        return ()
    excluded = [str(name).lower() for name in told["exclude_joints"] if name]
    if excluded and told["action_names"] is None:
        if RELATIVE not in before:
            raise UnknownError("some joints have relative actions, and nothing says which")
        notes.append(
            f"no action names, so LeRobot makes every action relative, {', '.join(excluded)} included; so here"
        )
    names = [str(name).lower() for name in told["action_names"] or ()][:action_dim]
    mask = [not any(part in name for part in excluded) for name in names]
    return tuple(mask + [True] * (action_dim - len(mask)))


# ---------------------------------------------------------------- writing


def robot_config(config: Pi0Config | Pi0FastConfig, facts: Facts) -> dict[str, Any]:
    """The keys of config.json about the robot; the model's cameras and dims where the facts do not have them."""
    embodiment, stats = facts.embodiment, facts.norm_stats
    if embodiment is not None and embodiment.conversions:
        raise UserError(
            f"the {embodiment.name} embodiment converts the robot's numbers, which LeRobot cannot; write another format"
        )
    if embodiment is not None and (embodiment.state_dims or embodiment.action_dims):
        raise UserError(
            f"the {embodiment.name} embodiment chooses dimensions of the robot's columns, which LeRobot cannot; write "
            "another format"
        )
    keys = [IMAGES + camera for camera in config.cameras]
    if embodiment is not None:
        robot = [embodiment.cameras[camera] for camera in config.cameras if camera in embodiment.cameras]
        keys = [observation_key(embodiment.image_key(camera), IMAGES + camera) for camera in robot]
    empty = [f"{IMAGES}empty_camera_{number}" for number in range(len(config.cameras) - len(keys))]
    state_dim = (embodiment and embodiment.state_dim) or (stats.state.dim if stats else config.state_dim)
    action_dim = (embodiment and embodiment.action_dim) or (stats.actions.dim if stats else config.action_dim)
    default = "MEAN_STD" if config.has_state_token else "QUANTILES"
    mode = default if stats is None else next(name for name, mode in MODES.items() if mode == stats.mode)
    visual = {"type": "VISUAL", "shape": [3, config.image_size, config.image_size]}
    return {
        "input_features": {
            **dict.fromkeys(keys, visual),
            STATE: {"type": "STATE", "shape": [state_dim]},
            **dict.fromkeys(empty, visual),
        },
        "empty_cameras": len(empty),
        "output_features": {ACTION: {"type": "ACTION", "shape": [action_dim]}},
        "normalization_mapping": {"VISUAL": "IDENTITY", "STATE": mode, "ACTION": mode},
        **_relative_config(embodiment, action_dim),
    }


def observation_key(key: Key, other: str) -> str:
    """LeRobot takes for observations only what is named so, one column each."""
    return key if isinstance(key, str) and key.startswith("observation.") else other


def _relative_config(embodiment: Embodiment | None, action_dim: int) -> dict[str, Any]:
    """LeRobot chooses by names, so the actions get names; none contains another."""
    mask = embodiment.relative_mask if embodiment else ()
    if embodiment is None or not any(mask):
        return {"use_relative_actions": False, "relative_exclude_joints": [], "action_feature_names": None}
    indices = embodiment.state_indices or tuple(range(len(mask)))
    if any(on and index != position for position, (on, index) in enumerate(zip(mask, indices, strict=True))):
        raise UserError(
            f"the {embodiment.name} embodiment takes relative actions from other state dimensions than their own, "
            "which LeRobot cannot; write another format"
        )
    names = [f"action_{position:03}" for position in range(action_dim)]
    absolute = [name for position, name in enumerate(names) if position >= len(mask) or not mask[position]]
    return {"use_relative_actions": True, "relative_exclude_joints": absolute, "action_feature_names": names}


def write_processors(folder: Path, values: Mapping[str, Any], facts: Facts) -> None:
    """Both processors of LeRobot 0.6.1 for the config.json `values`, and the statistics where they are known."""
    inputs, outputs = values["input_features"], values["output_features"]
    enabled = values["use_relative_actions"]
    stats = None if facts.norm_stats is None else facts.norm_stats.in_convention("lerobot")
    epsilon = LEROBOT_EPSILON if stats is None else stats.epsilon
    state_key = STATE if facts.embodiment is None else observation_key(facts.embodiment.state_key, STATE)
    rename = (RENAME, {"rename_map": {} if state_key == STATE else {state_key: STATE}})
    tokenize = {
        "max_length": values["tokenizer_max_length"], "task_key": "task", "padding_side": "right",
        "padding": "max_length", "truncation": True, "tokenizer_name": "google/paligemma-3b-pt-224",
    }  # fmt: skip
    relative = (
        RELATIVE,
        {
            "enabled": enabled,
            "exclude_joints": values["relative_exclude_joints"],
            "action_names": values["action_feature_names"],
        },
    )
    norm_map = values["normalization_mapping"]
    normalize = (NORMALIZE, {"eps": epsilon, "features": {**inputs, **outputs}, "norm_map": norm_map})
    unnormalize = (UNNORMALIZE, {"eps": epsilon, "features": outputs, "norm_map": norm_map})
    device = ("device_processor", {"device": "cpu", "float_dtype": None})
    batch, text = ("to_batch_processor", {}), (TOKENIZE, tokenize)
    if values["type"] == "pi0":
        before = [rename, batch, ("pi0_new_line_processor", {}), text, device, relative, normalize]
    elif values["type"] == "pi05":
        state_in_prompt = ("pi05_prepare_state_tokenizer_processor_step", {})
        before = [rename, batch, relative, normalize, state_in_prompt, text, device]
    else:
        state_in_prompt = (STATE_OF_FAST, {"max_state_dim": values["max_state_dim"], "task_key": "task"})
        codec = {"max_action_tokens": values["max_action_tokens"], "trust_remote_code": True}
        actions = (ACTION_TOKENS, {**codec, "action_tokenizer_name": values["action_tokenizer_name"]})
        before = [rename, batch, relative, normalize, state_in_prompt, text, actions, device]
    after = [unnormalize, (ABSOLUTE, {"enabled": enabled}), device]
    tensors = {} if stats is None else _stats_tensors(stats, inputs, outputs)
    for name, steps in ((PREPROCESSOR, before), (POSTPROCESSOR, after)):
        write_steps(folder, name, steps, tensors)
    if facts.tokenizer is not None and facts.tokenizer.model is not None:
        facts.tokenizer.save(folder / TOKENIZER)


def write_steps(
    folder: Path, name: str, steps: Sequence[tuple[str, Mapping[str, Any]]], stats: Mapping[str, Tensor]
) -> None:
    written: list[dict[str, Any]] = []
    for number, (registered, config) in enumerate(steps):
        written.append({"registry_name": registered, "config": config})
        if registered in (NORMALIZE, UNNORMALIZE) and stats:
            written[-1]["state_file"] = state_file = f"{name}_step_{number}_{registered}.safetensors"
            write_safetensors(folder / state_file, stats)
    (folder / f"{name}.json").write_text(json.dumps({"name": name, "steps": written}, indent=2))


def _stats_tensors(norm_stats: NormStats, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """float32, cut to the robot's dims: LeRobot does not take longer ones."""
    return {
        f"{key}.{name}": torch.tensor(values[: width_of(features, key)], dtype=torch.float32)
        for key, features, stats in ((STATE, inputs, norm_stats.state), (ACTION, outputs, norm_stats.actions))
        for name, values in stats.to_json().items()
    }
