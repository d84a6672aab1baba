"""π0-FAST's text beside the reference's, on every set in a folder: tokens, masks, and actions out of generated tokens.

A set is a folder with tokenizer.model, roundtrip.npz and cases.json, which names its codec, in the folder that
PIZERO_GOLDEN names or in its fast_prompts/ (default: tests/golden).
"""

from __future__ import annotations

import json
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_folders import find_sets

from pizero.data.fast.codec import FastCodec
from pizero.data.fast.tokens import FastTokenizer
from pizero.data.tokenizer import PaligemmaTokenizer
from pizero.types import UserError

PARTS = ("tokenizer.model", "roundtrip.npz", "cases.json")

each_set = pytest.mark.parametrize("folder", find_sets("fast_prompts", PARTS), ids=lambda folder: folder.name)


@cache
def read(folder: Path) -> tuple[FastTokenizer, dict[str, Any]]:
    cases = json.loads((folder / "cases.json").read_text())
    codec = FastCodec.load((folder / cases["codec"]).resolve())
    return FastTokenizer(PaligemmaTokenizer(folder / "tokenizer.model"), codec, cases["skip"]), cases


@each_set
def test_tokens_and_masks(folder: Path) -> None:
    tokenizer, cases = read(folder)
    assert tokenizer.action_ids == cases["action_ids"]
    assert tokenizer.to_text([0]) == [cases["fast_id_0_is"]]
    for case in cases["cases"]:
        state = np.array([case["state"]], dtype=case["state_dtype"])
        chunk = None if case["actions"] is None else np.array([case["actions"]], dtype=np.float32)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            made = tokenizer.encode_batch([case["prompt"]], state, case["max_len"], chunk, repair=False)
        assert bool(caught) == (case["length_before_cut"] > case["max_len"]), case["name"]
        for name, array in (
            ("tokens", made.tokens),
            ("token_mask", made.mask),
            ("ar_mask", made.target),
            ("loss_mask", made.target),
        ):
            assert np.array_equal(array[0], case[name]), (case["name"], name)


@each_set
def test_actions_out_of_generated_tokens(folder: Path) -> None:
    """Equal to the reference's, but where its way by text changes ids that stand for ordinary pieces."""
    tokenizer, cases = read(folder)
    shape = cases["action_horizon"], cases["action_dim"]
    for case in cases["extract"]:
        space = tokenizer.action_ids[-1]
        if case["name"] == "space_before_codes" and space in tokenizer.to_text(range(tokenizer.codec.size)):
            continue  # the space is a FAST token
        found = tokenizer.decode(case["tokens"], *shape, on_malformed="zeros")
        expected = np.zeros(shape) if case["all_zero"] else case["actions"]
        np.testing.assert_allclose(found, expected, atol=1e-9, err_msg=case["name"])
        if case["all_zero"]:
            with pytest.raises(UserError, match="no chunk"):
                tokenizer.decode(case["tokens"], *shape)


@each_set
def test_every_chunk_comes_back(folder: Path) -> None:
    """By text a few do not, in a vocabulary where FAST ids are ordinary pieces."""
    tokenizer, _ = read(folder)
    with np.load(folder / "roundtrip.npz") as file:
        chunks = file["roundtrip_actions"]
    for chunk, fast in zip(chunks, tokenizer.codec.encode_batch(chunks), strict=True):
        ids = [*tokenizer.action_ids, *tokenizer.to_text(fast), *tokenizer.end_ids]
        np.testing.assert_array_equal(tokenizer.decode(ids, *chunk.shape), tokenizer.codec.decode(fast, *chunk.shape))
