"""What is reported when a loss or a gradient is not finite."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pizero.types import UserError

if TYPE_CHECKING:
    from pizero.data.loader import Place

_SHOWN = 24
"""Samples that are listed; metrics.jsonl has all of them."""


class NotFiniteError(UserError):
    """A loss or a gradient that is not finite. samples: [dataset, episode, frame] of those that may have caused it."""

    def __init__(self, line: str, samples: list[list[object]]) -> None:
        super().__init__(line)
        self.samples = samples


def not_finite(step: int, losses: Tensor, model: nn.Module, places: Sequence[Place], folder: Path) -> NotFiniteError:
    """Of the losses [B, H] of a step, whose samples come from `places`, and the gradients that the model has now.

    Names the samples whose loss is not finite, or all where the gradient alone is not, and the first such parameter.
    """
    rows = (~torch.isfinite(losses)).any(dim=1).nonzero().squeeze(1).tolist()
    samples = [places[row] for row in rows or range(len(losses))]
    named = ((name, parameter.grad) for name, parameter in model.named_parameters())
    wrong = [name for name, gradient in named if gradient is not None and not bool(torch.isfinite(gradient).all())]
    text = f"the loss is {float(losses.mean())} at step {step}"
    if wrong:
        others = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        text += f", the gradient of {wrong[0]}{others} is not finite"
    return NotFiniteError(
        f"{text}; the samples are {places_text(samples)}; lower the learning rate or check the data; the checkpoints "
        f"in {folder} are intact",
        [[str(place.dataset), place.episode, place.frame] for place in samples],
    )


def places_text(places: Sequence[Place]) -> str:
    """Samples by dataset and episode, as in: episode 3: frames 5, 9; episode 4: frame 0."""
    ordered = sorted(places, key=lambda place: (str(place.dataset), place.episode, place.frame))
    several = len({place.dataset for place in places}) > 1
    texts: list[str] = []
    for (dataset, episode), found in groupby(ordered[:_SHOWN], key=lambda place: (place.dataset, place.episode)):
        frames = [str(place.frame) for place in found]
        where = f"{dataset}, " if several else ""
        texts.append(f"{where}episode {episode}: frame{'s' if len(frames) > 1 else ''} {', '.join(frames)}")
    more = f" and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else ""
    return "; ".join(texts) + more
