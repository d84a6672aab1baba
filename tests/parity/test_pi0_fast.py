"""π0-FAST beside openpi's, on every set in a folder: hidden states, logits, loss, gradients, and generated tokens.

A set is a folder with params.npz, golden.npz and a tiny_config.json of the model "pi0_fast", in the folder that
PIZERO_GOLDEN names or in its pi0_fast/ (default: tests/golden).
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from golden_folders import find_sets
from torch import Tensor

from pizero.checkpoints.openpi.jax import fast_table
from pizero.data.fast.codec import FastCodec
from pizero.data.fast.tokens import FastTokenizer
from pizero.data.tokenizer import PaligemmaTokenizer
from pizero.model.config import GemmaConfig, SiglipConfig
from pizero.model.pi0_fast import END_ID, Pi0Fast, Pi0FastConfig, Positions
from pizero.policy.action_constraint import ActionConstraint
from pizero.types import Observation

PARTS = ("params.npz", "golden.npz", "tiny_config.json")
LOGITS = 2e-4


def is_fast(folder: Path) -> bool:
    return json.loads((folder / "tiny_config.json").read_text()).get("model") == "pi0_fast"


class Golden:
    def __init__(self, folder: Path) -> None:
        self.folder, self.sizes = folder, json.loads((folder / "tiny_config.json").read_text())
        with np.load(folder / "golden.npz") as file:
            self.arrays = {name: file[name] for name in file.files}
        self.config = Pi0FastConfig(
            vision=SiglipConfig(patch_size=self.sizes["patch_size"], **self.sizes["vision"]),
            prefix=GemmaConfig(**self.sizes["vlm"]),
            vocab_size=self.sizes["vocab_size"],
            cameras=tuple(self.sizes["cameras"]),
            image_size=self.sizes["image_size"],
            prompt_length=self.sizes["max_token_len"],
            action_dim=self.sizes["action_dim"],
            action_horizon=self.sizes["action_horizon"],
        )

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(self.arrays[name])

    @cached_property
    def model(self) -> Pi0Fast:
        with np.load(self.folder / "params.npz") as file:
            params = {name.removesuffix("/value"): torch.from_numpy(file[name]) for name in file.files}
        weights: dict[str, Tensor] = {}
        for row in fast_table(self.config):
            stored = params.pop(row.theirs)
            for layer, part in enumerate(stored.unbind() if row.depth else [stored]):
                weights |= {name.format(layer): own for name, own in zip(row.ours, row.to_ours(part), strict=True)}
        assert not params
        model = Pi0Fast(self.config)
        model.load_state_dict(weights)
        return model

    def with_positions(self, positions: Positions) -> Pi0Fast:
        self.model.config = replace(self.config, positions=positions)
        return self.model

    def observation(self, kind: str) -> Observation:
        return Observation(
            images={name: self[f"in/image/{name}"].float() / 255 * 2 - 1 for name in self.config.cameras},
            image_masks={name: self[f"in/image_mask/{name}"].clone() for name in self.config.cameras},
            state=None,
            prompt_tokens=self[f"in/{kind}/tokenized_prompt"].long(),
            prompt_mask=self[f"in/{kind}/tokenized_prompt_mask"],
        )

    @property
    def blocks(self) -> tuple[Tensor, Tensor]:
        return self["in/train/token_ar_mask"].bool(), self["in/train/token_loss_mask"].bool()


@pytest.fixture(scope="module", params=find_sets("pi0_fast", PARTS, is_fast), ids=lambda folder: folder.name)
def recorded(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


def test_training_pass(recorded: Golden) -> None:
    model, observation = recorded.with_positions("exact"), recorded.observation("train")
    causal, target = recorded.blocks
    with torch.no_grad():
        hidden = model.hidden(observation, causal)
        valid = observation.prompt_mask[:, :-1]
        torch.testing.assert_close(hidden[:, :-1][valid], recorded["out/prelogits"][valid], atol=LOGITS, rtol=LOGITS)
        rows, places = recorded["out/target_row"].long(), recorded["out/target_position"].long()
        logits = model.logits(hidden[rows, places])
        torch.testing.assert_close(logits, recorded["out/target_logits"], atol=LOGITS, rtol=LOGITS)
        loss = model.text_loss(observation, causal, target)
    torch.testing.assert_close(loss, recorded["out/loss"], atol=1e-5, rtol=1e-4)


def test_a_masked_camera_counts_in_openpis_positions_alone(recorded: Golden) -> None:
    observation = recorded.observation("train")
    camera = recorded.sizes["absent_camera"]
    observation.image_masks[camera] &= (recorded[f"in/image/{camera}"] > 0).flatten(1).any(dim=1)  # else it is black
    with torch.no_grad():
        loss = recorded.with_positions("openpi").text_loss(observation, *recorded.blocks)
        exact = recorded.with_positions("exact").text_loss(observation, *recorded.blocks)
    torch.testing.assert_close(loss, recorded["out/loss_absent_masked"], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(exact, loss, atol=1e-3)


def test_gradients(recorded: Golden) -> None:
    model = recorded.with_positions("exact")
    model.zero_grad()
    model.text_loss(recorded.observation("train"), *recorded.blocks).mean().backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    norms: dict[str, Any] = json.loads((recorded.folder / "grad_norms.json").read_text())["jax"]
    for row in fast_table(recorded.config):
        gradients = [found[name.format(layer)] for name in row.ours for layer in range(row.depth or 1)]
        norm = torch.stack([gradient.norm() for gradient in gradients if gradient is not None]).norm().item()
        expected = norms.get(row.theirs, norms.get(row.theirs + "/value"))["l2"]
        assert norm == pytest.approx(expected, rel=1e-3, abs=1e-7), row.theirs


@pytest.mark.parametrize("positions", ["exact", "openpi"])
def test_generated_tokens(recorded: Golden, positions: Positions) -> None:
    """The reference runs on until all rows end in the same step; ours end alone, with the same tokens."""
    model, steps = recorded.with_positions(positions), recorded.sizes["max_decoding_steps"]
    tokens = model.generate(recorded.observation("infer"), steps)
    for row, expected in zip(tokens.tolist(), recorded[f"out/tokens_{positions}"].tolist(), strict=True):
        length = expected.index(END_ID) + 1 if END_ID in expected else len(expected)
        assert row[:length] == expected[:length]
        assert not any(row[length:])
    alone = model.generate(recorded.observation("infer")[1:2], steps)[0].tolist()
    assert alone == tokens[1].tolist()[: len(alone)]


def test_constrained_decoding(recorded: Golden) -> None:
    """Where training's positions give a chunk it changes nothing; where openpi's give none, there is one."""
    sizes = recorded.sizes
    places = [(recorded.folder / sizes[name]).resolve() for name in ("sentencepiece", "codec")]
    if not all(place.exists() for place in places):
        pytest.skip(f"{recorded.folder} names a tokenizer or a codec that is not there")
    tokenizer = FastTokenizer(PaligemmaTokenizer(places[0]), FastCodec.load(places[1]), sizes["fast_skip"])
    shape, observation = (sizes["action_horizon"], sizes["action_dim"]), recorded.observation("infer")
    for positions in get_args(Positions):
        model = recorded.with_positions(positions)
        constraint = ActionConstraint(tokenizer, *shape, observation.batch_size)
        rows = model.generate(observation, constraint.max_tokens, constraint=constraint).tolist()
        chunks = np.stack([tokenizer.decode(row, *shape) for row in rows])
        free = model.generate(observation, sizes["max_decoding_steps"]).tolist()
        if positions == "exact":
            assert rows == free
            np.testing.assert_allclose(chunks, recorded.arrays["out/actions_exact"], atol=1e-9)
        else:
            assert not any(tokenizer.decode(row, *shape, on_malformed="zeros").any() for row in free)
