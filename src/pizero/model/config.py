"""Sizes and switches of the network. Frozen, JSON in both directions, unknown keys refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast, get_args

from pizero.types import (
    DEEPEST,
    LARGEST,
    LARGEST_LENGTH,
    LONGEST_CHUNK,
    LayoutName,
    Observation,
    UserError,
    as_tuple,
    check_cameras,
    check_whole,
)  # fmt: skip

StateInput = Literal["token", "prompt", "none"]
TimeConditioning = Literal["concat_mlp", "adarms"]
ActionAttention = Literal["bidirectional", "causal"]

CAMERAS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
"""The cameras of the released checkpoints, in their order (openpi src/openpi/models/model.py)."""


_LIMITS = {
    "depth": DEEPEST, "prompt_length": LARGEST_LENGTH, "text_length": LARGEST_LENGTH, "action_horizon": LONGEST_CHUNK
}  # fmt: skip


def check_numbers(config: Any) -> None:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.type == "int" and (field.name, value) not in (("max_delay", 0), ("stem_width", 0)):
            check_whole(f"{type(config).__name__}.{field.name}", value, _LIMITS.get(field.name, LARGEST))


@dataclass(frozen=True)
class SiglipConfig:
    """The vision tower. The defaults are SigLIP So400m/14: 412,442,352 parameters.

    stem_width: above 0, convolutions see the image before it becomes patches, this many channels in the first; for
    training from scratch (arXiv 2106.14881). 0: each patch is a linear map of its pixels, as in SigLIP.
    """

    width: int = 1152
    depth: int = 27
    mlp_dim: int = 4304
    num_heads: int = 16
    patch_size: int = 14
    stem_width: int = 0

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.width % self.num_heads:
            raise UserError(f"vision width {self.width} is not divisible by its {self.num_heads} heads")
        if self.stem_width and (self.patch_size < 2 or self.patch_size.bit_count() != 1):
            raise UserError(f"stem_width needs a patch_size of 2, 4, 8, 16 ... pixels, got {self.patch_size}")

    def to_json(self) -> dict[str, Any]:
        """`stem_width` is omitted where there is no stem, as before there was any."""
        return {k: v for k, v in dataclasses.asdict(self).items() if (k, v) != ("stem_width", 0)}


@dataclass(frozen=True)
class GemmaConfig:
    """One expert. The defaults are Gemma 2B, the prefix expert of π0; `GEMMA_300M` is the action expert."""

    width: int = 2048
    depth: int = 18
    mlp_dim: int = 16384
    num_heads: int = 8
    num_kv_heads: int = 1
    head_dim: int = 256

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.num_heads % self.num_kv_heads:
            raise UserError(f"{self.num_heads} query heads cannot share {self.num_kv_heads} key/value heads")
        if self.head_dim % 2:
            raise UserError(f"head_dim {self.head_dim} is odd: the rotary embedding needs two halves")


@dataclass(frozen=True)
class LanguageConfig:
    """What the prefix expert of a π0.5 learns to write, and how flow, text and FAST tokens share one loss.

    flow_weight, text_weight, fast_weight: of the three losses; the defaults are the recipe of the paper (arXiv
    2504.16054), as LeRobot has it. Of weight 0, text or FAST tokens are no part of the sequence. z_weight: of the mean
    squared log of the softmax's sum over the text's targets.
    insulation: the action expert reads the prefix's keys and values without sending gradients back, so that text and
    FAST tokens alone train the prefix (arXiv 2505.23705). tied_head: the head is the token table; else a table of its
    own. layout: of prompt and text. text_length: most tokens of a text.
    """

    flow_weight: float = 10.0
    text_weight: float = 1.0
    fast_weight: float = 1.0
    z_weight: float = 0.0
    insulation: bool = True
    tied_head: bool = True
    layout: LayoutName = "openpi"
    text_length: int = 48

    def __post_init__(self) -> None:
        check_numbers(self)
        for name in ("flow_weight", "text_weight", "fast_weight", "z_weight"):
            value: object = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < LARGEST:
                raise UserError(f"{name} must be a number from 0 on, got {str(value)[:60]}")
        for name in ("insulation", "tied_head"):
            if not isinstance(getattr(self, name), bool):
                raise UserError(f"{name} must be true or false, got {str(getattr(self, name))[:60]}")
        if self.layout not in get_args(LayoutName):
            raise UserError(f"layout is {self.layout!r}; expected one of {', '.join(get_args(LayoutName))}")

    @property
    def writes_text(self) -> bool:
        return self.text_weight > 0

    @property
    def writes_fast(self) -> bool:
        return self.fast_weight > 0


SO400M = SiglipConfig()
GEMMA_2B = GemmaConfig()
GEMMA_300M = GemmaConfig(width=1024, mlp_dim=4096)


@dataclass(frozen=True)
class Pi0Config:
    """π0 and π0.5 are two presets of one class; the facts that differ are independent fields.

    state_input: "token" (π0: one suffix token), "prompt" (π0.5: digitised, part of the prompt text) or "none".
    time_conditioning: "concat_mlp" (π0: concatenated with the actions) or "adarms" (π0.5: adaptive RMSNorm).
    action_attention: "bidirectional" (the released weights) or "causal" (action i sees actions up to i).
    image_size: side in pixels at which the position table was made; images of other sizes interpolate it.
    max_delay: most settled actions at a chunk's start that the model was trained to continue; 0 if it was not.
    language: how it learns to write text and FAST tokens beside the actions; None: actions alone.
    one_step: it sees the time at which a step is to end, has learnt to reach the actions in a single step (`pizero
    train --one-step`), and takes one unless asked for more.
    """

    vision: SiglipConfig = SO400M
    prefix: GemmaConfig = GEMMA_2B
    expert: GemmaConfig = GEMMA_300M
    vocab_size: int = 257_152
    cameras: tuple[str, ...] = CAMERAS
    image_size: int = 224
    prompt_length: int = 48
    state_dim: int = 32
    action_dim: int = 32
    action_horizon: int = 50
    state_input: StateInput = "token"
    time_conditioning: TimeConditioning = "concat_mlp"
    action_attention: ActionAttention = "bidirectional"
    max_delay: int = 0
    language: LanguageConfig | None = None
    one_step: bool = False

    def __post_init__(self) -> None:
        check_numbers(self)
        if not isinstance(cast(object, self.one_step), bool):
            raise UserError(f"one_step must be true or false, got {str(self.one_step)[:60]}")
        if self.max_delay >= self.action_horizon:
            raise UserError(f"max_delay {self.max_delay} leaves nothing of a chunk of {self.action_horizon} actions")
        for name in ("depth", "num_heads", "num_kv_heads", "head_dim"):
            prefix, expert = getattr(self.prefix, name), getattr(self.expert, name)
            if prefix != expert:
                raise UserError(f"the experts share attention, so {name} must agree: prefix {prefix}, expert {expert}")
        if self.image_size % self.vision.patch_size:
            raise UserError(f"image_size {self.image_size} is not divisible by the patch size {self.vision.patch_size}")
        if self.expert.width % 2:
            raise UserError(f"expert width {self.expert.width} is odd: the time embedding needs two halves")
        choices = {
            "state_input": StateInput,
            "time_conditioning": TimeConditioning,
            "action_attention": ActionAttention,
        }
        for name, kind in choices.items():
            if getattr(self, name) not in get_args(kind):
                raise UserError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(get_args(kind))}")
        check_cameras(self.cameras)

    @property
    def has_state_token(self) -> bool:
        return self.state_input == "token"

    @property
    def adaptive(self) -> bool:
        """Whether the expert's norms are modulated by the flow time."""
        return self.time_conditioning == "adarms"

    @property
    def suffix_length(self) -> int:
        return self.action_horizon + (1 if self.has_state_token else 0)

    @property
    def num_history(self) -> int:
        """Observations per sample: the present one."""
        return 1

    @property
    def image_shape(self) -> tuple[int, int]:
        """(height, width) of the images in an observation."""
        return self.image_size, self.image_size

    @property
    def past_actions(self) -> int:
        """The chunk starts at the present observation."""
        return 0

    @property
    def default_num_steps(self) -> int:
        """Integration steps of `sample_actions`."""
        return 1 if self.one_step else 10

    @staticmethod
    def pi0(**changes: Any) -> Pi0Config:
        """π0 at full size: 3,238,048,528 parameters."""
        return dataclasses.replace(Pi0Config(), **changes)

    @staticmethod
    def pi05(**changes: Any) -> Pi0Config:
        """π0.5 at full size: 3,353,433,872 parameters."""
        base = Pi0Config(state_input="prompt", time_conditioning="adarms", prompt_length=200)
        return dataclasses.replace(base, **changes)

    def to_json(self) -> dict[str, Any]:
        """`language` and `one_step` are omitted where they are not used, as before there were any."""
        unused = {"language": None, "one_step": False}
        values = {**dataclasses.asdict(self), "vision": self.vision.to_json()}
        return {k: v for k, v in values.items() if k not in unused or v != unused[k]}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Pi0Config:
        """The inverse of `to_json`. Unknown keys raise; missing keys keep their defaults."""
        values = dict(values)
        parts = {"vision": SiglipConfig, "prefix": GemmaConfig, "expert": GemmaConfig, "language": LanguageConfig}
        for name, kind in parts.items():
            if name in values and not (name == "language" and values[name] is None):
                values[name] = config_from_json(kind, values[name], name)
        if "cameras" in values:
            values["cameras"] = as_tuple(values["cameras"])
        return cast(Pi0Config, config_from_json(Pi0Config, values, "config"))


def small_config(size: str, *, pi05: bool = False, **changes: Any) -> Pi0Config:
    """Named sizes for training from scratch: "tiny" (0.86 M parameters), "small" (larger images), "nano" (tests)."""
    if size not in SMALL_SIZES:
        raise UserError(f"unknown size {size!r}; expected one of {', '.join(SMALL_SIZES)}")
    base = Pi0Config.pi05() if pi05 else Pi0Config.pi0()
    return dataclasses.replace(base, **{**SMALL_SIZES[size], **changes})


_TWO_CAMERAS = CAMERAS[:2]
SMALL_SIZES: dict[str, dict[str, Any]] = {
    "nano": {
        "vision": SiglipConfig(width=16, depth=1, mlp_dim=32, num_heads=2, patch_size=14),
        "prefix": GemmaConfig(width=24, depth=2, mlp_dim=32, num_heads=4, num_kv_heads=1, head_dim=8),
        "expert": GemmaConfig(width=16, depth=2, mlp_dim=24, num_heads=4, num_kv_heads=1, head_dim=8),
        "vocab_size": 64, "image_size": 28, "prompt_length": 8, "state_dim": 5, "action_dim": 4, "action_horizon": 6,
    },
    "tiny": {
        "vision": SiglipConfig(width=96, depth=1, mlp_dim=192, num_heads=4, patch_size=8),
        "prefix": GemmaConfig(width=128, depth=3, mlp_dim=256, num_heads=4, num_kv_heads=1, head_dim=32),
        "expert": GemmaConfig(width=96, depth=3, mlp_dim=192, num_heads=4, num_kv_heads=1, head_dim=32),
        "vocab_size": 384, "image_size": 32, "prompt_length": 16, "state_dim": 8, "action_dim": 8,
        "action_horizon": 16, "cameras": _TWO_CAMERAS,
    },
    "small": {
        "vision": SiglipConfig(width=128, depth=2, mlp_dim=256, num_heads=4, patch_size=16),
        "prefix": GemmaConfig(width=128, depth=4, mlp_dim=320, num_heads=4, num_kv_heads=1, head_dim=32),
        "expert": GemmaConfig(width=96, depth=4, mlp_dim=256, num_heads=4, num_kv_heads=1, head_dim=32),
        "vocab_size": 384, "image_size": 64, "prompt_length": 16, "state_dim": 8, "action_dim": 8,
        "action_horizon": 16, "cameras": _TWO_CAMERAS,
    },
}  # fmt: skip


def config_from_json(kind: type[Any], values: object, where: str) -> Any:
    known = {field.name for field in dataclasses.fields(kind)}
    if not isinstance(values, Mapping):
        raise UserError(f"{where} must be an object with {', '.join(sorted(known))}, got {str(values)[:60]}")
    values = cast("Mapping[str, Any]", values)
    unknown = sorted(set(values) - known)
    if unknown:
        raise UserError(f"unknown keys in {where}: {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    return kind(**values)


class ObservationSizes(Protocol):
    """What an observation is checked against: the config of π0, or of π0-FAST."""

    @property
    def vision(self) -> SiglipConfig: ...
    @property
    def cameras(self) -> tuple[str, ...]: ...
    @property
    def has_state_token(self) -> bool: ...
    @property
    def state_dim(self) -> int: ...


def check_observation(config: ObservationSizes, observation: Observation) -> None:
    """Raises one clear ValueError when a key, a shape or a camera name is not what the config says. Values are checked
    where data enters, so that the model never waits for the device.
    """
    observation.check_prompt()
    batch = observation.batch_size
    for name, image in observation.present_images(config.cameras):
        patch, shape, where = config.vision.patch_size, tuple(image.shape), f"images[{name!r}]"
        if image.ndim != 4 or shape[0] != batch or shape[3] != 3 or not image.is_floating_point():
            raise ValueError(f"{where}: got {image.dtype} {shape}, expected float ({batch}, h, w, 3)")
        if shape[1] % patch or shape[2] % patch or not shape[1] * shape[2]:
            raise ValueError(f"{where}: {shape[1]} x {shape[2]} is not divisible by the patch size {patch}")
    if config.has_state_token:
        shape = None if observation.state is None else tuple(observation.state.shape)
        if shape != (batch, config.state_dim):
            raise ValueError(f"state: got {shape}, expected {(batch, config.state_dim)}")
