"""Which tokens may come next, so that a sequence of FAST tokens is a chunk whatever the model thinks.

A chunk of horizon x action_dim values is text of exactly that many characters. Each token adds a known number of bytes
to the text; a token is allowed where the text stays UTF-8, does not become too long, and can still be finished with the
tokens that there are. Characters have one or two bytes here: a coefficient of 2,048 + min_token is 200 times [-1, 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pizero.data.fast.codec import TWO_BYTES, FastCodec
from pizero.types import UserError

INVALID = -1


@dataclass(frozen=True)
class ChunkState:
    """Of B texts under way. characters [B]: that are still to begin. open [B]: whether the last one lacks a byte."""

    characters: NDArray[np.int64]
    open: NDArray[np.bool_]

    @property
    def finished(self) -> NDArray[np.bool_]:
        return (self.characters == 0) & ~self.open


class ChunkGrammar:
    """The grammar of one codec and one shape of chunks."""

    def __init__(self, codec: FastCodec, horizon: int, action_dim: int) -> None:
        """UserError for a codec whose tokens cannot make a chunk of this shape, or none near 0."""
        if -codec.min_token >= TWO_BYTES:
            raise UserError(
                f"FAST codec: its min_token is {codec.min_token}, so that a coefficient of 0 has three bytes, which "
                "the grammar does not write; fit it to data without outliers"
            )
        self.codec, self.length = codec, horizon * action_dim
        steps = np.array([[_step(token, starts_open) for token in codec.token_bytes] for starts_open in (False, True)])
        self._begun, self._open = steps[..., 0], steps[..., 1] == 1  # [2, size]: by token, from a closed or open text
        if not self._can_finish[self.length, 0]:
            raise UserError(
                f"FAST codec: its tokens cannot make a chunk of {horizon} x {action_dim}; take another codec"
            )

    def start(self, batch: int) -> ChunkState:
        return ChunkState(np.full(batch, self.length), np.zeros(batch, dtype=np.bool_))

    def allowed(self, state: ChunkState) -> NDArray[np.bool_]:
        """[B, size]: the ids that may come next; none where a text is finished."""
        was_open = state.open.astype(np.int64)
        begun = self._begun[was_open]  # [B, size]
        left = state.characters[:, None] - begun
        fits = (begun != INVALID) & (left >= 0)
        return fits & self._can_finish[np.clip(left, 0, self.length), self._open[was_open].astype(np.int64)]

    def advance(self, state: ChunkState, tokens: NDArray[np.int64]) -> ChunkState:
        """The state after one allowed id per text [B]; a finished text stays as it is."""
        was_open = state.open.astype(np.int64)
        begun, now_open = self._begun[was_open, tokens], self._open[was_open, tokens]
        done = state.finished
        return ChunkState(
            np.where(done, state.characters, state.characters - begun), np.where(done, state.open, now_open)
        )

    @cached_property
    def _can_finish(self) -> NDArray[np.bool_]:
        """[length + 1, 2]: whether a text that lacks so many characters, closed or open, can be finished."""
        moves = [
            {(int(n), bool(o)) for n, o in zip(self._begun[k], self._open[k], strict=True) if n != INVALID}
            for k in (0, 1)
        ]
        table = np.zeros((self.length + 1, 2), dtype=np.bool_)
        table[0, 0] = True
        for missing in range(self.length + 1):
            for is_open in (0, 1):
                table[missing, is_open] |= any(
                    begun <= missing
                    and (begun > 0 or (is_open and not now_open))
                    and table[missing - begun, int(now_open)]
                    for begun, now_open in moves[is_open]
                )
        return table


def _step(token: bytes, is_open: bool) -> tuple[int, bool]:
    """(characters begun, open afterwards) of a token in a text that is open or not; (INVALID, False) if not UTF-8."""
    begun = 0
    for byte in token:
        if is_open:
            if not 0x80 <= byte < 0xC0:
                return INVALID, False
            is_open = False
        elif byte < 0x80 or 0xC2 <= byte < 0xE0:
            begun += 1
            is_open = byte >= 0x80
        else:
            return INVALID, False
    return (begun, is_open) if token else (INVALID, False)
