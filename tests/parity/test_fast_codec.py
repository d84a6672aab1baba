"""The FAST codec beside the reference's tokens and decoded chunks, on every set in a folder.

A set is a folder with tokenizer/, golden.npz and cases.json, in the folder that PIZERO_GOLDEN names or in its
fast_codec/ (default: tests/golden).
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_folders import find_sets

from pizero.data.fast.codec import FastCodec
from pizero.types import UserError

PARTS = ("tokenizer/processor_config.json", "golden.npz", "cases.json")

each_set = pytest.mark.parametrize("folder", find_sets("fast_codec", PARTS), ids=lambda folder: folder.name)


@cache
def read(folder: Path) -> tuple[FastCodec, dict[str, np.ndarray], dict[str, Any]]:
    with np.load(folder / "golden.npz") as file:
        arrays = {name: file[name] for name in file.files}
    return FastCodec.load(folder / "tokenizer"), arrays, json.loads((folder / "cases.json").read_text())


def prefixes(arrays: dict[str, np.ndarray]) -> list[str]:
    """ "test/" or "test/10x7/" and its like."""
    return sorted(name.removesuffix("actions") for name in arrays if name.startswith("test/") and "actions" in name)


def shape_of(edge: dict[str, Any]) -> tuple[int, int]:
    return np.asarray(edge["actions"]).shape


@each_set
def test_tokens_and_chunks_are_the_references(folder: Path) -> None:
    codec, arrays, _ = read(folder)
    for prefix in prefixes(arrays):
        actions = arrays[prefix + "actions"]
        coefficients = codec.characters(actions) + codec.min_token
        assert np.array_equal(coefficients, np.maximum(arrays[prefix + "coefficients"], codec.min_token))
        counts = arrays[prefix + "token_counts"].tolist()
        tokens = [row[:count].tolist() for row, count in zip(arrays[prefix + "tokens"], counts, strict=True)]
        assert codec.encode_batch(actions, repair=False) == tokens
        shape = actions.shape[1:]
        decoded = [codec.decode(row, *shape, on_malformed="zeros") for row in tokens]
        np.testing.assert_allclose(decoded, arrays[prefix + "decoded"], atol=1e-9)
        for row, lossless in zip(tokens, arrays[prefix + "lossless"], strict=True):
            if not lossless:
                with pytest.raises(UserError, match="no chunk"):
                    codec.decode(row, *shape)


@each_set
def test_repaired_tokens_always_decode(folder: Path) -> None:
    """And are the reference's wherever those decode."""
    codec, arrays, _ = read(folder)
    for prefix in prefixes(arrays):
        actions = arrays[prefix + "actions"]
        plain = codec.encode_batch(actions, repair=False)
        lossless = arrays[prefix + "lossless"]
        for number, tokens in enumerate(codec.encode_batch(actions)):
            assert (tokens == plain[number]) or not lossless[number]
            error = np.abs(codec.decode(tokens, *actions.shape[1:]) - actions[number]).max()
            assert error < 0.15  # of [-1, 1], with coefficients rounded to 0.1


@each_set
def test_edges(folder: Path) -> None:
    codec, _, cases = read(folder)
    shape = next(shape_of(edge) for edge in cases["edges"] if isinstance(edge["actions"], list))
    for edge in cases["edges"]:
        actions = np.array(edge["actions"]) if isinstance(edge["actions"], list) else np.full(shape, np.nan)
        if edge.get("encode_raises"):
            with pytest.raises(UserError, match="FAST codec"):
                codec.encode(actions)
            continue
        assert codec.encode(actions, repair=False) == edge["tokens"], edge["name"]
        decoded = codec.decode(edge["tokens"], *actions.shape, on_malformed="zeros")
        np.testing.assert_allclose(decoded, edge["decoded"], atol=1e-9, err_msg=edge["name"])


@each_set
def test_malformed_tokens(folder: Path) -> None:
    codec, _, cases = read(folder)
    shape = next(shape_of(edge) for edge in cases["edges"] if isinstance(edge["actions"], list))
    for case in cases["malformed"]:
        expected = np.zeros(shape) if case["all_zero"] else np.array(case["decoded"])
        decoded = codec.decode(case["tokens"], *shape, on_malformed="zeros")
        np.testing.assert_allclose(decoded, expected, rtol=1e-9, atol=1e-9, err_msg=case["name"])
        beyond = any(not 0 <= token < codec.size for token in case["tokens"])
        if case["error"] or beyond or 65533 in (case["code_points"] or []):
            with pytest.raises(UserError, match="no chunk"):
                codec.decode(case["tokens"], *shape)


@each_set
def test_each_token_holds_the_characters_that_it_decodes_to(folder: Path) -> None:
    codec, _, cases = read(folder)
    points = [[ord(character) for character in token.decode(errors="replace")] for token in codec.token_bytes]
    assert points == cases["token_code_points"]


@each_set
def test_fitting_gives_the_references_tokenizer(folder: Path) -> None:
    codec, arrays, cases = read(folder)
    names = [f"fit/{horizon}x{dims}/actions_x1024" for horizon, dims in cases["shapes"]]
    chunks = [arrays[name] / np.float32(1024) for name in names if name in arrays] or [
        arrays["fit/actions_x1024"] / np.float32(1024)
    ]
    fitted = FastCodec.fit(chunks, cases["vocab_size_asked"], cases["scale"], all_bytes=False)
    assert json.loads(fitted.tokenizer.to_str()) == json.loads((folder / "tokenizer/tokenizer.json").read_text())
    assert (fitted.min_token, fitted.size) == (codec.min_token, codec.size)
    assert (fitted.horizon, fitted.action_dim) == (codec.horizon, codec.action_dim)
