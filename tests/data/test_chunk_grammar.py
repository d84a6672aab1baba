from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pizero.data.fast.codec import FastCodec
from pizero.data.fast.grammar import ChunkGrammar
from pizero.types import UserError

GOLDEN = FastCodec.load(Path(__file__).parents[1] / "golden" / "fast_codec" / "t10_d7_v256" / "tokenizer")
WHOLE = FastCodec.fit([np.random.default_rng(0).uniform(-8, 8, (40, 6, 2))], vocab_size=300)
"""With two-byte characters, and a token for each half of one."""


def written(codec: FastCodec, horizon: int, dims: int, batch: int, seed: int, sharp: float) -> list[list[int]]:
    """Texts of a model that knows nothing, `sharp` times more certain of some tokens than of others."""
    draw = np.random.default_rng(seed)
    grammar, liking = ChunkGrammar(codec, horizon, dims), draw.normal(size=codec.size) * sharp
    state, texts = grammar.start(batch), [[] for _ in range(batch)]
    for _ in range(2 * grammar.length + 1):
        allowed = grammar.allowed(state)
        assert np.array_equal(allowed.any(axis=1), ~state.finished)  # there is always a way on
        if state.finished.all():
            return texts
        logits = np.where(allowed, liking + draw.gumbel(size=allowed.shape), -np.inf)
        tokens = logits.argmax(axis=1)
        for row in np.flatnonzero(~state.finished):
            texts[row].append(int(tokens[row]))
        state = grammar.advance(state, tokens)
    raise AssertionError("a text without an end")


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 12), st.integers(1, 7), st.integers(0, 10_000), st.sampled_from([0.0, 3.0, 30.0]), st.booleans())
def test_whatever_the_model_writes_is_a_chunk(horizon: int, dims: int, seed: int, sharp: float, golden: bool) -> None:
    codec = GOLDEN if golden else WHOLE
    for text in written(codec, horizon, dims, 50, seed, sharp):
        assert codec.decode(text, horizon, dims).shape == (horizon, dims)


@pytest.mark.parametrize("codec", [GOLDEN, WHOLE], ids=["reference", "all bytes"])
def test_what_the_codec_encodes_is_allowed(codec: FastCodec) -> None:
    grammar = ChunkGrammar(codec, 10, 7)
    for chunk in np.random.default_rng(1).uniform(-1, 1, (50, 10, 7)):
        state = grammar.start(1)
        for token in codec.encode(chunk):
            assert grammar.allowed(state)[0, token]
            state = grammar.advance(state, np.array([token]))
        assert state.finished.all()
        assert not grammar.allowed(state).any()


def test_a_codec_that_could_write_no_usual_chunk_is_refused() -> None:
    with pytest.raises(UserError, match="min_token is -2048, so that a coefficient of 0 has three bytes"):
        ChunkGrammar(dataclasses.replace(WHOLE, min_token=-2048), 10, 7)


def test_without_the_grammar_nearly_nothing_is_a_chunk() -> None:
    draw, malformed = np.random.default_rng(0), 0
    for _ in range(200):
        try:
            GOLDEN.decode(draw.integers(0, GOLDEN.size, 28).tolist(), 10, 7)
        except UserError:
            malformed += 1
    assert malformed > 180


def test_a_codec_that_can_make_no_chunk() -> None:
    codec = FastCodec.fit([np.zeros((3, 4, 1))], vocab_size=2, all_bytes=False)
    only_pairs = ChunkGrammar(codec, 4, 1)  # single characters make everything
    assert only_pairs.allowed(only_pairs.start(1)).any()
    with pytest.raises(UserError, match="cannot make a chunk of 1 x 1"):
        ChunkGrammar(_without_single_characters(), 1, 1)


def _without_single_characters() -> FastCodec:
    from tokenizers import Tokenizer, models
    from tokenizers.decoders import ByteLevel

    tokenizer = Tokenizer(models.BPE(vocab={"aa": 0}, merges=[]))
    tokenizer.decoder = ByteLevel()
    return FastCodec(tokenizer, 10, 0, 1)
