"""The fast path of π0-FAST writes the tokens of the plain one: with and without a grammar, padding, temperature."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pizero.data.fast.codec import FastCodec
from pizero.data.fast.tokens import FastTokenizer
from pizero.data.tokenizer import PaligemmaTokenizer
from pizero.engine.fast_writer import FastWriter
from pizero.model.config import SMALL_SIZES
from pizero.model.pi0_fast import Pi0Fast, Pi0FastConfig, Positions
from pizero.policy.action_constraint import ActionConstraint
from pizero.types import Observation

GOLDEN = Path(__file__).parents[1] / "golden"
TOKENIZER = FastTokenizer(
    PaligemmaTokenizer(GOLDEN / "fast_prompts" / "loc256" / "tokenizer.model"),
    FastCodec.load(GOLDEN / "fast_codec" / "t10_d7_v256" / "tokenizer"),
)
NANO = SMALL_SIZES["nano"]
CONFIG = Pi0FastConfig(
    vision=NANO["vision"], prefix=NANO["prefix"], vocab_size=896, image_size=28, prompt_length=64,
    cameras=("base_0_rgb", "left_wrist_0_rgb"), action_dim=3, action_horizon=5,
)  # fmt: skip


def model_of(config: Pi0FastConfig, seed: int = 0) -> Pi0Fast:
    torch.manual_seed(seed)
    model = Pi0Fast(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("scale"):
                parameter.normal_(std=0.2)
    return model


def observation_of(batch: int, absent: bool) -> Observation:
    draw = torch.Generator().manual_seed(batch)
    text = TOKENIZER.encode_batch([f"lift it {'again ' * row}" for row in range(batch)], np.zeros((batch, 3)), 64)
    present = torch.ones(batch, dtype=torch.bool)
    return Observation(
        images={name: torch.rand(batch, 28, 28, 3, generator=draw) * 2 - 1 for name in CONFIG.cameras},
        image_masks={"base_0_rgb": present, "left_wrist_0_rgb": torch.arange(batch) % 2 == 0 if absent else present},
        state=None, prompt_tokens=torch.from_numpy(text.tokens).long(), prompt_mask=torch.from_numpy(text.mask),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("batch", "absent", "positions"), [(1, False, "exact"), (3, True, "exact"), (2, False, "openpi")]
)
def test_the_same_tokens(batch: int, absent: bool, positions: Positions) -> None:
    model = model_of(replace(CONFIG, positions=positions), batch)
    fast, observation = FastWriter(model), observation_of(batch, absent)
    for temperature in (0.0, 1.0):
        uniform = torch.rand(batch, 80, generator=torch.Generator().manual_seed(1))
        options = {"temperature": temperature, "top_p": 0.9, "uniform": uniform}
        for constrained in (True, False):
            plain, quick = (
                writer.generate(
                    observation, 40 if constrained else 12, **options,
                    constraint=ActionConstraint(TOKENIZER, 5, 3, batch) if constrained else None,
                )
                for writer in (model, fast)
            )  # fmt: skip
            assert torch.equal(plain, quick)


def test_fewer_calls_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """The words before the codes run together, those after them not at all."""
    fast, observation = FastWriter(model_of(CONFIG)), observation_of(1, False)
    ran: list[int] = []
    step = FastWriter._step

    def counted(self: FastWriter, text: object, tokens: torch.Tensor) -> None:
        ran.append(tokens.shape[1])
        step(self, text, tokens)  # type: ignore[arg-type]

    monkeypatch.setattr(FastWriter, "_step", counted)
    tokens = fast.generate(observation, 60, constraint=ActionConstraint(TOKENIZER, 5, 3, 1))
    words = len(TOKENIZER.action_ids)
    codes = tokens.shape[1] - words - len(TOKENIZER.end_ids)
    assert ran[0] == words
    assert len(ran) == codes
    assert sum(ran) == words + codes - 1


def test_bfloat16_and_a_consumed_model() -> None:
    """The logits agree as bfloat16 does; a model that gave up its matrices computes nothing any more."""
    model = model_of(CONFIG).to(torch.bfloat16)
    plain = FastWriter(model)
    consumed = FastWriter(model, consume=True)
    observation = observation_of(2, False)
    tokens = [writer.generate(observation, 8) for writer in (plain, consumed)]
    assert torch.equal(*tokens)
    assert next(model.blocks[0].parameters()).device.type in ("cpu", "meta")
    assert model.blocks[0].query.weight.device.type == "meta"


def test_nan_is_an_error() -> None:
    model = model_of(CONFIG)
    with torch.no_grad():
        model.norm.scale[0] = torch.nan
    with pytest.raises(RuntimeError, match="NaN or Inf"):
        FastWriter(model).generate(observation_of(1, False), 4)
