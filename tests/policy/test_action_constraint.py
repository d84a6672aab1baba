from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pizero.data.fast.codec import FastCodec
from pizero.data.fast.tokens import FastTokenizer
from pizero.data.tokenizer import PaligemmaTokenizer
from pizero.model.config import SMALL_SIZES
from pizero.model.pi0_fast import END_ID, Pi0Fast, Pi0FastConfig
from pizero.policy.action_constraint import ActionConstraint
from pizero.types import Observation, UserError

GOLDEN = Path(__file__).parents[1] / "golden"
CODEC = FastCodec.load(GOLDEN / "fast_codec" / "t10_d7_v256" / "tokenizer")
NANO = SMALL_SIZES["nano"]


@pytest.fixture(scope="module", params=["loc256", "collide128"])
def tokenizer(request: pytest.FixtureRequest) -> FastTokenizer:
    return FastTokenizer(PaligemmaTokenizer(GOLDEN / "fast_prompts" / request.param / "tokenizer.model"), CODEC)


def model_of(seed: int) -> Pi0Fast:
    torch.manual_seed(seed)
    return Pi0Fast(
        Pi0FastConfig(
            vision=NANO["vision"], prefix=NANO["prefix"], vocab_size=896, image_size=28, prompt_length=48,
            cameras=("base_0_rgb",), action_dim=3, action_horizon=5,
        )
    ).eval()  # fmt: skip


def observation_of(tokenizer: FastTokenizer, batch: int) -> Observation:
    prompts = [f"lift the red cube {'again ' * (row % 4)}" for row in range(batch)]
    text = tokenizer.encode_batch(prompts, np.zeros((batch, 3)), 48)
    return Observation(
        images={"base_0_rgb": torch.randn(batch, 28, 28, 3).clamp(-1, 1)},
        image_masks={"base_0_rgb": torch.ones(batch, dtype=torch.bool)},
        state=None,
        prompt_tokens=torch.from_numpy(text.tokens).long(),
        prompt_mask=torch.from_numpy(text.mask),
    )


@pytest.mark.parametrize("temperature", [0.0, 1.0, 5.0])
def test_random_weights_always_write_a_chunk(tokenizer: FastTokenizer, temperature: float) -> None:
    """And none without the constraint."""
    batch = 200
    model, observation = model_of(int(temperature)), observation_of(tokenizer, batch)
    constraint = ActionConstraint(tokenizer, 5, 3, batch)
    uniform = torch.rand(batch, constraint.max_tokens, generator=torch.Generator().manual_seed(0))
    tokens = model.generate(
        observation, constraint.max_tokens, temperature=temperature, uniform=uniform, constraint=constraint
    )
    for row in tokens.tolist():
        chunk = tokenizer.decode(row, 5, 3)
        assert np.isfinite(chunk).all()
        assert row[: len(tokenizer.action_ids)] == tokenizer.action_ids
        assert row[len([token for token in row if token]) - 1] == END_ID
    free = model.generate(observation[:20], 20, temperature=temperature).tolist()
    malformed = 0
    for row in free:
        try:
            tokenizer.decode(row, 5, 3)
        except UserError:
            malformed += 1
    assert malformed == len(free)


def test_rows_do_not_depend_on_each_other(tokenizer: FastTokenizer) -> None:
    model, observation = model_of(3), observation_of(tokenizer, 6)
    together = model.generate(observation, 40, constraint=ActionConstraint(tokenizer, 5, 3, 6))
    for row in range(6):
        alone = model.generate(observation[row : row + 1], 40, constraint=ActionConstraint(tokenizer, 5, 3, 1))[0]
        assert alone.tolist() == together[row, : len(alone)].tolist()
        assert not together[row, len(alone) :].any()


def test_what_a_trained_model_writes_is_allowed(tokenizer: FastTokenizer) -> None:
    chunk = np.random.default_rng(0).uniform(-1, 1, (10, 7))
    constraint = ActionConstraint(tokenizer, 10, 7, 1)
    places = {int(token): place for place, token in reversed(list(enumerate(constraint.candidates.tolist())))}
    for token in [*tokenizer.action_ids, *tokenizer.to_text(CODEC.encode(chunk)), *tokenizer.end_ids]:
        allowed = constraint.candidates[constraint.allowed()[0]].tolist()
        assert token in allowed, places.get(token)
        constraint.advance(torch.tensor([token]))
    assert not constraint.allowed().any()


def test_a_row_that_writes_halves_of_characters_ends_in_time(tokenizer: FastTokenizer) -> None:
    """Each coefficient then takes two tokens."""
    wide = FastCodec.fit([np.random.default_rng(0).uniform(-8, 8, (40, 6, 2))], vocab_size=300)
    constraint = ActionConstraint(FastTokenizer(tokenizer.text, wide), 2, 2, 1)
    codes = zip(constraint.candidates.tolist(), wide.token_bytes, strict=False)  # the words come after them
    halves = {token for token, text in codes if len(text) == 1 and text > b"\x7f"}
    written = 0
    while (allowed := constraint.allowed()[0]).any():
        ids = constraint.candidates[allowed].tolist()
        constraint.advance(torch.tensor([next((token for token in ids if token in halves), ids[0])]))
        written += 1
    assert written == constraint.max_tokens
