"""What a loss gets beside the data: noise, times and delays; and prompts without slots that nobody uses."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from pizero.data.augment import WHOLE, BatchPart
from pizero.data.pipeline import ModelInputs
from pizero.data.prompts import PROMPT_MASKS
from pizero.model.flow_matching import sample_time
from pizero.train.config import TrainConfig


def draw(
    config: TrainConfig, actions: Tensor, generator: torch.Generator, part: BatchPart = WHOLE
) -> dict[str, Tensor]:
    """What `loss` takes for `part` of a batch, drawn on the host, alike on every device; the batch is axis 1.

    noise [draws, B, H, D], time [draws, B], and with `max_delay` delay [draws, B].
    """
    shape = part.whole((config.draws, *actions.shape), 1)
    drawn = {"noise": torch.randn(shape, generator=generator), "time": sample_time(shape[:2], generator)}
    if config.max_delay:
        drawn["delay"] = torch.randint(config.max_delay + 1, shape[:2], generator=generator)
    return {name: part.of(value, 1).to(actions.device) for name, value in drawn.items()}


def trimmed(inputs: ModelInputs) -> ModelInputs:
    """Without the prompt slots that no sample of the batch uses: padding changes nothing but the cost."""
    used = max(int(inputs["prompt_mask"].sum(axis=1).max()), 1)
    of_the_prompt = ("prompt_tokens", "prompt_mask", *PROMPT_MASKS)
    values = cast("dict[str, Any]", inputs)
    return cast(ModelInputs, {k: v[:, :used] if k in of_the_prompt else v for k, v in values.items()})
