"""Sizes and switches of the diffusion policy. Frozen, JSON in both directions, unknown keys refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from pizero.baseline.lerobot_style import LerobotStyle
from pizero.types import LARGEST, LARGEST_LENGTH, LONGEST_CHUNK, UserError, as_tuple, check_cameras, check_whole

ImageFusion = Literal["stacked", "separate", "shared"]
StepEmbedding = Literal["table", "sincos"]
Objective = Literal["diffusion", "flow"]
StepSpacing = Literal["leading", "trailing"]

_CHOICES = {
    "image_fusion": ImageFusion, "step_embedding": StepEmbedding, "objective": Objective, "step_spacing": StepSpacing,
}  # fmt: skip

_MOST_LEVELS = 16
_LIMITS: dict[str, int] = dict.fromkeys(
    ("prompt_length", "diffusion_steps", "num_history", "image_size", "kernel_size"), LARGEST_LENGTH
) | {"action_horizon": LONGEST_CHUNK}


@dataclass(frozen=True)
class BaselineConfig:
    """The defaults are rung 0 of the ladder, with the sizes of the paper's image policy.

    num_history: observations per sample T, oldest first. cameras: the model's names. state_input: false ignores the
        state. instruction: false ignores the prompt.
    image_fusion: "stacked" (the cameras are channels of one image), "separate" (an encoder for each camera) or "shared"
        (one encoder for every camera, one after the other).
    step_embedding: "table" (a learned vector for each of `diffusion_steps`) or "sincos". With the flow objective the
        table is read at the entry nearest to the flow time, so that both objectives take both embeddings.
    objective: "diffusion" (DDPM training, squared-cosine schedule, noise as the target; DDIM sampling) or "flow".
    clip_range: the action sample that DDIM predicts is clipped to plus and minus this; 0 does not clip. The paper's 1
        fits actions scaled to [-1, 1] (norm mode "quantile"); without a fitting clip the first steps, which divide by
        almost nothing, throw the sample far off.
    step_spacing: which training steps DDIM visits. "leading" ends at step 0 (the paper's code), "trailing" starts at
        the last step; they differ where the steps are few.
    down_dims, kernel_size, groups, step_width: channels of the UNet's levels, its convolutions, its group norms, the
        step embedding. stem_stride: by how much the encoder shrinks the image before its first level; 4 is ResNet's.
    encoder_widths: channels of the encoder's levels, two residual blocks each; four levels are ResNet-18.
    keypoints: of each encoder's spatial softmax. prompt_width: of the instruction's embedding table.
    lerobot: of a policy that came from LeRobot; its `image_shape` counts and not `image_size`.
    """

    action_horizon: int = 16
    action_dim: int = 32
    state_dim: int = 32
    num_history: int = 5
    cameras: tuple[str, ...] = ("base_0_rgb", "left_wrist_0_rgb")
    image_size: int = 96
    state_input: bool = False
    image_fusion: ImageFusion = "stacked"
    step_embedding: StepEmbedding = "table"
    objective: Objective = "diffusion"
    instruction: bool = False
    diffusion_steps: int = 100
    clip_range: float = 1.0
    step_spacing: StepSpacing = "leading"
    down_dims: tuple[int, ...] = (512, 1024, 2048)
    kernel_size: int = 5
    groups: int = 8
    step_width: int = 128
    stem_stride: int = 4
    encoder_widths: tuple[int, ...] = (64, 128, 256, 512)
    keypoints: int = 32
    vocab_size: int = 257_152
    prompt_length: int = 48
    prompt_width: int = 64
    lerobot: LerobotStyle | None = None

    def __post_init__(self) -> None:
        self._check_numbers()
        for name, kind in _CHOICES.items():
            if getattr(self, name) not in get_args(kind):
                raise UserError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(get_args(kind))}")
        check_cameras(self.cameras)
        if any("." in camera for camera in self.cameras):
            raise UserError(f"cameras must be named without dots, got {self.cameras}")
        if self.kernel_size % 2 == 0:
            raise UserError(f"kernel_size {self.kernel_size} is even: the UNet keeps the length of its input")
        if self.step_width % 2:
            raise UserError(f"step_width {self.step_width} is odd: the step embedding needs two halves")
        for width in self.down_dims:
            if width % self.groups:
                raise UserError(f"down_dims {self.down_dims}: {width} is not divisible by the {self.groups} groups")
        for width in self.encoder_widths:
            if width > 16 and width % 16:
                raise UserError(f"encoder_widths {self.encoder_widths}: {width} is above 16 and no multiple of 16")
        if self.stem_stride not in (1, 2, 4):
            raise UserError(f"stem_stride is {self.stem_stride}; expected 1, 2 or 4")
        if self.lerobot is None and self.image_size < 2 * self.encoder_stride:
            raise UserError(
                f"image_size {self.image_size}: the encoder shrinks it {self.encoder_stride} times and leaves less "
                "than 2 x 2 positions for the keypoints; lower stem_stride or take fewer encoder_widths"
            )
        if self.lerobot is not None:
            self._check_lerobot(self.lerobot)

    def _check_numbers(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type == "tuple[int, ...]":
                if not isinstance(value, tuple) or not 0 < len(cast("tuple[object, ...]", value)) <= _MOST_LEVELS:
                    most = f"at least one and at most {_MOST_LEVELS}"
                    raise UserError(f"{field.name} must be positive numbers, {most}, got {str(value)[:60]}")
                for number in cast("tuple[object, ...]", value):
                    check_whole(field.name, number)
            elif field.type == "int":
                check_whole(f"BaselineConfig.{field.name}", value, _LIMITS.get(field.name, LARGEST))
            elif field.type == "bool" and not isinstance(value, bool):
                raise UserError(f"{field.name} must be true or false, got {str(value)[:60]}")
        if isinstance(self.clip_range, bool) or not 0 <= self.clip_range < float("inf"):
            raise UserError(f"clip_range must not be negative nor infinite, got {self.clip_range}")

    def _check_lerobot(self, style: LerobotStyle) -> None:
        if not len(style.image_mean) == len(style.image_std) == len(self.cameras):
            raise UserError(f"lerobot: expected image means and deviations for each of {', '.join(self.cameras)}")
        if self.image_fusion == "stacked" or self.objective != "diffusion":
            raise UserError("lerobot: expected the objective 'diffusion' and the image_fusion 'separate' or 'shared'")

    @property
    def image_shape(self) -> tuple[int, int]:
        """(height, width) of the images in an observation."""
        return (self.image_size, self.image_size) if self.lerobot is None else self.lerobot.image_shape

    @property
    def past_actions(self) -> int:
        """Actions of the chunk that lie before the newest observation."""
        return 0 if self.lerobot is None else self.num_history - 1

    @property
    def encoder_stride(self) -> int:
        """Pixels per position of the encoder's last level."""
        return self.stem_stride * 2 ** (len(self.encoder_widths) - 1)

    @property
    def default_num_steps(self) -> int:
        """Steps of `sample_actions`: 10 of Euler, 20 of DDIM or the next lower divisor of `diffusion_steps`."""
        if self.objective == "flow":
            return 10
        if self.lerobot is not None and self.lerobot.num_steps is not None:
            return self.lerobot.num_steps
        return max(steps for steps in range(1, 21) if self.diffusion_steps % steps == 0)

    @property
    def observation_width(self) -> int:
        """Width C of what `DiffusionPolicy.encode` returns."""
        encoders = 1 if self.image_fusion == "stacked" else len(self.cameras)
        frame = encoders * 2 * self.keypoints + (self.state_dim if self.state_input else 0)
        return self.num_history * frame + (self.prompt_width if self.instruction else 0)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> BaselineConfig:
        """The inverse of `to_json`. Unknown keys raise; missing keys keep their defaults."""
        known = {field.name for field in dataclasses.fields(BaselineConfig)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise UserError(f"unknown keys in config: {', '.join(unknown)}; known: {', '.join(sorted(known))}")
        values = dict(values)
        for name in ("cameras", "down_dims", "encoder_widths"):
            if name in values:
                values[name] = as_tuple(values[name])
        if values.get("lerobot") is not None:
            values["lerobot"] = LerobotStyle.from_json(values["lerobot"])
        return BaselineConfig(**values)


LADDER: tuple[dict[str, Any], ...] = (
    {},
    {"state_input": True},
    {"action_horizon": 32},
    {"step_embedding": "sincos"},
    {"objective": "flow"},
    {"image_fusion": "separate"},
    {"instruction": True},
)
"""What each rung changes in the one before; rung 7 is π0."""


def ladder_config(rung: int, base: BaselineConfig) -> BaselineConfig:
    """`base`, a rung 0, with the changes of all rungs up to `rung`."""
    if not 0 <= rung < len(LADDER):
        raise UserError(f"rung {rung}: the baseline has the rungs 0 to {len(LADDER) - 1}")
    changes: dict[str, Any] = {}
    for change in LADDER[: rung + 1]:
        changes |= change
    return dataclasses.replace(base, **changes)


def small_baseline(size: str, **changes: Any) -> BaselineConfig:
    """Named sizes of rung 0: "tiny" (1.6 M parameters, 64-pixel images), "nano" (tests)."""
    if size not in SMALL_SIZES:
        raise UserError(f"unknown size {size!r}; expected one of {', '.join(SMALL_SIZES)}")
    return dataclasses.replace(BaselineConfig(), **{**SMALL_SIZES[size], **changes})


def wide_enough(config: BaselineConfig) -> BaselineConfig:
    """With at least two channels in the UNet's first level for each dimension of the actions, the others in proportion.

    The noise of all dimensions passes through that level: what has no room there cannot be told from the actions
    (docs/results/ladder.md, a robot of 34 dimensions).
    """
    first, groups = config.down_dims[0], config.groups
    needed = -(-2 * config.action_dim // groups) * groups
    if first >= needed:
        return config
    widths = (needed, *(-(-width * needed // first // groups) * groups for width in config.down_dims[1:]))
    return dataclasses.replace(config, down_dims=widths)


SMALL_SIZES: dict[str, dict[str, Any]] = {
    "nano": {
        "action_horizon": 8, "action_dim": 3, "state_dim": 4, "num_history": 2, "image_size": 16,
        "down_dims": (16, 24, 32), "kernel_size": 3, "groups": 4, "step_width": 16, "stem_stride": 1,
        "encoder_widths": (8, 12), "keypoints": 4, "vocab_size": 32, "prompt_length": 6, "prompt_width": 8,
    },
    "tiny": {
        "action_dim": 8, "state_dim": 8, "image_size": 64, "down_dims": (32, 64, 128), "step_width": 64,
        "encoder_widths": (16, 32, 64), "keypoints": 16, "vocab_size": 384, "prompt_length": 16,
    },
}  # fmt: skip
