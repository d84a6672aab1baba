"""What a training run is made of, apart from the model and the data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

from pizero.data.augment import AugmentationKind
from pizero.types import UserError, as_tuple, check_least

Precision = Literal["auto", "float32", "mixed", "bfloat16"]
OptimizerName = Literal["adamw", "adamw8bit", "muon"]
NonFinite = Literal["stop", "skip"]
Part = Literal["vision", "prefix", "expert", "embedding", "heads"]
EmbeddingSteps = Literal["optimizer", "stateless"]
Metric = Literal["validation_loss", "open_loop_error", "success_rate"]


@dataclass(frozen=True)
class GradientConfig:
    """How the gradient of one batch is computed."""

    accumulate: int = 1
    """Equal parts of a batch that are computed one after the other: the same gradient with less memory."""
    padded_actions: bool = True
    """Whether action dimensions that the robot does not have count in the loss, as in openpi."""
    non_finite: NonFinite = "stop"
    """At a loss or a gradient that is not finite: stop, or skip the step and count it (`skipped_steps`)."""

    def __post_init__(self) -> None:
        _check_positive(self, "accumulate")
        _check_choice("non_finite", self.non_finite, NonFinite)


@dataclass(frozen=True)
class LoraConfig:
    """Ranks and alphas of the adapters; the defaults are openpi's gemma_2b_lora and gemma_300m_lora (src/openpi/models/
    gemma.py). Rank 0 leaves an expert as it is, trained as a whole.
    """

    prefix_rank: int = 16
    prefix_alpha: float = 16.0
    expert_rank: int = 32
    expert_alpha: float = 32.0

    def __post_init__(self) -> None:
        if min(self.prefix_rank, self.expert_rank) < 0 or self.prefix_rank == self.expert_rank == 0:
            raise UserError(f"LoRA ranks must be positive, or 0 for one of the experts, got {self}")
        if min(self.prefix_alpha, self.expert_alpha) <= 0:
            raise UserError(f"LoRA alphas must be positive, got {self}")


@dataclass(frozen=True)
class PartsConfig:
    """Which of π0's weights are trained, and how (`train/parts.py` says what belongs to a part)."""

    freeze: tuple[Part, ...] = ()
    """Parts that keep their weights. The prefix includes the embedding table."""
    lora: LoraConfig | None = None
    """Adapters on attention and MLP of the experts, which keep all their own weights then, as in openpi."""
    embedding_steps: EmbeddingSteps = "optimizer"
    """stateless: rows of the embedding table move by the learning rate along their gradient, without any state."""

    def __post_init__(self) -> None:
        for part in self.freeze:
            _check_choice("freeze", part, Part)
        _check_choice("embedding_steps", self.embedding_steps, EmbeddingSteps)


@dataclass(frozen=True)
class SelectionConfig:
    """What held-out data decides."""

    metric: Metric = "validation_loss"
    """By which checkpoints are compared: measured at validations, at those that measure it."""
    keep_best: bool = False
    """Saves whenever the metric improves, and keeps the best checkpoint beside the newest ones (best.json)."""
    patience: int = 0
    """Measurements in a row without an improvement after which the run ends; 0 never ends early."""

    def __post_init__(self) -> None:
        _check_choice("metric", self.metric, Metric)
        if self.patience < 0:
            raise UserError(f"patience must not be negative, got {self.patience}")

    @property
    def active(self) -> bool:
        return self.keep_best or self.patience > 0


@dataclass(frozen=True)
class TrainConfig:
    """Optimisation settings. The defaults are openpi's (src/openpi/training/config.py, optimizer.py)."""

    steps: int = 30_000
    """Optimizer steps."""
    batch_size: int = 32
    learning_rate: float = 2.5e-5
    """Peak, reached after the warm-up."""
    final_learning_rate: float = 2.5e-6
    """At the end of the cosine."""
    warmup_steps: int = 1_000
    weight_decay: float = 1e-10
    clip_norm: float = 1.0
    """Global gradient norm."""
    ema_decay: float = 0.99
    """Average of the weights, the one that is evaluated; 0 keeps the last weights."""
    ema_power: float = 0.0
    """Above 0 the average starts short: its decay is 1 - (1 + step) ** -ema_power, at most ema_decay. The diffusion
    policy's power is 0.75.
    """
    optimizer: OptimizerName = "adamw"
    """muon: for the matrices inside the transformers, AdamW for the rest; for small models from scratch. adamw8bit: its
    two averages in 8 bits (torchao, extra `quant`).
    """
    draws: int = 1
    """(noise, time) draws per sample that share one pass over the prefix."""
    max_delay: int = 0
    """Above 0 a chunk's first actions, 0 to max_delay of them, are given clean, and the rest is learnt: training-time
    real-time chunking (arXiv 2512.05964). π0 and π0.5 alone.
    """
    augmentation: AugmentationKind = "openpi"
    early_frames: float = 0.0
    """Frame i of an episode is drawn in proportion to (1 + i) ** -early_frames; 0 draws each frame once per epoch.

    At the start of an episode only image and instruction show where to go; later the robot's own position shows it too.
    """
    precision: Precision = "auto"
    """mixed: float32 weights, bfloat16 products, frozen weights in bfloat16. bfloat16: weights, gradients and AdamW's
    averages too, with steps that are rounded at random; half the memory. auto: mixed where the hardware computes in
    bfloat16, else float32.
    """
    validation_fraction: float = 0.05
    """Share of the episodes that is held out."""
    log_every: int = 50
    validate_every: int = 1_000
    save_every: int = 1_000
    keep: int = 2
    """Checkpoints kept, newest first."""
    seed: int = 42
    threads: int = 0
    """CPU threads; 0 takes all cores."""
    gradient: GradientConfig = field(default_factory=GradientConfig)
    parts: PartsConfig = field(default_factory=PartsConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)

    def __post_init__(self) -> None:
        _check_positive(
            self, "steps", "batch_size", "learning_rate", "clip_norm", "draws", "log_every", "validate_every",
            "save_every", "keep",
        )  # fmt: skip
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"ema_decay must be in [0, 1), got {self.ema_decay}")
        if not 0 <= self.validation_fraction < 1:
            raise UserError(f"validation_fraction must be in [0, 1), got {self.validation_fraction}")
        check_least(
            0, early_frames=self.early_frames, ema_power=self.ema_power, max_delay=self.max_delay,
            warmup_steps=self.warmup_steps, seed=self.seed, threads=self.threads,
        )  # fmt: skip
        _check_choice("precision", self.precision, Precision)
        _check_choice("optimizer", self.optimizer, OptimizerName)
        if self.optimizer == "muon" and self.parts.lora is not None:
            raise UserError("muon is for whole matrices, not for LoRA's factors; use adamw")
        if self.optimizer == "muon" and self.precision == "bfloat16":
            raise UserError("muon needs float32 weights; use precision float32 or mixed, or adamw")

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> TrainConfig:
        """The inverse of `to_json`. Unknown keys raise; missing ones, as in older runs, keep their defaults."""
        values = dict(values)
        for name, kind in (("gradient", GradientConfig), ("parts", PartsConfig), ("selection", SelectionConfig)):
            if name in values:
                part = dict(cast("Mapping[str, Any]", values[name]))
                if part.get("lora") is not None:
                    part["lora"] = _from_json(LoraConfig, part["lora"], "parts.lora")
                if "freeze" in part:
                    part["freeze"] = as_tuple(part["freeze"])
                values[name] = _from_json(kind, part, name)
        return _from_json(TrainConfig, values, "the training config")


def _from_json(kind: type[Any], values: Mapping[str, Any], where: str) -> Any:
    unknown = sorted(set(values) - {field.name for field in dataclasses.fields(kind)})
    if unknown:
        raise UserError(f"unknown keys in {where}: {', '.join(unknown)}")
    return kind(**values)


def _check_positive(config: Any, *names: str) -> None:
    for name in names:
        if getattr(config, name) <= 0:
            raise UserError(f"{name} must be positive, got {getattr(config, name)}")


def _check_choice(name: str, value: object, kind: Any) -> None:
    if value not in get_args(kind):
        raise UserError(f"{name} is {value!r}; expected one of {', '.join(get_args(kind))}")
