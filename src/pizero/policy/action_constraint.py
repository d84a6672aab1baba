"""π0-FAST's grammar over the whole vocabulary: "Action: ", the tokens of one chunk, "|" and the end mark."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pizero.data.fast.tokens import FastTokenizer


class ActionConstraint:
    """A `pizero.model.pi0_fast.Constraint` for B rows: whatever the model thinks, each writes a chunk of this shape.

    The longest text has two tokens for each coefficient, a character's halves: after `max_tokens` every row has ended.
    """

    candidates: Tensor
    """[C] ids of the vocabulary: the codec's, then the words around them."""

    def __init__(
        self,
        tokenizer: FastTokenizer,
        horizon: int,
        action_dim: int,
        batch: int,
        device: torch.device | str = "cpu",
    ) -> None:
        """UserError for a codec whose tokens cannot make such a chunk."""
        self._grammar = tokenizer.grammar(horizon, action_dim)
        self._state = self._grammar.start(batch)
        self._before, self._after = tokenizer.action_ids, tokenizer.end_ids
        self._codes = tokenizer.codec.size
        words = list(dict.fromkeys([*self._before, *self._after]))
        self.candidates = torch.tensor([*tokenizer.to_text(range(self._codes)), *words], device=device)
        self._word_places = {word: self._codes + place for place, word in enumerate(words)}
        self._code_zero = tokenizer.to_text([0])[0]
        self._written = np.zeros(batch, dtype=np.int64)  # words before the chunk, then 1 more for each one after it
        self.max_tokens = len(self._before) + 2 * self._grammar.length + len(self._after)

    def allowed(self) -> Tensor:
        """[B, C] bool; none where a row is finished."""
        allowed = np.zeros((len(self._written), len(self.candidates)), dtype=np.bool_)
        within = self._within_chunk()
        allowed[within, : self._codes] = self._grammar.allowed(self._state)[within]
        words = [*self._before, *self._after]
        for row in np.flatnonzero(~within & (self._written < len(words))):
            allowed[row, self._word_places[words[self._written[row]]]] = True
        return torch.from_numpy(allowed).to(self.candidates.device)  # pyright: ignore[reportUnknownMemberType]

    def advance(self, tokens: Tensor) -> None:
        """One allowed id per row [B]; what a finished row is given does not matter."""
        ids = cast("NDArray[np.int64]", tokens.cpu().numpy())
        within = self._within_chunk()
        codes = np.where(within, self._code_zero - ids, 0)
        after = self._grammar.advance(self._state, codes)
        self._state = type(after)(
            np.where(within, after.characters, self._state.characters), np.where(within, after.open, self._state.open)
        )
        self._written = np.where(within, self._written, self._written + 1)

    def _within_chunk(self) -> NDArray[np.bool_]:
        """Rows whose next token is the codec's."""
        return (self._written == len(self._before)) & ~self._state.finished
