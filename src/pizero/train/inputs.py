"""What a loss gets beside the data: noise and times; and prompts without slots that nobody uses."""

from __future__ import annotations

import torch
from torch import Tensor

from pizero.data.augment import WHOLE, Part
from pizero.data.pipeline import ModelInputs
from pizero.model.flow_matching import sample_time


def draw(draws: int, actions: Tensor, generator: torch.Generator, part: Part = WHOLE) -> tuple[Tensor, Tensor]:
    """Noise [draws, B, H, D] and times [draws, B] for `part` of a batch; drawn on the host, alike on every device."""
    noise = part.of(torch.randn(part.whole((draws, *actions.shape), 1), generator=generator), 1)
    time = part.of(sample_time(part.whole((draws, len(actions)), 1), generator), 1)
    return noise.to(actions.device), time.to(actions.device)


def trimmed(inputs: ModelInputs) -> ModelInputs:
    """Without the prompt slots that no sample of the batch uses: padding changes nothing but the cost."""
    used = max(int(inputs["prompt_mask"].sum(axis=1).max()), 1)
    tokens, mask = inputs["prompt_tokens"][:, :used], inputs["prompt_mask"][:, :used]
    return {**inputs, "prompt_tokens": tokens, "prompt_mask": mask}
