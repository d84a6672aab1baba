"""π0-FAST's text: prompt and digitised state, then the action tokens, in PaliGemma's vocabulary.

    Task: {prompt}, State: {256-bin integers};\\n  |  Action:  {FAST tokens}  |  <end>
    begin mark, one bidirectional block               each token a block of its own; the loss is on these

The prompt is lower case and stripped, "_" becomes a space; a line break inside stays. A FAST id f is the token
`vocab_size - 1 - skip - f`: the last ids before PaliGemma's 128 `<seg>` tokens (openpi, models/tokenizer.py).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from pizero.data.fast.codec import FastCodec, OnMalformed
from pizero.data.fast.grammar import ChunkGrammar
from pizero.data.tokenizer import END_ID, PADDING_ID, PaligemmaTokenizer, check_text, clean, state_bins
from pizero.types import Convention, UserError

SKIP = 128
"""PaliGemma's last tokens, `<seg000>` to `<seg127>`, which no FAST id takes."""
ACTION, BAR = "Action: ", "|"


@dataclass(frozen=True)
class FastTokens:
    """B sequences of length L, padded at the end. tokens [B, L] int32.

    mask [B, L]: real tokens. causal [B, L]: action tokens, each a block of its own. target [B, L]: those that the loss
    is on, predicted from the one before: all but a begin mark.
    """

    tokens: NDArray[np.int32]
    mask: NDArray[np.bool_]
    causal: NDArray[np.bool_]
    target: NDArray[np.bool_]


@dataclass(frozen=True)
class FastTokenizer:
    """text: the vocabulary of words. codec: of the actions. skip: tokens at the vocabulary's end without a FAST id.

    vocab_size: of the model's token table, from whose end FAST ids count back; 0 takes the text's. A small model has
    room for the codec after its words; in PaliGemma's, FAST ids take the place of rare ones. convention: in LeRobot's
    text capitals stay, line breaks become spaces, and a begin mark stands before "Action: ", without a loss on it.
    """

    text: PaligemmaTokenizer
    codec: FastCodec
    skip: int = SKIP
    vocab_size: int = 0
    convention: Convention = "openpi"

    def __post_init__(self) -> None:
        if self.vocab_size and self.vocab_size < self.text.vocab_size:
            raise UserError(
                f"the tokenizer has {self.text.vocab_size} pieces, the model's table {self.vocab_size}; choose a "
                "smaller tokenizer or a larger vocab_size"
            )
        if self.codec.size > self._size - self.skip:
            raise UserError(
                f"FAST codec: {self.codec.size} tokens do not fit into a vocabulary of {self._size} before its last "
                f"{self.skip}; fit a smaller codec or take a larger vocabulary"
            )

    def grammar(self, horizon: int, action_dim: int) -> ChunkGrammar:
        """Of chunks of this shape, made once. UserError for a codec whose tokens cannot make one."""
        shape = (horizon, action_dim)
        if shape not in self._grammars:
            self._grammars[shape] = ChunkGrammar(self.codec, *shape)
        return self._grammars[shape]

    @cached_property
    def _grammars(self) -> dict[tuple[int, int], ChunkGrammar]:
        return {}

    @property
    def _size(self) -> int:
        return self.vocab_size or self.text.vocab_size

    @cached_property
    def action_ids(self) -> list[int]:
        return self.text.encoder.encode(ACTION, add_bos=self.convention == "lerobot")

    @cached_property
    def end_ids(self) -> list[int]:
        """ "|" and the end mark."""
        return [*self.text.encoder.encode(BAR, add_bos=False), END_ID]

    def to_text(self, fast: Sequence[int]) -> list[int]:
        """FAST ids -> ids of the vocabulary. The same subtraction leads back."""
        last = self._size - 1 - self.skip
        return [last - token for token in fast]

    def encode_batch(
        self,
        prompts: Sequence[str],
        states: NDArray[np.floating[Any]],
        length: int,
        chunks: NDArray[np.floating[Any]] | None = None,
        *,
        repair: bool = True,
    ) -> FastTokens:
        """B prompts, normalised unpadded states [B, d] and, for training, action chunks [B, T, D].

        Without chunks the sequence ends after the prompt. What is longer than `length` loses its end, as the released
        model's does, with one warning: in training those are action tokens, and its model then learns to stop early.
        repair: see `FastCodec.encode_batch`.
        """
        check_text(prompts)
        tokens = np.full((len(prompts), length), PADDING_ID, dtype=np.int32)
        mask, causal, target = np.zeros((3, len(prompts), length), dtype=np.bool_)
        bins = cast("list[list[int]]", state_bins(states).tolist())
        actions = [None] * len(prompts) if chunks is None else self.codec.encode_batch(chunks, repair=repair)
        longest = 0
        for row, (prompt, state, fast) in enumerate(zip(prompts, bins, actions, strict=True)):
            before = self.prompt_ids(prompt, state)
            after = [] if fast is None else [*self.action_ids, *self.to_text(fast), *self.end_ids]
            ids = [*before, *after]
            longest = max(longest, len(ids))
            ids = ids[:length]
            tokens[row, : len(ids)] = ids
            mask[row, : len(ids)] = True
            causal[row, len(before) : len(ids)] = True
            target[row, len(before) + (self.convention == "lerobot") : len(ids)] = True
        if longest > length:
            what = "prompt, state" + (" and actions" if chunks is not None else "")
            warnings.warn(
                f"{what} take up to {longest} tokens, of which the model takes the first {length}; take a longer "
                "prompt_length, or a codec with fewer tokens a chunk",
                stacklevel=2,
            )
        return FastTokens(tokens, mask, causal, target)

    def prompt_ids(self, prompt: str, bins: Sequence[int]) -> list[int]:
        """One prompt with its state bins, begin mark included."""
        cleaned = clean(prompt) if self.convention == "lerobot" else prompt.lower().strip().replace("_", " ")
        text = f"Task: {cleaned}, State: {' '.join(map(str, bins))};\n"
        return self.text.encoder.encode(text, add_bos=True)

    def decode(
        self, tokens: Sequence[int], horizon: int, action_dim: int, *, on_malformed: OnMalformed = "raise"
    ) -> NDArray[np.float64]:
        """Generated tokens -> normalised actions [horizon, action_dim], by ids: from after "Action: " up to "|".

        UserError where they are no chunk. The reference goes by way of text, which changes a few sequences whose ids
        are ordinary text pieces (3 of 50 chunks in a small vocabulary); this does not.
        """
        ids = [int(token) for token in tokens if token not in (PADDING_ID, END_ID)]
        begin = _find(ids, self.action_ids)
        if begin is None:
            if on_malformed == "zeros":
                return np.zeros((horizon, action_dim))
            raise UserError(f'FAST codec: {len(ids)} tokens that are no chunk: no "Action: " among them')
        ids = ids[begin + len(self.action_ids) :]
        again = _find(ids, self.action_ids)
        ids = ids if again is None else ids[:again]
        bars = [place for place, token in enumerate(ids) if token == self.end_ids[0]] or [len(ids)]
        if not 0 <= self.to_text([self.end_ids[0]])[0] < self.codec.size:
            bars = bars[:1]
        for bar in bars[:-1]:  # where "|" is a FAST token too, the chunk ends where it is whole
            try:
                return self.codec.decode(self.to_text(ids[:bar]), horizon, action_dim)
            except UserError:
                continue
        return self.codec.decode(self.to_text(ids[: bars[-1]]), horizon, action_dim, on_malformed=on_malformed)


def _find(ids: list[int], part: list[int]) -> int | None:
    return next((n for n in range(len(ids) - len(part) + 1) if ids[n : n + len(part)] == part), None)
