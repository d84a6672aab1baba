"""The keys of a LeRobot policy's config.json and processor steps, and what becomes of each.

used        read in policy.py or processors.py
harmless    of training, of places, of how LeRobot computes: nothing that the policy does depends on it
neutral     changes what the robot's numbers mean, in a way that is not done here, except with the values listed

A key of the last kind with another value, and a step that is not known, leave the robot unknown. Everything else that
says something and is not used is named. A processor is the steps of its file by name, each with its settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from pizero.checkpoints.files.json_file import Settings, read_object, short
from pizero.types import UserError

PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor", "policy_postprocessor"
RENAME, RELATIVE, ABSOLUTE = "rename_observations_processor", "relative_actions_processor", "absolute_actions_processor"
NORMALIZE, UNNORMALIZE, TOKENIZE = "normalizer_processor", "unnormalizer_processor", "tokenizer_processor"
STATE_OF_FAST, ACTION_TOKENS = "pi0_fast_prepare_state_tokenizer_processor_step", "action_tokenizer_processor"
POSES = ("componentwise",)
"""How relative poses may be computed: as differences of numbers."""


@dataclass(frozen=True)
class Keys:
    """acts: whether a key that is not known may change the robot's numbers."""

    used: frozenset[str] = frozenset()
    harmless: frozenset[str] = frozenset()
    neutral: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    acts: bool = False


CONFIG_KEYS = Keys(
    used=frozenset({
        "type", "input_features", "output_features", "chunk_size", "max_state_dim", "max_action_dim",
        "num_inference_steps", "num_steps", "image_resolution", "resize_imgs_with_padding", "tokenizer_max_length",
        "empty_cameras", "paligemma_variant", "action_expert_variant", "min_period", "max_period",
        "use_relative_actions", "relative_exclude_joints", "action_feature_names", "rtc_training_max_delay", "use_peft",
        "temperature", "fast_skip_tokens", "action_tokenizer_name",
    }),
    harmless=frozenset({
        "device", "use_amp", "dtype", "push_to_hub", "repo_id", "private", "tags", "license", "pretrained_path",
        "pretrained_revision", "normalization_mapping", "relative_se3_pose_groups", "gradient_checkpointing",
        "compile_model", "compile_mode", "freeze_vision_encoder", "train_expert_only", "train_state_proj", "use_cache",
        "attention_implementation", "proj_width", "time_sampling_beta_alpha", "time_sampling_beta_beta",
        "time_sampling_scale", "time_sampling_offset", "optimizer_lr", "optimizer_betas", "optimizer_eps",
        "optimizer_weight_decay", "optimizer_grad_clip_norm", "optimizer_fused", "scheduler_warmup_steps",
        "scheduler_decay_steps", "scheduler_decay_lr", "max_action_tokens", "max_decoding_steps", "use_kv_cache",
        "validate_action_token_prefix",
    }),
    neutral={
        "n_obs_steps": (1,), "adapt_to_pi_aloha": (False,), "use_delta_joint_actions_aloha": (False,),
        "relative_pose_representation": POSES, "text_tokenizer_name": ("google/paligemma-3b-pt-224",),
    },
)  # fmt: skip
"""Of pi0, pi05 and pi0_fast, from LeRobot's first to 0.7. The processors have their own map of modes, which counts."""
LEGACY_KEYS = {"proj_width", "resize_imgs_with_padding", "adapt_to_pi_aloha", "train_state_proj", "num_steps"}
"""Of π0 as LeRobot had it before its processors."""
_NORMALIZER = Keys(
    used=frozenset({"eps", "features", "norm_map", "normalize_observation_keys"}),
    harmless=frozenset({"device", "dtype"}),
    acts=True,
)
STEP_KEYS = {
    RENAME: Keys(used=frozenset({"rename_map"})),
    "to_batch_processor": Keys(),
    "device_processor": Keys(harmless=frozenset({"device", "float_dtype"})),
    "pi0_new_line_processor": Keys(),
    "pi05_prepare_state_tokenizer_processor_step": Keys(harmless=frozenset({"max_state_dim", "task_key"}), acts=True),
    TOKENIZE: Keys(
        used=frozenset({"max_length"}),
        harmless=frozenset({"padding", "padding_side", "truncation", "task_key"}),
    ),  # tokenizer_name: named where it is not PaliGemma's
    STATE_OF_FAST: Keys(harmless=frozenset({"max_state_dim", "task_key"}), acts=True),
    ACTION_TOKENS: Keys(
        harmless=frozenset({"trust_remote_code", "max_action_tokens", "action_tokenizer_name", "fast_skip_tokens"})
    ),
    RELATIVE: Keys(
        used=frozenset({"enabled", "exclude_joints", "action_names"}),
        harmless=frozenset({"se3_pose_groups"}),  # of another pose_representation
        neutral={"pose_representation": POSES},
        acts=True,
    ),
    ABSOLUTE: Keys(used=frozenset({"enabled"}), neutral={"pose_representation": POSES}, acts=True),
    NORMALIZE: _NORMALIZER,
    UNNORMALIZE: _NORMALIZER,
}
"""By registered name."""
_PALIGEMMA = [("tokenizer_name", "google/paligemma-3b-pt-224")]
_INSTEAD = {"n_action_steps": "execution_horizon", "rtc_config": "RealTime and ChunkExecutor(real_time=True)"}
"""What takes the place of keys of LeRobot's execution."""


@dataclass(frozen=True)
class Step:
    """Of a saved processor. name: as registered, or its class. state_file: of its tensors, beside the processor's."""

    config: Mapping[str, Any] = field(default_factory=dict)
    state_file: str | None = None
    name: str = ""


@dataclass
class Told:
    """What is to be reported of a folder: what changes the robot's numbers, and what is not used besides."""

    changing: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)

    def add(self, values: Mapping[str, Any], keys: Keys, where: str) -> None:
        for name, value in values.items():
            if name in keys.used | keys.harmless or value in (None, "", [], {}):
                continue
            off = value in (False, 0)
            if name in keys.neutral:
                if not off and value not in keys.neutral[name]:
                    self.changing.append(f"{where} has {name} {short(value)}")
            elif keys.acts and not off:
                self.changing.append(f"{where} has {short(name)}, which is not known")
            else:
                instead = f" (here: {_INSTEAD[name]})" if name in _INSTEAD else ""
                self.unused.append(
                    f"{name} {short(value)}{instead}" if isinstance(value, str | int) else name + instead
                )

    def notes(self) -> list[str]:
        """A line for each of the two."""
        lines = [f"the embodiment is unknown: {', and '.join(self.changing)}"] if self.changing else []
        return [*lines, *([f"LeRobot's settings that are not used: {', '.join(self.unused)}"] if self.unused else [])]


def look_at_config(values: Mapping[str, Any]) -> Told:
    """values: of a checked config.json."""
    told, rtc = Told(), values.get("rtc_config")
    passed = {
        "n_action_steps": values.get("n_action_steps") == values.get("chunk_size", 50),
        "rtc_config": isinstance(rtc, dict) and rtc.get("enabled") is False,
        "relative_pose_representation": not values.get("use_relative_actions"),
    }
    told.add({name: value for name, value in values.items() if not passed.get(name)}, CONFIG_KEYS, "config.json")
    return told


def stored_steps(path: Path) -> list[Step]:
    """The steps that the file of a processor lists; UserError where it holds no such list."""
    values = read_object(path)
    listed = values.values.get("steps")
    if not isinstance(listed, list):
        raise values.wrong("steps", "a list of processor steps")
    steps: list[Step] = []
    for index, entry in enumerate(cast("list[object]", listed)):
        if not isinstance(entry, dict):
            raise UserError(f"{path}: step {index} is no object; copy the checkpoint again")
        step = Settings(cast("dict[str, Any]", entry), f"{path}: step {index}")
        config = step.inner("config").values if step.values.get("config") else {}
        state_file = step.text("state_file", "") if step.values.get("state_file") is not None else ""
        name = step.text("registry_name" if step.values.get("registry_name") else "class")
        steps.append(Step(config, state_file or None, name))
    return steps


def read_steps(folder: Path, name: str, told: Told) -> dict[str, Step]:
    """Steps of a processor by registered name, in their order; none when the file is not there."""
    path = folder / f"{name}.json"
    if not path.is_file():
        return {}
    steps: dict[str, Step] = {}
    for step in stored_steps(path):
        config = step.config
        if config.get("enabled") is False:
            config = {"enabled": False}  # the rest is of no effect
        elif step.name not in STEP_KEYS:
            told.changing.append(f"{path.name} has the step {short(step.name)}, which is not known")
        elif step.name in steps:
            told.changing.append(f"{path.name} has the step {step.name} twice")
        else:
            config = {key: value for key, value in config.items() if (key, value) not in _PALIGEMMA}
            told.add(config, STEP_KEYS[step.name], f"{step.name} of {path.name}")
        steps[step.name] = replace(step, config=config)
    order = [step for step in steps if step in (RELATIVE, NORMALIZE)]
    if order == [NORMALIZE, RELATIVE] and steps[RELATIVE].config.get("enabled"):
        told.changing.append(f"{path.name} makes actions relative after it normalises them")
    return steps
