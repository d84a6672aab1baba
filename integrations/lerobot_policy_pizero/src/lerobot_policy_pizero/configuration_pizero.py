"""The policy's options on LeRobot's command line, --policy.NAME."""

from __future__ import annotations

from dataclasses import dataclass, field

from lerobot.configs import NormalizationMode, PreTrainedConfig
from lerobot.optim import AdamWConfig, CosineDecayWithWarmupSchedulerConfig
from lerobot.policies.rtc.configuration_rtc import RTCConfig

FRESH_CHUNK = 50
FRESH_RATE, FINE_TUNING_RATE = 1.5e-3, 2.5e-5
"""Peak learning rates: of pizero's preset `small`, and of a released checkpoint's fine-tuning."""


@PreTrainedConfig.register_subclass("pizero")
@dataclass
class PizeroConfig(PreTrainedConfig):
    """checkpoint: of any format that pizero reads, by path, hub id or address; or the folder of an export, which is
    played and not trained; not needed with --policy.path, nor for training from scratch. embodiment, norm_stats,
    tokenizer: what it does not tell, as for pizero's commands.

    dtype: float32, bfloat16 or float16. kernels: as for pizero's FastSampler. num_steps: of integration; None takes the
    model's own number. n_action_steps: the execution horizon, actions played before the next chunk is asked for; None
    takes half of the chunk. seed: the noise of the n-th episode's k-th chunk follows from seed + n and k, as in
    `pizero evaluate --seed`.

    Training: model is "pi0" or "pi05", and chunk_size the length of its chunks, from scratch; None takes the
    checkpoint's, else 50. optimizer_lr: None takes 1.5e-3 from scratch and 2.5e-5 from a checkpoint.
    """

    checkpoint: str | None = None
    embodiment: str | None = None
    norm_stats: str | None = None
    tokenizer: str | None = None
    dtype: str = "float32"
    kernels: str = "auto"
    num_steps: int | None = None
    n_action_steps: int | None = None
    seed: int = 0
    rtc_config: RTCConfig | None = None
    model: str = "pi0"
    chunk_size: int | None = None
    optimizer_lr: float | None = None
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: dict.fromkeys(("VISUAL", "STATE", "ACTION"), NormalizationMode.IDENTITY)
    )

    @property
    def from_scratch(self) -> bool:
        return self.checkpoint is None and self.pretrained_path is None

    @property
    def horizon(self) -> int:
        """Actions of a chunk."""
        source = self.pretrained_path or self.checkpoint
        if self.chunk_size is None and source is not None:
            from pizero.workflows.policies import action_horizon

            self.chunk_size = action_horizon(source)
        return self.chunk_size or FRESH_CHUNK

    @property
    def observation_delta_indices(self) -> None:
        return None

    @property
    def action_delta_indices(self) -> list[int]:
        return list(range(self.horizon))

    @property
    def reward_delta_indices(self) -> None:
        return None

    def get_optimizer_preset(self) -> AdamWConfig:
        return AdamWConfig(lr=self._rate, betas=(0.9, 0.95), weight_decay=1e-4, grad_clip_norm=1.0)

    def get_scheduler_preset(self) -> CosineDecayWithWarmupSchedulerConfig:
        return CosineDecayWithWarmupSchedulerConfig(
            peak_lr=self._rate, decay_lr=self._rate / 10, num_warmup_steps=100, num_decay_steps=30_000
        )

    def validate_features(self) -> None:
        """Nothing: the checkpoint's robot says what comes and goes, and pizero checks each observation."""

    @property
    def _rate(self) -> float:
        return self.optimizer_lr or (FRESH_RATE if self.from_scratch else FINE_TUNING_RATE)
