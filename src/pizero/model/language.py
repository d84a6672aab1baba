"""What the prefix expert writes: cross entropy over target tokens in training, token after token in inference.

Shapes: B batch, T tokens, W prefix width, V vocabulary, H action horizon.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType]

from pizero.model.config import LanguageConfig
from pizero.model.two_expert import Hidden, KVCache, Tokens, TwoExpertTransformer
from pizero.types import Observation

END_ID, PADDING_ID = 1, 0
_ROWS = 256
"""Target positions whose logits over the vocabulary exist at once: 256 MiB of float32 at full size."""
_again = cast(Any, checkpoint)  # computed again in the backward pass; without types


class Losses(NamedTuple):
    """flow [B, H], text [B], fast [B], such that each one's mean is the batch's loss of that kind.

    flow: mean over the samples that have actions. text: mean over all target tokens of the batch. fast: mean of the
    means of those samples that have targets.
    """

    flow: Tensor
    text: Tensor
    fast: Tensor

    def scaled(self, scale: Tensor) -> Losses:
        """Each times its number in scale [3]."""
        return Losses(self.flow * scale[0], self.text * scale[1], self.fast * scale[2])

    def total(self, config: LanguageConfig) -> Tensor:
        """[B, H], whose mean is the weighted sum of the three."""
        words = config.text_weight * self.text + config.fast_weight * self.fast
        return config.flow_weight * self.flow + words[:, None]


def target_counts(observation: Observation, action_mask: Tensor | None) -> Tensor:
    """[3]: samples with actions, text tokens and samples with FAST tokens, over which the losses are means.

    With n equal parts of a batch, the mean of the parts' losses, each scaled by n times its counts over those of the
    batch, is the whole batch's.
    """
    text, fast = observation.prompt_target, observation.fast_target
    none = torch.zeros((), device=observation.prompt_tokens.device)
    return torch.stack([
        none + observation.batch_size if action_mask is None else action_mask.any(dim=1).sum().to(none),
        none if text is None else text.sum().to(none),
        none if fast is None else fast.any(dim=1).sum().to(none),
    ])  # fmt: skip


def text_and_fast(
    config: LanguageConfig | None, observation: Observation, hidden: Hidden | None, table: Tensor
) -> tuple[Tensor, Tensor]:
    """The text's and the FAST tokens' losses [B] as in `Losses`, 0 without targets. table: the head [V, W]."""
    text = fast = torch.zeros(observation.batch_size, device=observation.prompt_tokens.device)
    if hidden is None or config is None:
        return text, fast
    ids, target = observation.prompt_tokens, observation.prompt_target
    if hidden.prefix is not None and target is not None:
        text = text_loss(target_errors(hidden.prefix[:, -ids.shape[1] :], table, ids, target, config.z_weight), target)
    ids, target = observation.fast_tokens, observation.fast_target
    if hidden.fast is not None and ids is not None and target is not None:
        fast = fast_loss(target_errors(hidden.fast, table, ids, target), target)
    return text, fast


def over_samples_with(error: Tensor, has: Tensor) -> Tensor:
    """error [B, ...] scaled so that its mean over the batch is that over the samples of which `has` [B] is true."""
    share = has * (len(has) / has.sum().clamp(min=1))
    return error * share.view(-1, *[1] * (error.ndim - 1))


def text_loss(errors: Tensor, target: Tensor) -> Tensor:
    """errors and target [B, T] -> [B], whose mean is that over all targets of the batch."""
    return errors.sum(dim=1) * (len(errors) / target.sum().clamp(min=1))


def fast_loss(errors: Tensor, target: Tensor) -> Tensor:
    """errors and target [B, T] -> [B], whose mean is that over the samples with targets of their own means."""
    count = target.sum(dim=1)
    return over_samples_with(errors.sum(dim=1) / count.clamp(min=1), count > 0)


def target_errors(hidden: Tensor, table: Tensor, ids: Tensor, target: Tensor, z_weight: float = 0.0) -> Tensor:
    """Cross entropy of the tokens ids [B, T] where `target` [B, T] is true, each from the hidden state [B, T, W] of
    the one before: [B, T], 0 elsewhere. The first token cannot be a target; table: the head [V, W].

    z_weight: of the squared log of the softmax's sum. The logits over the vocabulary are made for the targets alone, a
    few hundred rows at a time, and in the backward pass again.
    """
    target = target[:, 1:]
    rows, wanted = hidden[:, :-1][target], ids[:, 1:][target].long()
    parts = [
        _again(_row_errors, rows[first : first + _ROWS], table, wanted[first : first + _ROWS], z_weight,
               use_reentrant=False)
        for first in range(0, len(rows), _ROWS)
    ]  # fmt: skip
    flat = torch.cat(parts) if parts else hidden.new_zeros(0, dtype=torch.float32)
    return F.pad(torch.zeros(target.shape, device=hidden.device).masked_scatter(target, flat), (1, 0))


def _row_errors(rows: Tensor, table: Tensor, wanted: Tensor, z_weight: float) -> Tensor:
    scores = logits(rows, table)
    errors = F.cross_entropy(scores, wanted, reduction="none")
    return errors + z_weight * scores.logsumexp(dim=-1).square() if z_weight else errors


def logits(hidden: Tensor, table: Tensor) -> Tensor:
    """hidden [..., W], head [V, W] -> float32 [..., V]."""
    return F.linear(hidden, table.to(hidden.dtype)).float()


@dataclass(frozen=True)
class Written:
    """tokens [B, N]: the text up to the end mark, without it, then padding. cache: of the prompt, the text and what
    closes it.
    """

    tokens: Tensor
    cache: KVCache


@torch.no_grad()
def write_text(
    transformer: TwoExpertTransformer,
    embed: Callable[[Tensor], Tensor],
    table: Tensor,
    prefix: Tokens,
    max_tokens: int,
    closing: tuple[Tensor, Tensor],
) -> Written:
    """The likeliest token after the prefix, and again, up to the end mark or `max_tokens`.

    Rows end alone, and a row's text does not depend on the other rows. closing: ids [C] that follow each text, the end
    mark first, and where blocks start among them [C]. embed: ids [B, T] -> [B, T, W].
    """
    hidden, cache = transformer.prefill(prefix.values, prefix.mask, prefix.starts)
    slots = torch.arange(hidden.shape[1], device=hidden.device)
    newest = torch.where(prefix.mask, slots, -1).amax(dim=1)  # of each row
    last = hidden[torch.arange(len(hidden), device=hidden.device), newest]
    going = torch.ones(len(hidden), dtype=torch.bool, device=hidden.device)
    written = list[Tensor]()
    while len(written) < max_tokens:
        tokens = logits(last, table).argmax(dim=-1)
        going = going & (tokens != END_ID)
        if not bool(going.any()):
            break
        tokens = tokens.masked_fill(~going, PADDING_ID)
        written.append(tokens)
        mask = going[:, None]
        hidden, cache = transformer.extend(cache, Tokens(embed(tokens[:, None]), mask, mask))
        last = hidden[:, 0]
    ids, starts = (part.to(last.device).expand(len(last), -1) for part in closing)
    cache = transformer.extend(cache, Tokens(embed(ids), torch.ones_like(starts), starts))[1]
    return Written(torch.stack(written, dim=1) if written else going.new_zeros(len(going), 0, dtype=torch.long), cache)
