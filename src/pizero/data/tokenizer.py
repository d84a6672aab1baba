"""Instruction (and digitised state) to token ids, in the two text forms of the released models.

Without state:  "{prompt}" with the begin mark, then "\\n" encoded by itself        (π0; π0.5 that ignores the state)
With state:     "Task: {prompt}, State: {256-bin integers};\\nAction: "             (π0.5)

The prompt is stripped, and "_" and line breaks become spaces. In the convention "lerobot" the form without state is the
prompt as it is, "\\n" appended where it does not end in one, encoded as a whole; the form with state is the same.

A prompt longer than the model's is cut, and told once. With state the instruction gives way, never the state or what
stands around it; without state the tokens end where the room does, as the released models' do.
"""

from __future__ import annotations

import io
import warnings
from bisect import bisect_left
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from pizero.files import read_file, write_bytes
from pizero.types import Convention, UserError

PADDING_ID, END_ID, BEGIN_ID, UNKNOWN_ID = 0, 1, 2, 3
_STATE_BIN_EDGES = np.linspace(-1, 1, 257)[:-1]
_CACHE_SIZE = 4096
_LARGEST_MODEL = 64 << 20
_MOST_TOLD = 100


class Encoder(Protocol):
    """What a tokenizer needs of the library behind it."""

    def encode(self, text: str, add_bos: bool) -> list[int]: ...
    def decode(self, input: list[int]) -> str: ...


class ByteEncoder:
    """Stands in for a trained vocabulary: byte b is token 3 + b. For models with random weights."""

    vocab_size = 3 + 256

    def encode(self, text: str, add_bos: bool) -> list[int]:
        return [BEGIN_ID] * add_bos + [3 + byte for byte in text.encode()]

    def decode(self, input: list[int]) -> str:
        return bytes(token - 3 for token in input if token >= 3).decode(errors="replace")


class PaligemmaTokenizer:
    """A SentencePiece model with PaliGemma's special tokens (padding 0, end 1, begin 2, unknown 3)."""

    def __init__(self, path: Path | str) -> None:
        """Raises UserError when `path` is not a SentencePiece model."""
        from sentencepiece import SentencePieceProcessor

        try:
            model = read_file(Path(path), _LARGEST_MODEL)
            if not model:
                raise OSError("the file is empty")  # SentencePiece would wait for a later one
            encoder = cast(Any, SentencePieceProcessor)(model_proto=model)
            encoder.encode("a\n", add_bos=True)  # what a damaged one may refuse
            marks = encoder.pad_id(), encoder.eos_id(), encoder.bos_id(), encoder.unk_id()
            if marks != (PADDING_ID, END_ID, BEGIN_ID, UNKNOWN_ID):
                raise ValueError(f"padding, end, begin and unknown are {marks}, in PaliGemma's 0, 1, 2, 3")
        except (OSError, RuntimeError, ValueError) as error:  # its own message need not be text
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"tokenizer: cannot read a SentencePiece model from {path} ({reason}); copy it again"
            ) from error
        self._set(encoder, int(encoder.vocab_size()), model)

    @classmethod
    def with_encoder(cls, encoder: Encoder, vocab_size: int) -> PaligemmaTokenizer:
        """A tokenizer on another encoder; such a one has no model file."""
        tokenizer = cls.__new__(cls)
        tokenizer._set(encoder, vocab_size, None)
        return tokenizer

    @classmethod
    def bytes(cls) -> PaligemmaTokenizer:
        """The stand-in on `ByteEncoder`."""
        return cls.with_encoder(ByteEncoder(), ByteEncoder.vocab_size)

    def _set(self, encoder: Encoder, vocab_size: int, model: bytes | None) -> None:
        self.encoder = encoder
        self.vocab_size = vocab_size
        self.model = model
        self._cache: dict[tuple[str, Convention], list[int]] = {}
        self._told: set[str] = set()  # prompts that were cut

    def encode(
        self, prompt: str, state: NDArray[np.floating[Any]] | None, length: int, convention: Convention = "openpi"
    ) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """(tokens, mask), both [length]; mask is true where a token is real.

        state: normalised, unpadded [d], for the form with state. Too long a prompt is cut, with one warning for each.
        UserError where the state alone is too long, and for a prompt with halves of characters (surrogates).
        """
        tokens, mask = self.encode_batch([prompt], None if state is None else state[None], length, convention)
        return tokens[0], mask[0]

    def encode_batch(
        self,
        prompts: Sequence[str],
        states: NDArray[np.floating[Any]] | None,
        length: int,
        convention: Convention = "openpi",
    ) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """The same for B prompts and states [B, d]: (tokens, mask), both [B, length]."""
        check_text(prompts)
        if states is None:
            ids = [self._encode_prompt(prompt, convention) for prompt in prompts]
        else:
            bins = cast("list[list[int]]", state_bins(states).tolist())
            ids = [self._encode_with_state(p, b, length) for p, b in zip(prompts, bins, strict=True)]
        tokens = np.full((len(ids), length), PADDING_ID, dtype=np.int32)
        mask = np.zeros((len(ids), length), dtype=np.bool_)
        for row, sequence in enumerate(ids):
            if len(sequence) > length:
                self.warn_cut(prompts[row], f"{len(sequence)} tokens, of which the model takes the first {length}")
                sequence = sequence[:length]
            tokens[row, : len(sequence)] = sequence
            mask[row, : len(sequence)] = True
        return tokens, mask

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens; marks, and ids beyond the vocabulary (action codes), have none."""
        return self.encoder.decode([int(token) for token in tokens if UNKNOWN_ID < token < self.vocab_size])

    def save(self, path: Path | str) -> None:
        """Writes the SentencePiece model."""
        if self.model is None:
            raise UserError("tokenizer: this one has no SentencePiece model to save; make it from a model file")
        write_bytes(Path(path), self.model)

    def _encode_prompt(self, prompt: str, convention: Convention) -> list[int]:
        ids = self._cache.get((prompt, convention))
        if ids is None:
            if convention == "lerobot":
                ids = self.encoder.encode(prompt if prompt.endswith("\n") else prompt + "\n", add_bos=True)
            else:
                ids = self.encoder.encode(clean(prompt), add_bos=True) + self.encoder.encode("\n", add_bos=False)
            if len(self._cache) < _CACHE_SIZE:
                self._cache[prompt, convention] = ids
        return ids

    def _encode_with_state(self, prompt: str, bins: list[int], length: int) -> list[int]:
        text, state = clean(prompt), " ".join(map(str, bins))

        def encoded(kept: str) -> list[int]:
            return self.encoder.encode(f"Task: {kept}, State: {state};\nAction: ", add_bos=True)

        whole = encoded(text)
        if len(whole) <= length:
            return whole
        if (least := len(encoded(""))) > length:
            raise UserError(
                f"prompt: the state's {len(bins)} dimensions take {least} tokens and the model's prompt has {length}: "
                "no room for an instruction; leave dimensions of the state out, or take a longer prompt_length"
            )
        kept = longest_start(text, lambda start: len(encoded(start)) <= length)
        cut = f"cut after {kept[-40:].strip()!r}" if kept else "dropped"
        self.warn_cut(prompt, f"{len(whole)} tokens with the state, the model takes {length}: the instruction is {cut}")
        return encoded(kept)

    def warn_cut(self, prompt: str, what: str) -> None:
        """One warning for each prompt."""
        if prompt in self._told or len(self._told) > _MOST_TOLD:
            return
        self._told.add(prompt)
        shown = prompt if len(prompt) <= 60 else prompt[:57] + "..."
        last = "; further prompts that are cut are not reported" if len(self._told) > _MOST_TOLD else ""
        warnings.warn(f"prompt {shown!r}: {what}; shorten it{last}", stacklevel=5)


def longest_start(text: str, fits: Callable[[str], bool]) -> str:
    """As many characters as fit, up to the end of a word where one is near. The empty text fits."""
    count = bisect_left(range(1, len(text) + 1), True, key=lambda length: not fits(text[:length]))
    start = text[:count]
    space = start.rfind(" ")
    if count < len(text) and text[count] != " " and space > count // 2:
        start = start[:space]
    start = start.rstrip()
    while not fits(start):  # a shorter text may have more tokens
        start = start[:-1]
    return start


def check_text(prompts: Sequence[str]) -> None:
    """UserError for halves of characters (surrogates), which no encoding has."""
    for prompt in prompts:
        if not prompt.isascii() and any("\ud800" <= character <= "\udfff" for character in prompt):
            raise UserError(f"prompt {prompt[:60]!r} is no text: it holds halves of characters; write it in UTF-8")


def state_bins(state: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    """Normalised state -> bin 0 to 255 of [-1, 1); -1 below, 255 above."""
    return np.digitize(state, _STATE_BIN_EDGES).astype(np.int64) - 1


def train_tokenizer(sentences: Sequence[str], path: Path | str, vocab_size: int = 512) -> PaligemmaTokenizer:
    """Trains a small vocabulary on `sentences` and writes it to `path`; the same sentences give the same file.

    The vocabulary may come out smaller than `vocab_size`, never larger. It holds all 256 bytes, so any text can be
    encoded, and the words around the state in the form with state.
    """
    from sentencepiece import SentencePieceTrainer

    if not sentences or vocab_size < 384:
        raise UserError(f"tokenizer: got {len(sentences)} sentences and size {vocab_size}, expected some and >= 384")
    corpus = [line for sentence in sentences if (line := clean(sentence))]
    corpus += ["Task: , State: -1 0 1 2 3 4 5 6 7 8 9;", "Action: "]
    model = io.BytesIO()
    try:
        cast(Any, SentencePieceTrainer).train(
            sentence_iterator=iter(corpus),
            model_writer=model,
            vocab_size=vocab_size,
            model_type="bpe",
            hard_vocab_limit=False,
            character_coverage=1.0,
            pad_id=PADDING_ID,
            eos_id=END_ID,
            bos_id=BEGIN_ID,
            unk_id=UNKNOWN_ID,
            byte_fallback=True,
            split_digits=True,
            user_defined_symbols=["\n"],
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(
            f"tokenizer: training failed, maybe for too small a vocabulary ({vocab_size}): {error}"
        ) from error
    write_bytes(Path(path), model.getvalue())
    return PaligemmaTokenizer(path)


def clean(prompt: str) -> str:
    return prompt.strip().replace("_", " ").replace("\n", " ")
